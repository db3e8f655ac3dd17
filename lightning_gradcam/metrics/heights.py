"""Maps at the resolution of the image, as the published protocols read them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradcam.attribution.spatial import Size, along_cells, cell_axes, upsampled

# Share of the maximum. Interpolating a map and its mirror image differs by up to 9e-6 of it, on a grid of 112.
ROUNDING = 1e-5


def at_image(maps: Tensor, size: Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring the positive part to image resolution, the maximum 1: ``(n, *size)``; 0 where empty or not finite."""
    cells = torch.where(along_cells(are_finite(maps), maps), maps.detach().to(dtype).relu(), 0)
    # Scaled before as well, so that values at either end of the range of float32 survive the weights.
    return _to_unit_maximum(upsampled(_to_unit_maximum(cells), size))


def _to_unit_maximum(heights: Tensor) -> Tensor:
    highest = heights.amax(cell_axes(heights), keepdim=True)
    return torch.where(highest > 0, heights / highest, 0)


def scores_of_pixels(maps: Tensor, size: Size) -> Tensor:
    """Scale maps to [0, 1] at image resolution, ``(n, *size)``; 0 where empty, not finite or constant."""
    heights = at_image(maps, size)
    lowest = heights.amin(cell_axes(heights), keepdim=True)
    return torch.where(lowest < 1 - ROUNDING, (heights - lowest) / (1 - lowest), 0)


def are_finite(maps: Tensor) -> Tensor:
    """Whether all cells of each map are finite, ``(n,)`` bool."""
    return maps.isfinite().flatten(1).all(1)
