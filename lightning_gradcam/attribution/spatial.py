"""Tensors with one, two or three spatial axes: signals, images, volumes and clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, ...]

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_AVERAGE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def cell_axes(maps: Tensor) -> tuple[int, ...]:
    """The axes of the cells in maps ``(n, *grid)``."""
    return tuple(range(1, maps.ndim))


def along_cells(values: Tensor, maps: Tensor) -> Tensor:
    """Values ``(n,)`` in a shape that goes with maps ``(n, *grid)``."""
    return values.reshape(-1, *[1] * (maps.ndim - 1))


def upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps ``(n, *grid)`` at another size ``(n, *size)``, linear in every axis (``align_corners=False``)."""
    return F.interpolate(maps[:, None], tuple(size), mode=_LINEAR[len(size)])[:, 0]


def averaged(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """The mean of ``(n, *size)`` over the area of each cell of a grid, ``(n, *grid)``."""
    return _AVERAGE[len(grid)](maps[:, None], tuple(grid))[:, 0]


def at_most(size: Sequence[int], longest: int) -> Size:
    """A grid of the same proportions, of at most so many cells along its longest axis; at least one along each."""
    factor = longest / max(size)
    return tuple(size) if factor >= 1 else tuple(max(1, round(side * factor)) for side in size)


def in_words(size: Sequence[int]) -> str:
    """A size as ``7 x 7``."""
    return " x ".join(map(str, size))
