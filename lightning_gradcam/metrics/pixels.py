"""Whether a map's pixels rank the region first, see :mod:`lightning_gradcam.metrics.protocols`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gradcam.metrics.heights import at_image, scores_of_pixels
from lightning_gradcam.metrics.shapes import check_shapes

# Pixels that differ by less than this share of the maximum are tied. Interpolating a map and its mirror image in double
# precision differs by some 1e-14; as a power of two, it leaves values such as 0.5 in the middle of a step.
_STEPS = 2.0**30


def pxap(maps: Tensor, masks: Tensor, ignored: Tensor | None = None) -> float:
    """PxAP: the average precision of the scores of all pixels of all images together.

    Each map is scaled to scores as for :func:`max_box_acc_v2`. With ``P`` the precision and ``R`` the recall of the
    pixels that score at least a threshold, this is ``sum_l P_l (R_l - R_(l-1))`` over falling thresholds. They are the
    scores that occur, so pixels of one score enter together and the sum is exact; the paper takes evenly spaced ones.

    A map that is empty, not finite or constant scores 0 everywhere. Samples whose mask is empty, or ignored as a whole,
    are left out. It sorts all pixels and holds some 80 bytes for each; a million pixels take about 0.1 s on one core.

    Source: Choe et al., CVPR 2020, arXiv 2001.07437, the section on evaluation metrics.

    Args:
        maps: Signed maps ``(n, *grid)``.
        masks: ``(n, *size)``, 1 inside the region.
        ignored: ``(n, *size)``, 1 where pixels do not count at all, as in a crowd that nobody has outlined. That goes
            for those inside the mask too; the authors' code counts these, as ``ignored * (1 - masks)`` does.

    Returns:
        A share in [0, 1], larger is better; constant maps have the regions' share of the pixels that count. NaN if no
        mask has such a pixel.

    Raises:
        ValueError: If the shapes do not fit.
    """
    left_out = torch.zeros_like(masks) if ignored is None else ignored
    check_shapes(maps=(maps, "ng"), masks=(masks, "ns"), ignored=(left_out, "ns"))
    counted = left_out <= 0.5
    inside = (masks > 0.5) & counted
    shown = inside.flatten(1).any(1)
    if not shown.any():
        return math.nan
    scores = scores_of_pixels(maps[shown], masks.shape[1:])[counted[shown]]
    scores, order = scores.cpu().sort(descending=True)
    found = inside[shown][counted[shown]].cpu()[order].cumsum(0)
    last = torch.cat([(scores.diff() != 0).nonzero()[:, 0], torch.tensor([len(scores) - 1])])
    hits = found[last].double()
    recall = hits / hits[-1]
    return (hits / (last + 1) * recall.diff(prepend=recall.new_zeros(1))).sum().item()


def roc_auc(maps: Tensor, masks: Tensor) -> Tensor:
    """The area under the ROC curve of each map's pixels, by which those inside the mask are told from the others.

    This is the share of all pairs of a pixel inside and one outside in which the one inside is the higher; a pair of
    equals counts by half. It asks for the order of pixels alone: a map may be right about it and still have most of
    its mass outside. A constant map has 0.5, as chance does, and the value of a mirrored image is the same.

    Source: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27, 2006.

    Args:
        maps: Signed maps ``(n, *grid)``, of which the positive part counts: all other pixels are equal.
        masks: ``(n, *size)``, 1 inside the region.

    Returns:
        ``(n,)`` in [0, 1], larger is better. NaN for a map that is empty or not finite and for a mask that is empty or
        full.

    Raises:
        ValueError: If the shapes do not fit.

    Cost: it sorts the pixels of each map, some 5 ms for 224 by 224 of them on one core.
    """
    pixels, inside = _pixels(maps, masks)
    areas = pixels.new_zeros(len(pixels))
    for i, (heights, within) in enumerate(zip(pixels, inside, strict=True)):
        ordered, order = heights.sort()
        _, level, tied = ordered.unique_consecutive(return_inverse=True, return_counts=True)
        below = tied.cumsum(0) - tied.double() / 2  # how many pixels are lower than one at each level, equals by half
        k = int(within.sum())
        # The pairs of two pixels inside, of which each gives one, and the k of a pixel and itself count for nothing.
        pairs = below[level[within[order]]].sum() - k * k / 2
        areas[i] = pairs / (k * (len(heights) - k))  # 0 / 0 where the mask is empty or full
    return _of_readable(areas, pixels).to(maps.device)


def rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's ``K`` highest pixels that lie inside the mask, which has ``K`` pixels.

    Where pixels are tied for the last places, each has the same chance of one: the value is what a draw among them
    scores on average, so that a constant map has the mask's share of the image, as chance does.

    Source: the relevance rank accuracy of Arras, Osman and Samek, CLEVR-XAI, Information Fusion 81, 2022, arXiv
    2003.07258.

    Args:
        maps: Signed maps ``(n, *grid)``, of which the positive part counts: all other pixels are equal.
        masks: ``(n, *size)``, 1 inside the region.

    Returns:
        ``(n,)`` in [0, 1], larger is better; 1 for a mask of the whole image. NaN for a map that is empty or not finite
        and for an empty mask.

    Raises:
        ValueError: If the shapes do not fit.

    Cost: as :func:`roc_auc`.
    """
    pixels, inside = _pixels(maps, masks)
    k = inside.sum(1, keepdim=True)
    last = pixels.sort(1, descending=True).values.gather(1, (k - 1).clamp_min(0))
    above, tied = pixels > last, pixels == last
    chance = (k - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True).double()
    hits = ((above + tied * chance) * inside).sum(1)
    return _of_readable(hits / k[:, 0], pixels).to(maps.device)  # 0 / 0 where the mask is empty


def _pixels(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The heights of all pixels ``(n, pixels)``, in steps, so that equals are equal, and which lie inside the mask."""
    check_shapes(maps=(maps, "ng"), masks=(masks, "ns"))
    heights = at_image(maps.cpu(), masks.shape[1:], torch.float64)
    return (heights * _STEPS).round().flatten(1), (masks > 0.5).flatten(1).cpu()


def _of_readable(values: Tensor, pixels: Tensor) -> Tensor:
    """Values ``(n,)`` as float32, NaN where no pixel is positive: of such a map nothing can be said."""
    return torch.where(pixels.any(1), values, torch.nan).float()
