"""What a comparison is: the sides, their runs, and the numbers of both, moment by moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np

from lightning_gradcam.metrics.drift import agreement
from lightning_gradcam.metrics.numbers import aggregate
from lightning_gradcam.record.differences import Difference, SideDifference, differences, side_differences
from lightning_gradcam.record.record import Record
from lightning_gradcam.record.tables import runs_in_words, sides_in_words

By = Literal["epoch", "step", "fraction"]


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a comparison, at the moments that all of them have: ``t`` of them, ``n`` samples.

    Attributes:
        name: What it is called; no two runs share a name.
        record: Where it comes from.
        layer: The prefix of the layer that is compared.
        at: ``(t,)``, which of the record's observations.
        maps: ``(t, n, *grid)``, signed.
        samples: ``(t, n)``, see :attr:`~lightning_gradcam.Record.samples`.
        drift: ``(t, n)``, how far each map is from that of the moment before; NaN at the first, and where the class
            that the target asks for has changed.
        agreement: ``(t, n)``, how much of each map lies where that of the first side does, in [0, 1]; NaN where the two
            ask for different classes. Where a side has several runs, its first is measured against the first side's
            first, its second against the second, and so on, from the start again where that has fewer.
        values: ``(t, n)`` by key: ``concentration``, ``strength``, and ``mass_`` and ``lift_`` of each region.
    """

    name: str
    record: Record
    layer: str
    at: np.ndarray
    maps: np.ndarray
    samples: np.ndarray
    drift: np.ndarray
    agreement: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Side:
    """What is compared: a run, or several of the same kind, such as seeds.

    Attributes:
        name: What it is called, as its run is where there is one.
        runs: At least one.
    """

    name: str
    runs: list[Run]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs on the same samples, moment by moment; ``str()`` of it is a table.

    Attributes:
        by: What moments are counted in.
        moments: ``(t,)``: epochs from 0 and -1 before training, optimizer steps, or fractions of the run.
        sides: The first is the one that the others are compared with.
        used: ``(n,)`` bool, the samples that numbers are of.
        notes: What a reader should know: which samples are used, and in what the runs differ.
    """

    by: By
    moments: np.ndarray
    sides: list[Side]
    used: np.ndarray
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        """Those of all sides, side by side."""
        return [run for side in self.sides for run in side.runs]

    @property
    def several(self) -> bool:
        """Whether a side has more than one run, so that the unit is the run and not the sample."""
        return any(len(side.runs) > 1 for side in self.sides)

    def table(self) -> list[dict[str, float]]:
        """A row a moment. Every key but the first is ``<run>/<number>``.

        ``agreement`` with the first side, in [0, 1]; ``accuracy`` on the whole fixed batch; ``drift`` since the moment
        before; and the numbers of :class:`~lightning_gradcam.GradCAMCallback` by their names there, aggregated like
        them over :attr:`used`.
        """
        rows = []
        for t, moment in enumerate(self.moments.tolist()):
            row = {str(self.by): moment}
            for side in self.sides:
                for run in side.runs:
                    numbers = self._numbers(run, t, side is not self.sides[0])
                    row |= {f"{run.name}/{key}": value for key, value in numbers.items()}
            rows.append(row)
        return rows

    def side_table(self) -> list[dict[str, float]]:
        """A row a moment. Every key but the first is ``<side>/<number>``, with ``/least`` and ``/most`` behind it.

        The numbers are those of :meth:`table` but ``agreement``: their mean over the side's runs, and the ends of their
        range; runs whose number is NaN are left out.
        """
        rows = []
        for t, moment in enumerate(self.moments.tolist()):
            row = {str(self.by): moment}
            for side in self.sides:
                for key, values in self._over_runs(side, t).items():
                    known = _known(values)
                    row[f"{side.name}/{key}"] = float(np.mean(known))
                    row |= {f"{side.name}/{key}/least": min(known), f"{side.name}/{key}/most": max(known)}
            rows.append(row)
        return rows

    def agreements(self) -> dict[tuple[str, str], float]:
        """How the maps of two runs agree at the last moment, the mean over all pairs of runs, by the names of sides.

        A name twice: of runs of that side, where it has several; else of a run of the first side and one of another.
        The agreement of a pair is the median over :attr:`used`.
        """
        first = self.sides[0]
        pairs = {(side.name, side.name): list(combinations(side.runs, 2)) for side in self.sides}
        pairs |= {(first.name, side.name): list(product(first.runs, side.runs)) for side in self.sides[1:]}
        found = {}
        for names, runs in pairs.items():
            values = [self._agreement(one, other) for one, other in runs]
            if values:
                found[names] = float(np.mean(_known(values)))
        return found

    def most_different(self) -> list[tuple[int | str, float]]:
        """Each used sample's id and its agreement at the last moment, the smallest over the runs; least first."""
        if len(self.sides) == 1:
            return []
        ids = self.runs[0].record.about["ids"]
        others = [run.agreement[-1] for side in self.sides[1:] for run in side.runs]
        least = np.nan_to_num(np.stack(others), nan=2).min(0)
        order = [i for i in least.argsort(kind="stable").tolist() if self.used[i] and least[i] <= 1]
        return [(ids[i], float(least[i])) for i in order]

    def differences(self) -> Sequence[Difference] | Sequence[SideDifference]:
        """What the first side has more or less than each other at the last moment, over :attr:`used`, by number.

        Of sides of one run each sample by sample; where a side has several, run by run.
        """
        first = self.sides[0]
        if self.several:
            sides = {side.name: self._over_runs(side, -1) for side in self.sides}
            for numbers in sides.values():
                del numbers["accuracy"]  # says nothing of maps
            (name, values), *others = sides.items()
            return [one for other in others for one in side_differences((name, other[0]), values, other[1])]
        found = []
        for side in self.sides[1:]:
            values = [
                {key: value[-1][self.used] for key, value in {"drift": one.drift, **one.values}.items()}
                for one in (first.runs[0], side.runs[0])
            ]
            found += differences((first.name, side.name), *values)
        return found

    def _agreement(self, one: Run, other: Run) -> float:
        """The agreement of two runs at the last moment."""
        last = [value[-1:] for run in (one, other) for value in (run.maps, run.samples["asked"])]
        return aggregate({"agreement": map_agreement(*last)[0][self.used]})["agreement"]

    def _numbers(self, run: Run, t: int, agree: bool) -> dict[str, float]:
        known = run.samples["right"][t][run.samples["right"][t] >= 0]
        values = {"agreement": run.agreement} if agree else {}
        values |= {"drift": run.drift, **run.values}
        accuracy = {"accuracy": float(known.mean()) if len(known) else float("nan")}
        return accuracy | aggregate({key: value[t][self.used] for key, value in values.items()})

    def _over_runs(self, side: Side, t: int) -> dict[str, list[float]]:
        """What each run of a side has, by number; NaN where a run has no such number."""
        rows = [self._numbers(run, t, False) for run in side.runs]
        keys = dict.fromkeys(key for row in rows for key in row)
        return {key: [row.get(key, float("nan")) for row in rows] for key in keys}

    def _repr_html_(self) -> str:
        """The page, where a notebook ends a cell with it."""
        from lightning_gradcam.record.page import frame

        return frame(self)

    def __str__(self) -> str:
        return "\n".join(sides_in_words(self) if self.several else runs_in_words(self))


@np.errstate(all="ignore")  # a map that is not finite has NaN for numbers, as of tensors
def map_agreement(maps: np.ndarray, classes: np.ndarray, others: np.ndarray, other_classes: np.ndarray) -> np.ndarray:
    """How much of each map lies where that of another run does.

    Args:
        maps: ``(t, n, *grid)``, signed.
        classes: ``(t, n)``, the class that the target asks for; below 0 where it is not known.
        others: Maps of the other run; the grid may be another.
        other_classes: As ``classes``.

    Returns:
        ``(t, n)``, in [0, 1]; NaN where the two ask for different classes.
    """
    rows, other_rows = (one.reshape(-1, *one.shape[2:]) for one in (maps, others))
    # Of another class, a map answers another question.
    other_class = (classes != other_classes) & (classes >= 0) & (other_classes >= 0)
    return np.where(other_class, np.nan, agreement(rows, other_rows).reshape(classes.shape))


def _known(values: Sequence[float]) -> list[float]:
    """Those that are there; NaN alone where there is none."""
    return [value for value in values if not np.isnan(value)] or [float("nan")]
