"""What two runs differ in at the last moment, number by number, and what chance alone would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradcam.metrics.numbers import aggregate
from lightning_gradcam.metrics.paired import holm, mean_interval, sign_flip_p


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
        return (
            f"{self.number}: {sides}; difference {_figure(self.mean)} on {self.agreeing} of {self.n} samples "
            f"(sign-flip p = {self.p:.2g}{interval})."
        )


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


def differences_in_words(found: Sequence[Difference]) -> list[str]:
    """A line for each, and what has to be known to read them."""
    if not found:
        return []
    adjusted = holm([one.p for one in found])
    several = len({one.runs for one in found}) > 1
    named = [f"{one.number}{f' of {one.runs[1]}' * several} {p:.2g}" for one, p in zip(found, adjusted, strict=True)]
    count = f"{len(found)} numbers are compared; p adjusted for that (Holm): {', '.join(named)}."
    return [*map(str, found), *[count] * (len(found) > 1), "One run each: seeds may differ by more."]


def _figure(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.2g}"
