"""Whether maps lie at the same place whatever the picture: a shortcut that nobody has named.

All functions take signed maps ``(n, *grid)`` of different samples, or of several maps a sample with what tells samples
apart. Of each the strongest tenth of the cells counts, rounded up, as far as they are positive and above the next one,
by 1e-5 of the map's maximum: among cells that are tied for the last places none is stronger than another. Maps without
such a cell, as empty and uniform ones, are left out, and so are those that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_gradcam.attribution.arrays import Array, namespace

LIMIT = 0.7  # from which on it is told; objects in the middle of pictures have reached 0.5
FEWEST_TO_TELL = 8  # samples; fewer share a place too easily
_TIED = 1e-5  # of the maximum
_DRAWS = 500
_AT_ONCE = 2_000_000  # cells that are counted at once


def how_often(maps: Array, samples: Sequence[int] | None = None) -> Array:
    """In what share of the samples each cell is among the strongest tenth, ``(*grid)`` in [0, 1]; NaN where no map is.

    Args:
        maps: ``(n, *grid)``.
        samples: Which sample each map is of, ``(n,)``; a sample with several counts by their mean. ``None``: each of
            another one.
    """
    xp, (top, weights, _) = namespace(maps), _strongest_tenth(maps, samples)
    shares = (weights @ top if len(top) else np.full(top.shape[1], math.nan)).reshape(maps.shape[1:])
    return xp.asarray(shares.astype(np.float32)) if xp is np else xp.asarray(shares, dtype=xp.float32).to(maps.device)


def number_of_samples(maps: Array, samples: Sequence[int] | None = None) -> int:
    """How many samples have a map that counts; the arguments are those of :func:`how_often`."""
    return len(np.unique(_strongest_tenth(maps, samples)[2]))


def positional_bias(maps: Array, samples: Sequence[int] | None = None) -> float:
    """The largest share of samples that have the same cell among the strongest tenth: the maximum of :func:`how_often`.

    1: all maps lie at one place, as on a watermark, whatever the picture. Objects that are always in the middle show as
    well. Compare it with :func:`positional_bias_chance`, and only within one grid.

    Args:
        maps: ``(n, *grid)``.
        samples: See :func:`how_often`.

    Returns:
        In [0, 1]; NaN where no map is.
    """
    return float(how_often(maps, samples).max())


def stands_out(share: float, chance: float) -> bool:
    """Whether a :func:`positional_bias` is worth a word: above the limit, and by more than rounding above chance."""
    return share > max(chance + 1e-6, LIMIT)


def positional_bias_chance(maps: Array, samples: Sequence[int] | None = None) -> float:
    """What :func:`positional_bias` is where the places of samples have nothing to do with each other.

    That is the 95th percentile over 500 draws with a fixed seed, in each of which the maps of every sample are shifted
    by as much as is drawn for it along each axis; what leaves the grid at one side comes in at the other.

    Args:
        maps: ``(n, *grid)``.
        samples: See :func:`how_often`.

    Returns:
        In [0, 1]; NaN where no map is.
    """
    top, weights, of = _strongest_tenth(maps, samples)
    if not len(top):
        return math.nan
    grid, rng = tuple(maps.shape[1:]), np.random.default_rng(0)
    rows, cells = np.nonzero(top)
    places, found = np.unravel_index(cells, grid), []
    at_once = max(1, _AT_ONCE // (len(rows) + math.prod(grid)))
    for start in range(0, _DRAWS, at_once):
        draws = min(at_once, _DRAWS - start)
        shifts = [rng.integers(0, side, (draws, of.max() + 1)) for side in grid]
        moved = [(place + shift[:, of[rows]]) % side for place, shift, side in zip(places, shifts, grid, strict=True)]
        flat = np.ravel_multi_index(moved, grid) + math.prod(grid) * np.arange(draws)[:, None]
        each = np.broadcast_to(weights[rows], flat.shape)
        shares = np.bincount(flat.ravel(), each.ravel(), draws * math.prod(grid)).reshape(draws, -1)
        found.append(shares.max(1))
    return float(np.float32(np.quantile(np.concatenate(found), 0.95)))  # as exact as the number itself


def place_in_words(places: Array) -> str:
    """Where the cell that is most often among the strongest lies; of several the one nearest to their middle.

    Args:
        places: ``(*grid)``, see :func:`how_often`.
    """
    grid = tuple(places.shape)
    cells = np.argwhere(np.asarray(places == places.max()))
    cell = cells[((cells - cells.mean(0)) ** 2).sum(1).argmin()]
    numbers = f"({', '.join(map(str, map(int, cell)))}) of {' x '.join(map(str, grid))}"
    if len(grid) != 2:
        return numbers
    thirds = [int(3 * (place + 0.5) / side) for place, side in zip(cell, grid, strict=True)]
    down, across = ("upper", "middle", "lower")[thirds[0]], ("left", "middle", "right")[thirds[1]]
    return f"{down if down == across else f'{down} {across}'}, {numbers}"


def _strongest_tenth(maps: Array, samples: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each map that counts the strongest cells, ``(m, cells)`` bool; its weight ``(m,)``; and its sample, from 0."""
    given: Any = maps
    given = given if namespace(maps) is np else given.detach().cpu().float()
    cells = np.asarray(given).reshape(len(maps), math.prod(maps.shape[1:]))
    of = np.arange(len(cells)) if samples is None else np.asarray(samples)
    finite = np.isfinite(cells).all(1)
    cells, of = cells[finite], of[finite]
    number = math.ceil(cells.shape[1] / 10)
    ordered = np.sort(cells, 1)
    following = ordered[:, -number - 1 : -number].max(1, initial=0)  # the largest that does not count, at least 0
    top = cells > (following + _TIED * ordered[:, -1:].max(1, initial=0))[:, None]
    there = top.any(1)
    _, of, maps_each = np.unique(of[there], return_inverse=True, return_counts=True)
    weights = 1 / (maps_each[of] * max(1, len(maps_each)))
    return top[there], weights, of
