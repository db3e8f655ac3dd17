"""How far a map has moved from another of the same sample.

All functions take signed maps ``(n, *grid)`` at the layer's own resolution, of one, two or three axes. They look at
where the positive evidence lies and not at how much of it there is: a map is clipped at 0 and divided by its sum, and
then called ``P`` or ``Q``. A map without a positive cell, or one that is not finite, has no such place: every number of
it is NaN. Of two maps of a sample both have the same shape, but for :func:`agreement`.

Maps are tensors or numpy arrays, and so is what is returned.
"""

from __future__ import annotations

import math

import numpy as np

from lightning_gradcam.attribution.arrays import Array, namespace
from lightning_gradcam.attribution.spatial import averaged, cell_axes, cells_in_rows
from lightning_gradcam.metrics.shapes import check_same_shape

_PAIRS = 2_000


def distribution(maps: Array) -> Array:
    """Clip maps ``(n, *grid)`` at 0 and divide each by its sum; NaN everywhere where there is no positive cell."""
    xp, positive = namespace(maps), maps.clip(0, None)
    total = xp.sum(positive, cell_axes(maps), keepdims=True)
    defined = (total > 0) & xp.isfinite(total)
    return xp.where(defined, positive / xp.where(defined, total, 1), math.nan)


def similarity(maps: Array, others: Array) -> Array:
    """The similarity of two maps of each sample: ``sum min(P, Q)``.

    This is the histogram intersection that the saliency literature calls SIM (Bylinskii et al. 2019, arXiv
    1604.03605), one less the total variation distance. Symmetric; drift is one less it.

    Returns:
        ``(n,)`` in [0, 1]: 1 where the two agree, 0 where they share no cell. NaN where either is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(maps, others)
    shared = namespace(maps).minimum(distribution(maps), distribution(others))
    return shared.sum(cell_axes(maps)).clip(None, 1)


def agreement(maps: Array, others: Array) -> Array:
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
    return similarity(averaged(maps.clip(0, None), grid), averaged(others.clip(0, None), grid))


def chance(maps: Array) -> Array:
    """The drift between the maps of different samples: what two maps that have nothing to do with each other show.

    Returns:
        One value in [0, 1] for each pair of different samples that are not empty, or for 2,000 pairs that are drawn
        with a fixed seed where there are more, ``(pairs,)``; it may be empty.
    """
    xp, places = namespace(maps), cells_in_rows(distribution(maps))
    places = places[xp.isfinite(places).all(1)]
    n = len(places)
    if n * (n - 1) // 2 <= _PAIRS:
        first, second = np.triu_indices(n, 1)
    else:
        rng = np.random.default_rng(0)
        first = rng.integers(0, n, _PAIRS)
        second = (first + rng.integers(1, n, _PAIRS)) % n
    return 1 - xp.minimum(places[first], places[second]).sum(1).clip(None, 1)


def centroid_shift(maps: Array, others: Array) -> Array:
    """The distance between the centres of mass of two maps, as a fraction of the grid's diagonal.

    A map that moves by one cell moves its centre by ``1 / sqrt(h^2 + w^2)``, or with another number of axes alike.

    Returns:
        ``(n,)`` in [0, 1); 0 where the centres agree. NaN where either map is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(maps, others)
    xp, squares = namespace(maps), (_centroid(maps) - _centroid(others)) ** 2
    return xp.sqrt(squares.sum(1) / sum(side**2 for side in maps.shape[1:]))


def _centroid(maps: Array) -> Array:
    """The centre of mass of each map, ``(n, axes)``, in cells."""
    xp, places, axes, along = namespace(maps), distribution(maps), cell_axes(maps), []
    for axis in axes:
        others = tuple(one for one in axes if one != axis)
        totals = places.sum(others) if others else places  # torch takes a sum over no axis for one over all
        along.append(totals @ xp.arange(maps.shape[axis], dtype=totals.dtype))
    return xp.stack(along, 1)


def topk_iou(maps: Array, others: Array, share: float = 0.2) -> Array:
    """The overlap of the strongest cells of two maps: intersection over union of the strongest ``share`` of all cells.

    Only positive cells count, so a map may have fewer.

    Returns:
        ``(n,)`` in [0, 1]; 1 where the same cells are strongest. NaN where either map is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(maps, others)
    number = max(1, round(share * math.prod(maps.shape[1:])))
    xp, ours, theirs = namespace(maps), strongest_cells(maps, number), strongest_cells(others, number)
    union = (ours | theirs).sum(1)
    defined = xp.isfinite(cells_in_rows(distribution(maps) + distribution(others))).all(1)
    return xp.where(defined, (ours & theirs).sum(1) / union.clip(1, None), math.nan)


def strongest_cells(maps: Array, number: int) -> Array:
    """Which cells are the strongest of each map, as many as told or as are positive, ``(n, cells)``, bool."""
    cells = cells_in_rows(maps)
    rank = (-cells).argsort(1).argsort(1)
    return (rank < number) & (cells > 0)


def concentration(maps: Array) -> Array:
    """How few cells hold the evidence: ``1 - entropy(P) / log(cells)``.

    It depends on the grid: never compare it across layers of different resolution.

    Returns:
        ``(n,)`` in [0, 1]: 0 for a uniform map, 1 where one cell holds all. NaN for an empty map.
    """
    xp, places = namespace(maps), distribution(maps)
    entropy = -(places * xp.log(xp.where(places > 0, places, 1))).sum(cell_axes(maps))
    cells = math.prod(maps.shape[1:])
    return (1 - entropy / math.log(cells)).clip(0, 1) if cells > 1 else entropy * math.nan
