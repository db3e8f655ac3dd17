"""What a run logs of maps: values a sample, and of these one number a key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_gradcam.attribution.arrays import Array, as_float, namespace
from lightning_gradcam.attribution.spatial import averaged
from lightning_gradcam.metrics.drift import concentration
from lightning_gradcam.metrics.evidence import empty, strength
from lightning_gradcam.metrics.localization import area, mass


def describe(maps: Array, additive: bool, regions: Mapping[str, Array]) -> dict[str, Array]:
    """What can be said of maps without another observation.

    Args:
        maps: ``(t n, *grid)``, of all samples at one moment after another.
        additive: Whether a map sums to evidence in the score's unit.
        regions: Masks ``(n, *size)`` by name.

    Returns:
        Values ``(t n,)`` by key.
    """
    values = {"concentration": concentration(maps), "empty_fraction": as_float(empty(maps))}
    if additive:
        values["strength"] = strength(maps)
    xp, grid = namespace(maps), maps.shape[1:]
    for name, masks in regions.items():
        moments = len(maps) // len(masks)
        cells = xp.tile(averaged(as_float(masks), grid), (moments, *[1] * len(grid)))
        values[f"mass_{name}"] = mass(maps, cells)
        values[f"lift_{name}"] = values[f"mass_{name}"] / xp.tile(area(masks), (moments,))
    return values


def aggregate(values: Mapping[str, Array]) -> dict[str, float]:
    """One number a key: the mean over samples of shares, lifts and areas, else the median; NaN values are left out."""
    numbers = {}
    for key, value in values.items():
        xp = namespace(value)
        value = value[~xp.isnan(value)]
        numbers[key] = (value.mean() if is_mean(key) else xp.quantile(value, 0.5)).item() if len(value) else math.nan
    return numbers


def is_mean(key: str) -> bool:
    """Whether a number is the mean over samples; else it is the median."""
    return key.startswith(("mass_", "lift_", "insertion", "deletion")) or key == "empty_fraction"


def by_group(groups: Sequence[str], n: int, counted: Sequence[int] | None = None) -> dict[str, list[int]]:
    """The positions of all ``n`` samples, or of those that count, and of each group's, by the suffix of their keys."""
    everyone = list(range(n) if counted is None else counted)
    of_groups = {f"/{name}": [i for i in everyone if groups[i] == name] for name in dict.fromkeys(groups)}
    return {"": everyone} | of_groups


def worst_value(key: str) -> float:
    """What a monitor gets for a key, without its prefix, before there is a value."""
    if key == "strength":
        return float(np.finfo(np.float32).min)
    larger_is_better = ("topk_iou", "concentration", "seconds", "max_box_acc_v2", "pxap", "roc_auc", "rank_accuracy")
    return 0.0 if key.startswith(("mass_", "lift_")) or key in larger_is_better else 1.0
