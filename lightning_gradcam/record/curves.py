"""The curves of the page: a line a side over the moments, and a band that says how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_gradcam.metrics.numbers import is_mean
from lightning_gradcam.metrics.paired import FEWEST_FOR_INTERVAL, number_interval
from lightning_gradcam.record.comparison import Comparison, Run

Band = list[list[float | None]]


def curves(comparison: Comparison, at: np.ndarray) -> list[dict[str, Any]]:
    """What the page draws, number by number.

    Args:
        comparison: The sides.
        at: ``(t,)``, which of its moments.

    Returns:
        For each number its ``title``; ``lines``, for each side the mean over its runs at each moment; and ``bands``,
        for each side their lower and their upper edge, see :func:`bands_in_words`. ``None`` where there is no value.
    """
    rows = comparison.side_table()
    masses = dict.fromkeys(key for run in comparison.runs for key in run.values if key.startswith("mass_"))
    titles = {"drift": "Drift since the moment before"}
    titles |= {key: f"Share of the map on {key.removeprefix('mass_')}" for key in masses}
    found = []
    for key, title in titles.items():

        def over_moments(name: str, key: str = key) -> list[float | None]:
            return finite_or_none([rows[t].get(f"{name}/{key}", math.nan) for t in at])

        bands = [
            [over_moments(side.name, f"{key}/{end}") for end in ("least", "most")]
            if len(side.runs) > 1
            else _over_samples(side.runs[0], key, at, comparison)
            for side in comparison.sides
        ]
        found.append({"title": title, "lines": [over_moments(side.name) for side in comparison.sides], "bands": bands})
    return found


def bands_in_words(comparison: Comparison) -> str:
    """What the bands of :func:`curves` are."""
    if comparison.several:
        return "Lines: means over runs. Bands: from the least to the most of the runs."
    if comparison.used.sum() < FEWEST_FOR_INTERVAL:
        return "Bands: the middle half of the samples, by quartiles."
    return "Bands: the 95 % interval of the number by what its samples show. Seeds may differ by more."


def _over_samples(run: Run, key: str, at: np.ndarray, comparison: Comparison) -> Band:
    """The quartiles of the used samples; of 32 or more the interval of the number, where as many have a value.

    None beside sides of several runs, whose bands are of runs.
    """
    values, used = {"drift": run.drift, **run.values}.get(key), comparison.used
    edges = [(math.nan, math.nan)] * len(at)
    if values is not None and not comparison.several:
        edges = [_edges(row[np.isfinite(row)], used.sum(), key) for row in values[at][:, used]]
    return [finite_or_none(edge) for edge in zip(*edges, strict=True)]


def _edges(values: np.ndarray, used: int, key: str) -> tuple[float, float]:
    if used >= FEWEST_FOR_INTERVAL:
        return number_interval(values, is_mean(key)) or (math.nan, math.nan)
    low, high = np.quantile(values, [0.25, 0.75]) if len(values) else (math.nan, math.nan)
    return float(low), float(high)


def finite_or_none(values: Sequence[float]) -> list[float | None]:
    """Four digits each, and ``None`` for what is no number."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
