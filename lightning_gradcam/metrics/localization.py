"""Where a map's evidence lies, against regions of the image; of tensors or of numpy arrays."""

from __future__ import annotations

import math

from lightning_gradcam.attribution.arrays import Array, as_float, namespace
from lightning_gradcam.attribution.spatial import averaged, cell_axes
from lightning_gradcam.metrics.shapes import check_shapes


def mass(maps: Array, masks: Array) -> Array:
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
    xp, positive, axes = namespace(maps), maps.clip(0, None), cell_axes(maps)
    cells = averaged(as_float(masks), maps.shape[1:])
    total = positive.sum(axes)
    inside = (positive * cells).sum(axes) / xp.where(total > 0, total, 1)
    return xp.where((total > 0) & (xp.amax(masks, axes) > 0), inside, math.nan)


def lift(maps: Array, masks: Array) -> Array:
    """How much more of a map's evidence lies inside a region than a uniform map would have there.

    This is :func:`mass` divided by the region's share of the image, which mass grows with.

    Returns:
        ``(n,)``, at least 0; 1 for a uniform map. NaN as for :func:`mass`.

    Raises:
        ValueError: As for :func:`mass`.
    """
    return mass(maps, masks) / area(masks)


def area(masks: Array) -> Array:
    """The share of the image that each region takes, ``(n,)``; NaN for an empty mask."""
    shares = as_float(masks).mean(cell_axes(masks))
    return namespace(masks).where(shares > 0, shares, math.nan)
