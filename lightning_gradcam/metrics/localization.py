"""Where a map's evidence lies, against regions of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradcam.attribution.spatial import averaged, cell_axes
from lightning_gradcam.metrics.shapes import check_shapes


def mass(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's positive evidence that lies inside a region: ``sum P M``.

    ``P`` is the map, clipped at 0 and divided by its sum, and ``M`` the mask, averaged over each cell's area. This is
    the energy-based pointing game of Score-CAM (Wang et al. 2020, arXiv 1910.01279) at the layer's resolution.

    Args:
        maps: Signed maps ``(n, *grid)``.
        masks: ``(n, *size)``, as many axes, in [0, 1], 1 inside the region.

    Returns:
        ``(n,)`` in [0, 1]; 1 is all inside. NaN for a map without a positive cell and for an empty mask.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shapes(maps=(maps, "ng"), masks=(masks, "ns"))
    positive, axes = maps.relu(), cell_axes(maps)
    cells = averaged(masks.float(), maps.shape[1:])
    total = positive.sum(axes)
    inside = (positive * cells).sum(axes) / total
    return torch.where((total > 0) & (masks.amax(axes) > 0), inside, torch.nan)


def lift(maps: Tensor, masks: Tensor) -> Tensor:
    """How much more of a map's evidence lies inside a region than a uniform map would have there.

    This is :func:`mass` divided by the region's share of the image, which mass grows with.

    Returns:
        ``(n,)``, at least 0; 1 for a uniform map. NaN as for :func:`mass`.

    Raises:
        ValueError: As for :func:`mass`.
    """
    return mass(maps, masks) / masks.float().mean(cell_axes(masks))
