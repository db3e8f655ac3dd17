"""How far a map has moved from another of the same sample.

All functions take signed maps ``(n, *grid)`` at the layer's own resolution, of one, two or three axes. They look at
where the positive evidence lies and not at how much of it there is: a map is clipped at 0 and divided by its sum, and
then called ``P`` or ``Q``. A map without a positive cell, or one that is not finite, has no such place: every number of
it is NaN. Of two maps of a sample both have the same shape, but for :func:`agreement`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gradcam.attribution.spatial import averaged, cell_axes
from lightning_gradcam.metrics.shapes import check_same_shape


def distribution(maps: Tensor) -> Tensor:
    """Clip maps ``(n, *grid)`` at 0 and divide each by its sum; NaN everywhere where there is no positive cell."""
    positive = maps.relu()
    total = positive.sum(cell_axes(maps), keepdim=True)
    return torch.where((total > 0) & total.isfinite(), positive / total, torch.nan)


def similarity(maps: Tensor, others: Tensor) -> Tensor:
    """The similarity of two maps of each sample: ``sum min(P, Q)``.

    This is the histogram intersection that the saliency literature calls SIM (Bylinskii et al. 2019, arXiv
    1604.03605), one less the total variation distance. Symmetric; drift is one less it.

    Returns:
        ``(n,)`` in [0, 1]: 1 where the two agree, 0 where they share no cell. NaN where either is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(maps, others)
    return torch.minimum(distribution(maps), distribution(others)).sum(cell_axes(maps)).clamp_max(1)


def agreement(maps: Tensor, others: Tensor) -> Tensor:
    """The similarity of maps of two models, whose grids may differ: both averaged to the coarser of each side.

    The positive part alone is averaged, so that evidence against the target cancels none for it.

    Returns:
        As :func:`similarity`.

    Raises:
        ValueError: If the grids have different numbers of axes, or the numbers of samples differ.
    """
    if maps.ndim != others.ndim:
        shapes = f"{tuple(maps.shape)} and {tuple(others.shape)}"
        raise ValueError(f"`maps` and `others` must have as many axes, got {shapes}; compare maps of the same samples")
    grid = [min(sides) for sides in zip(maps.shape[1:], others.shape[1:], strict=True)]
    return similarity(*(averaged(one.relu(), grid) for one in (maps, others)))


def chance(maps: Tensor) -> Tensor:
    """The drift between the maps of different samples: what two maps that have nothing to do with each other show.

    Returns:
        One value in [0, 1] for each pair of different samples that are not empty, ``(pairs,)``; it may be empty.
    """
    places = distribution(maps).flatten(1)
    places = places[places.isfinite().all(1)]
    first, second = torch.triu_indices(len(places), len(places), offset=1)
    return 1 - torch.minimum(places[first], places[second]).sum(1).clamp_max(1)


def centroid_shift(maps: Tensor, others: Tensor) -> Tensor:
    """The distance between the centres of mass of two maps, as a fraction of the grid's diagonal.

    A map that moves by one cell moves its centre by ``1 / sqrt(h^2 + w^2)``, or with another number of axes alike.

    Returns:
        ``(n,)`` in [0, 1); 0 where the centres agree. NaN where either map is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(maps, others)
    return (_centroid(maps) - _centroid(others)).norm(dim=1) / sum(side**2 for side in maps.shape[1:]) ** 0.5


def _centroid(maps: Tensor) -> Tensor:
    """The centre of mass of each map, ``(n, axes)``, in cells."""
    places, axes, along = distribution(maps), cell_axes(maps), []
    for axis in axes:
        others = [one for one in axes if one != axis]
        totals = places.sum(others) if others else places  # a sum over no axis is one over all
        along.append(totals @ torch.arange(maps.shape[axis]).float())
    return torch.stack(along, 1)


def topk_iou(maps: Tensor, others: Tensor, share: float = 0.2) -> Tensor:
    """The overlap of the strongest cells of two maps: intersection over union of the strongest ``share`` of all cells.

    Only positive cells count, so a map may have fewer.

    Returns:
        ``(n,)`` in [0, 1]; 1 where the same cells are strongest. NaN where either map is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(maps, others)
    ours, theirs = _strongest_cells(maps, share), _strongest_cells(others, share)
    union = (ours | theirs).sum(1)
    defined = (distribution(maps) + distribution(others)).isfinite().flatten(1).all(1)
    return torch.where(defined, (ours & theirs).sum(1) / union, torch.nan)


def _strongest_cells(maps: Tensor, share: float) -> Tensor:
    cells = maps.relu().flatten(1)
    number = max(1, round(share * cells.shape[1]))
    chosen = torch.zeros_like(cells, dtype=torch.bool).scatter_(1, cells.topk(number, 1).indices, True)
    return chosen & (cells > 0)


def concentration(maps: Tensor) -> Tensor:
    """How few cells hold the evidence: ``1 - entropy(P) / log(cells)``.

    It depends on the grid: never compare it across layers of different resolution.

    Returns:
        ``(n,)`` in [0, 1]: 0 for a uniform map, 1 where one cell holds all. NaN for an empty map.
    """
    entropy = torch.special.entr(distribution(maps)).sum(cell_axes(maps))
    return (1 - entropy / torch.log(torch.tensor(float(math.prod(maps.shape[1:]))))).clamp(0, 1)
