"""Whether a map's maximum points at the object: the pointing game, see :mod:`lightning_gradcam.metrics.protocols`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gradcam.attribution.spatial import cell_axes
from lightning_gradcam.metrics.heights import ROUNDING, are_finite, at_image
from lightning_gradcam.metrics.shapes import check_shapes


def pointing_game(maps: Tensor, masks: Tensor, tolerance: float = 15.0) -> Tensor:
    """Whether each map's maximum points at the region: the pointing game.

    The maximum is a pixel of the map at image resolution. It is a hit if a pixel of the mask lies within the tolerance
    of it. Where several pixels are tied for the maximum, to 1e-5 of it, the value is the share of them that are
    hits, which is what one drawn at random scores on average. A constant map, and so one of a single cell, is tied
    everywhere and scores as chance does. The value of a mirrored image is the same.

    Source: Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, arXiv 1608.00507.

    Args:
        maps: Signed maps ``(n, *grid)``.
        masks: ``(n, *size)``, 1 inside the region.
        tolerance: Largest distance of a hit from the region, centre to centre, in pixels of the image; at least 0.

    Returns:
        ``(n,)`` in [0, 1]: 1 is a hit, 0 a miss. NaN for a map that is empty or not finite and for an empty mask.

    Raises:
        ValueError: If the shapes do not fit, or the tolerance is negative or not finite.
    """
    check_shapes(maps=(maps, "ng"), masks=(masks, "ns"))
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"`tolerance` must be a number of pixels, at least 0, got {tolerance}")
    inside = masks > 0.5
    tied = at_image(maps, masks.shape[1:]) >= 1 - ROUNDING
    axes = cell_axes(masks)
    hits = (tied & _nearby(inside, tolerance)).sum(axes) / tied.sum(axes)
    return torch.where(inside.flatten(1).any(1), hits, torch.nan)  # 0 / 0 where no map is


def class_average(values: Tensor, classes: Tensor) -> float:
    """The mean of each class over its samples, and of the classes then, so that rare classes count as common ones do.

    Args:
        values: One number a sample, any shape. NaN is left out, and so is a class that has nothing else.
        classes: The class of each sample, whole numbers, of the same shape.

    Returns:
        The average, within the range of the values; NaN if no value is left.

    Raises:
        ValueError: If the shapes differ.
    """
    if values.shape != classes.shape:
        raise ValueError(
            f"`classes` must have the shape of `values`, {tuple(values.shape)}, got {tuple(classes.shape)}; "
            "give one class for each value"
        )
    known = ~values.isnan()
    _, index = classes[known].cpu().unique(return_inverse=True)
    totals = torch.bincount(index, weights=values[known].detach().cpu().double())
    return (totals / torch.bincount(index)).mean().item()


def pointing_game_with_rejection(maps: Tensor, masks: Tensor, threshold: float, tolerance: float = 15.0) -> Tensor:
    """The pointing game over the top ``k`` predicted classes of each image, whose maps may be rejected.

    A map is rejected if its maximum at its own resolution lies below the threshold; an empty map always is. For a
    class that the image does not show, a rejection is a hit and pointing anywhere is a miss. For one that it shows, a
    rejection is a miss and pointing counts as in :func:`pointing_game`.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391, the section on the pointing game.

    Args:
        maps: Signed maps ``(n, k, *grid)`` of the ``k`` classes.
        masks: ``(n, k, *size)``, 1 inside the region of the class; empty where the image does not show it.
        threshold: Least maximum of a map that points, in the unit of the maps.
        tolerance: As for :func:`pointing_game`, in pixels.

    Returns:
        ``(n, k)`` in [0, 1]: 1 is a hit, 0 a miss. NaN for a map that is not finite.

    Raises:
        ValueError: As for :func:`pointing_game`.
    """
    check_shapes(maps=(maps, "nkg"), masks=(masks, "nks"))
    n_k, maps, masks = maps.shape[:2], maps.flatten(0, 1), masks.flatten(0, 1)
    pointed = pointing_game(maps, masks, tolerance)
    highest = maps.float().amax(cell_axes(maps))
    rejected = (highest < threshold) | (highest <= 0)
    absent = ~(masks > 0.5).flatten(1).any(1)
    hits = torch.where(rejected, absent.float(), torch.where(absent, 0, pointed))
    return torch.where(are_finite(maps), hits, torch.nan).view(n_k)


def _nearby(inside: Tensor, tolerance: float) -> Tensor:
    """Which pixels lie within ``tolerance`` of one that is inside, both ``(n, *size)`` bool."""
    far = sum(side**2 for side in inside.shape[1:])
    # The squared distance to the next one inside, first along one axis alone: each further axis adds its own steps.
    distances = torch.where(inside, 0, far)
    for axis in cell_axes(inside):
        without, side = distances.clone(), inside.shape[axis]
        for step in range(1, min(int(tolerance), side - 1) + 1):
            for here, there in ((0, step), (step, 0)):
                moved = without.narrow(axis, there, side - step) + step**2
                nearest = distances.narrow(axis, here, side - step)
                torch.minimum(nearest, moved, out=nearest)
    return distances <= min(int(tolerance**2), far - 1)
