"""What two runs or sides differ in at the last moment, number by number, and what chance alone would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradcam.metrics.numbers import aggregate, is_mean
from lightning_gradcam.metrics.paired import FEWEST_RUNS, deal_p, holm, mean_interval, sign_flip_p


@dataclass(frozen=True)
class Difference:
    """A number of two runs, paired by samples.

    Attributes:
        number: What it is called.
        runs: The names of both.
        values: What each has, aggregated as everywhere.
        mean: The mean over samples of the first run's value less the other's.
        agreeing: How many samples differ in that direction.
        n: How many samples have a value in both.
        p: See :func:`~lightning_gradcam.metrics.paired.sign_flip_p`.
        interval: See :func:`~lightning_gradcam.metrics.paired.mean_interval`.
    """

    number: str
    runs: tuple[str, str]
    values: tuple[float, float]
    mean: float
    agreeing: int
    n: int
    p: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        sides = ", ".join(f"{name} {_figure(value)}" for name, value in zip(self.runs, self.values, strict=True))
        interval = "" if self.interval is None else ", 95 % interval {} to {}".format(*map(_figure, self.interval))
        medians, mean = ("", "") if is_mean(self.number) else (" (medians)", "mean ")  # whose difference is another one
        return (
            f"{self.number}: {sides}{medians}; {mean}difference {_figure(self.mean)} on {self.agreeing} of "
            f"{self.n} samples (sign-flip p = {self.p:.2g}{interval})."
        )


@dataclass(frozen=True)
class SideDifference:
    """A number of two sides, of which one or both have several runs.

    Attributes:
        number: What it is called.
        sides: The names of both.
        values: What each run of each side has; NaN where it has none.
        mean: The mean of the first side's runs less that of the other's.
        p: See :func:`~lightning_gradcam.metrics.paired.deal_p`; ``None`` below five runs a side.
    """

    number: str
    sides: tuple[str, str]
    values: tuple[list[float], list[float]]
    mean: float
    p: float | None

    def __str__(self) -> str:
        sides = [f"{name} {' '.join(map(_figure, runs))}" for name, runs in zip(self.sides, self.values, strict=True)]
        chance = "" if self.p is None else f" (permutation of runs p = {self.p:.2g})"
        return f"{self.number}: {', '.join(sides)}; difference of the means {_figure(self.mean)}{chance}."


def differences(
    runs: tuple[str, str], values: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> list[Difference]:
    """Compare two runs.

    Args:
        runs: Their names.
        values: Of the first run by number, ``(n,)`` each.
        others: The same of the other, of the same samples.

    Returns:
        One for each number that both have, in the first one's order, where any sample has a value in both.
    """
    found = []
    for number in (number for number in values if number in others):
        known = np.isfinite(values[number]) & np.isfinite(others[number])
        one, other = values[number][known].astype(np.float64), others[number][known].astype(np.float64)
        if not len(one):
            continue
        apart = one - other
        means = aggregate({number: one})[number], aggregate({number: other})[number]
        agreeing = int((np.sign(apart) == np.sign(apart.mean())).sum())
        p, interval = sign_flip_p(apart), mean_interval(apart)
        found.append(Difference(number, runs, means, float(apart.mean()), agreeing, len(one), p, interval))
    return found


def side_differences(
    sides: tuple[str, str], values: Mapping[str, list[float]], others: Mapping[str, list[float]]
) -> list[SideDifference]:
    """Compare two sides.

    Args:
        sides: Their names.
        values: What each run of the first side has, by number; NaN where it has none.
        others: The same of the other.

    Returns:
        One for each number that both have, in the first one's order, where a run of each has a value.
    """
    found = []
    for number in (number for number in values if number in others):
        one, other = (np.array([value for value in of[number] if np.isfinite(value)]) for of in (values, others))
        if len(one) and len(other):
            p = deal_p(one, other) if min(len(one), len(other)) >= FEWEST_RUNS else None
            both = values[number], others[number]
            found.append(SideDifference(number, sides, both, float(one.mean() - other.mean()), p))
    return found


def differences_in_words(found: Sequence[Difference] | Sequence[SideDifference]) -> list[str]:
    """A line for each, and what has to be known to read them."""
    if not found:
        return []
    others = [(one.runs if isinstance(one, Difference) else one.sides)[1] for one in found]
    of_others = [f" of {other}" if len(set(others)) > 1 else "" for other in others]
    tested = {f"{one.number}{of}": one.p for one, of in zip(found, of_others, strict=True) if one.p is not None}
    adjusted = zip(tested, holm(list(tested.values())), strict=True)
    named = ", ".join(f"{number} {p:.2g}" for number, p in adjusted)
    count = f"{len(tested)} numbers are compared; p adjusted for that (Holm): {named}."
    lines = [*map(str, found), *[count] * (len(tested) > 1)]
    if isinstance(found[0], Difference):
        return [*lines, "One run each: seeds may differ by more."]
    if len(tested) < len(found):
        lines.append(f"No p is given below {FEWEST_RUNS} runs a side: so few say little of other seeds.")
    return lines


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}" if abs(value) < 1000 else f"{value:.2g}"
