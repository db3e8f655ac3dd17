"""Whether maps lie at the same place whatever the picture: a shortcut that nobody has named.

All functions take signed maps ``(n, *grid)`` of different samples. Of each the strongest tenth of the cells counts, as
far as they are positive. Maps that are empty or not finite are left out.
"""

from __future__ import annotations

import math

import numpy as np

from lightning_gradcam.attribution.arrays import Array, namespace
from lightning_gradcam.metrics.drift import distribution, strongest_cells

LIMIT = 0.7  # from which on it is told; objects in the middle of pictures have reached 0.5
_DRAWS = 500
_AT_ONCE = 2_000_000  # cells that are counted at once


def how_often(maps: Array) -> Array:
    """In what share of the maps each cell is among the strongest tenth, ``(*grid)`` in [0, 1]; NaN where no map is."""
    xp, top = namespace(maps), _strongest_tenth(maps)
    if not len(top):
        return xp.full(tuple(maps.shape[1:]), math.nan)
    return xp.asarray(top, dtype=xp.float32).mean(0).reshape(maps.shape[1:])


def positional_bias(maps: Array) -> float:
    """The largest share of maps that have the same cell among their strongest tenth: the maximum of :func:`how_often`.

    1: all maps lie at one place, as on a watermark, whatever the picture. Objects that are always in the middle show as
    well. Compare it with :func:`positional_bias_chance`, and only within one grid.

    Returns:
        In [0, 1]; NaN where no map is.
    """
    return float(how_often(maps).max())


def positional_bias_chance(maps: Array) -> float:
    """What :func:`positional_bias` is where places have nothing to do with each other.

    That is the 95th percentile over 500 draws with a fixed seed, in each of which every map is shifted by as much as
    is drawn for it along each axis; what leaves the grid at one side comes in at the other.

    Returns:
        In [0, 1]; NaN where no map is.
    """
    top = np.asarray(_strongest_tenth(maps))
    if not len(top):
        return math.nan
    grid, rng = tuple(maps.shape[1:]), np.random.default_rng(0)
    rows, cells = np.nonzero(top)
    places, found = np.unravel_index(cells, grid), []
    at_once = max(1, _AT_ONCE // (len(rows) + math.prod(grid)))
    for start in range(0, _DRAWS, at_once):
        draws = min(at_once, _DRAWS - start)
        shifts = [rng.integers(0, side, (draws, len(top))) for side in grid]
        moved = [(place + shift[:, rows]) % side for place, shift, side in zip(places, shifts, grid, strict=True)]
        flat = np.ravel_multi_index(moved, grid) + math.prod(grid) * np.arange(draws)[:, None]
        counts = np.bincount(flat.ravel(), minlength=draws * math.prod(grid)).reshape(draws, -1)
        found.append(counts.max(1))
    return float(np.quantile(np.concatenate(found), 0.95)) / len(top)


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


def _strongest_tenth(maps: Array) -> Array:
    """The strongest cells of each map that can be read, ``(maps, cells)``, bool."""
    xp, axes = namespace(maps), tuple(range(1, maps.ndim))
    readable = xp.isfinite(distribution(maps)).all(axes)
    return strongest_cells(maps[readable], math.ceil(math.prod(maps.shape[1:]) / 10))
