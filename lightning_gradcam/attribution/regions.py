"""Regions of an image: boxes and masks, and the one as the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def plain_region(region: Any) -> Tensor:
    """A region as a plain tensor; boxes of another format than x0, y0, x1, y1 are brought to that."""
    if type(region).__name__ == "BoundingBoxes":
        from torchvision.transforms.v2.functional import convert_bounding_box_format
        from torchvision.tv_tensors import BoundingBoxFormat

        region = convert_bounding_box_format(region, new_format=BoundingBoxFormat.XYXY)
    if not isinstance(region, Tensor):
        raise TypeError(f"`regions` must hold tensors, got {type(region).__name__}")
    return region.as_subclass(Tensor)


def check_boxes(name: str, region: Tensor, size: tuple[int, int]) -> None:
    """Refuse boxes in another form or unit, which would leave wrong numbers without a word."""
    if region.ndim != 2:
        return
    height, width = size
    x0, y0, x1, y1 = region.float().unbind(1)
    there = (x1 != x0) & (y1 != y0)
    away = there & ((x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height))
    problem = None
    if ((x1 < x0) | (y1 < y0)).any():
        problem = "a right or bottom edge before the left or top one, as boxes of x, y, width, height have"
    elif region.is_floating_point() and there.any() and region.max() <= 1 and (region % 1 != 0).any():
        problem = "values from 0 to 1 alone, as boxes in fractions of the image have"
    elif away.any():
        problem = f"boxes outside the images of {height} x {width} pixels, as those of another resolution"
    if problem:
        raise ValueError(
            f"region {name!r} has {problem}; `batch_fn` must return boxes as x0, y0, x1, y1 in pixels of the images "
            "that the model gets, right and bottom exclusive"
        )


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw boxes as masks.

    Args:
        boxes: ``(n, 4)`` as x0, y0, x1, y1 in whole pixels, right and bottom exclusive.
        size: Height and width of the image in pixels.

    Returns:
        Masks ``(n, H, W)``, float32, 1 inside.
    """
    height, width = size
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    x0, y0, x1, y1 = (edge[:, None] for edge in boxes.unbind(1))
    columns, rows = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return (rows[:, :, None] & columns[:, None, :]).float()


def region_masks(region: Tensor, size: tuple[int, int]) -> Tensor:
    """A region as masks ``(n, H, W)``, float32: boxes ``(n, 4)`` are drawn, masks are taken as they are."""
    return box_masks(region, size) if region.ndim == 2 else region.float()


def outline_boxes(region: Tensor) -> Tensor:
    """Boxes ``(n, 4)`` around a region given as boxes or as masks ``(n, H, W)``; all zero around an empty mask."""
    if region.ndim == 2:
        return region.float()
    boxes = torch.zeros(len(region), 4)
    for box, mask in zip(boxes, region > 0, strict=True):
        if mask.any():
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            box[:] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes
