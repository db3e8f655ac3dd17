"""Tensors and arrays with one, two or three spatial axes: signals, images, volumes and clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradcam.attribution.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, ...]

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def cell_axes(maps: np.ndarray | Tensor) -> tuple[int, ...]:
    """The axes of the cells in maps ``(n, *grid)``."""
    return tuple(range(1, maps.ndim))


def cells_in_rows(maps: Array) -> Array:
    """Maps ``(n, *grid)`` as ``(n, cells)``."""
    return maps.reshape(len(maps), math.prod(maps.shape[1:]))


def along_cells(values: Array, maps: Array) -> Array:
    """Values ``(n,)`` in a shape that goes with maps ``(n, *grid)``."""
    return values.reshape(-1, *[1] * (maps.ndim - 1))


def upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps ``(n, *grid)`` at another size ``(n, *size)``, linear in every axis (``align_corners=False``)."""
    import torch.nn.functional as F

    return F.interpolate(maps[:, None], tuple(size), mode=_LINEAR[len(size)])[:, 0]


def averaged(maps: Array, grid: Sequence[int]) -> Array:
    """The mean of ``(n, *size)`` over the area of each cell of a grid, ``(n, *grid)``.

    Where the grid does not divide the size, neighbours share a pixel, as in torch's adaptive average pooling.
    """
    if isinstance(maps, np.ndarray):
        for axis, cells in enumerate(grid, 1):
            if maps.shape[axis] != cells:
                maps = _averaged_along(maps, axis, cells)
        return maps
    import torch.nn.functional as F

    average = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(grid)]
    return average(maps[:, None], tuple(grid))[:, 0]


def _averaged_along(values: np.ndarray, axis: int, cells: int) -> np.ndarray:
    side, rows = values.shape[axis], np.moveaxis(values, axis, 0)
    means = [rows[cell * side // cells : -(-(cell + 1) * side // cells)].mean(0) for cell in range(cells)]
    return np.moveaxis(np.stack(means), 0, axis)


def at_most(size: Sequence[int], longest: int) -> Size:
    """A grid of the same proportions, of at most so many cells along its longest axis; at least one along each."""
    factor = longest / max(size)
    return tuple(size) if factor >= 1 else tuple(max(1, round(side * factor)) for side in size)


def in_words(size: Sequence[int]) -> str:
    """A size as ``7 x 7``."""
    return " x ".join(map(str, size))
