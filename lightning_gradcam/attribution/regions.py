"""Regions of an image, a volume, a clip or a signal: boxes and masks, and the one as the other.

A box has two numbers for each of the ``d`` spatial axes: all starts, then all ends, which are exclusive, in pixels. The
last axis comes first: x0, y0, x1, y1 of an image, x0, y0, z0, x1, y1, z1 of a volume ``(D, H, W)``. Samples have a box
each, ``(n, 2 d)``, or several, ``(n, m, 2 d)``, of which those without area, as in padding, are none.
"""

from __future__ import annotations

from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradcam.attribution.arrays import Array, as_float, namespace
from lightning_gradcam.attribution.spatial import Size, along_cells, in_words

if TYPE_CHECKING:
    from torch import Tensor


def plain_region(region: Any) -> Tensor:
    """A region as a plain tensor; boxes of another format than x0, y0, x1, y1 are brought to that."""
    if type(region).__name__ == "BoundingBoxes":
        from torchvision.transforms.v2.functional import convert_bounding_box_format
        from torchvision.tv_tensors import BoundingBoxFormat

        region = convert_bounding_box_format(region, new_format=BoundingBoxFormat.XYXY)
    from torch import Tensor

    if not isinstance(region, Tensor):
        pad = "; `torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)` joins the boxes of each sample"
        raise TypeError(
            f"`regions` must hold tensors, got {type(region).__name__}{pad * isinstance(region, (list, tuple))}"
        )
    region = region.as_subclass(Tensor)
    if region.ndim == 3 and not region.shape[1]:  # of several boxes a sample, where no sample has any
        return region.new_zeros(len(region), 1, region.shape[2])
    return region


def are_boxes(region: np.ndarray | Tensor, size: Size) -> bool:
    """Whether a region is given as boxes ``(n, 2 d)`` or ``(n, m, 2 d)``, and not as masks of this size."""
    shape = tuple(region.shape[1:])
    return len(shape) in (1, 2) and shape[-1] == 2 * len(size) and shape != tuple(size)


def check_boxes(name: str, region: Tensor, size: Size) -> None:
    """Refuse boxes in another form or unit, which would leave wrong numbers without a word."""
    if not are_boxes(region, size):
        return
    d = len(size)
    starts, ends = region.float().reshape(-1, 2 * d).split(d, 1)
    there = (starts != ends).all(1)
    away = there & ((ends <= 0) | (starts >= starts.new_tensor(size[::-1]))).any(1)
    form = "x0, y0, x1, y1" if d == 2 else "all starts, then all ends, the last axis first," if d == 3 else "start, end"
    problem = None
    if (ends < starts).any():
        edge = "a right or bottom edge before the left or top one" if d == 2 else "an end before its start"
        problem = f"{edge}, as boxes of {'x, y, width, height' if d == 2 else 'starts and lengths'} have"
    elif region.is_floating_point() and there.any() and region.max() <= 1 and (region % 1 != 0).any():
        problem = "values from 0 to 1 alone, as boxes in fractions of the image have"
    elif away.any():
        problem = f"boxes outside the images of {in_words(size)} pixels, as those of another resolution"
    if problem:
        last = "right and bottom exclusive" if d == 2 else "ends exclusive"
        raise ValueError(
            f"region {name!r} has {problem}; `batch_fn` must return boxes as {form} in pixels of the images "
            f"that the model gets, {last}"
        )


def box_masks(boxes: Array, size: Size) -> Array:
    """Draw boxes as masks.

    Args:
        boxes: ``(n, 2 d)`` or ``(n, m, 2 d)`` in whole pixels, such as x0, y0, x1, y1, right and bottom exclusive.
        size: Of the images in pixels, ``(H, W)`` or another number of axes.

    Returns:
        Masks ``(n, *size)``, float32, 1 inside; inside any of several boxes.
    """
    if boxes.ndim == 3:
        return as_float(reduce(or_, (box_masks(boxes[:, i], size) > 0 for i in range(boxes.shape[1]))))
    xp, d, within = namespace(boxes), len(size), []
    for axis, side in enumerate(size):
        place = xp.arange(side) if xp is np else xp.arange(side, device=boxes.device)
        start, end = boxes[:, d - 1 - axis, None], boxes[:, 2 * d - 1 - axis, None]
        along = (place >= start) & (place < end)
        within.append(along.reshape(len(boxes), *[side if one == axis else 1 for one in range(d)]))
    return as_float(reduce(and_, within))


def region_masks(region: Array, size: Size) -> Array:
    """A region as masks ``(n, *size)``, float32: boxes are drawn, masks are taken as they are."""
    return box_masks(region, size) if are_boxes(region, size) else as_float(region)


def cut_region(region: Array, size: Size, axis: int, places: Array) -> Array:
    """What of a region of volumes or clips lies in one slice of each, as boxes or masks as it was given.

    Args:
        region: Boxes ``(n, 6)`` or ``(n, m, 6)``, or masks ``(n, *size)``.
        size: Of the volumes in pixels.
        axis: The spatial axis that slices lie across, counted from 0.
        places: ``(n,)``, the pixel along it at which each volume is cut.

    Returns:
        Boxes ``(n, 4)`` or ``(n, m, 4)``, all zero where the slice misses them, or masks of the slice.
    """
    if not are_boxes(region, size):
        return namespace(region).moveaxis(region, 1 + axis, 1)[range(len(region)), places]
    d = len(size)
    start, end = d - 1 - axis, 2 * d - 1 - axis  # the last axis comes first, all starts before all ends
    places = along_cells(places, region[..., 0])
    inside = (region[..., start] <= places) & (places < region[..., end])
    return region[..., [edge for edge in range(2 * d) if edge not in (start, end)]] * inside[..., None]


def outline_boxes(region: Array, size: Size) -> Array:
    """Boxes ``(n, m, 2 d)`` around a region as it was given: one around each mask, all zero around an empty one."""
    if are_boxes(region, size):
        return as_float(region).reshape(len(region), -1, 2 * len(size))
    xp = namespace(region)
    boxes = xp.zeros((len(region), 2 * len(size)), dtype=xp.float32)
    for box, mask in zip(boxes, region > 0, strict=True):
        places = xp.flip(xp.argwhere(mask), (1,))
        if len(places):
            box[:] = xp.concatenate([xp.amin(places, 0), xp.amax(places, 0) + 1])
    return boxes[:, None]


def pixel_boxes(region: Tensor, size: Size) -> Tensor:
    """The boxes ``(n, m, 2 d)`` that maps are scored against: of the pixels inside, within the image."""
    if not are_boxes(region, size):
        return outline_boxes(region > 0.5, size)
    edges = outline_boxes(region, size).ceil().clamp_min(0)
    return edges.minimum(edges.new_tensor(size[::-1] * 2))
