"""Runs side by side: the same samples at the same moments of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_gradcam.attribution.names import sample_name
from lightning_gradcam.attribution.regions import region_masks
from lightning_gradcam.attribution.spatial import in_words
from lightning_gradcam.metrics.drift import agreement, similarity
from lightning_gradcam.metrics.numbers import aggregate, describe
from lightning_gradcam.record.differences import Difference, differences, differences_in_words
from lightning_gradcam.record.record import Record

By = Literal["epoch", "step", "fraction"]
_KINDS = {1: "signals", 2: "images", 3: "volumes"}  # by the number of their spatial axes
_MOST_NAMED = 8  # samples that a table names


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
        agreement: ``(t, n)``, how much of each map lies where that of the first run does, in [0, 1]; NaN where the
            two ask for different classes.
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
class Comparison:
    """Runs on the same samples, moment by moment; ``str()`` of it is a table.

    Attributes:
        by: What moments are counted in.
        moments: ``(t,)``: epochs from 0 and -1 before training, optimizer steps, or fractions of the run.
        runs: The first is the one that the others are compared with.
        used: ``(n,)`` bool, the samples that numbers are of.
        notes: What a reader should know: which samples are used, and in what the runs differ.
    """

    by: By
    moments: np.ndarray
    runs: list[Run]
    used: np.ndarray
    notes: list[str]

    def table(self) -> list[dict[str, float]]:
        """A row a moment. Every key but the first is ``<run>/<number>``.

        ``agreement`` with the first run, in [0, 1]; ``accuracy`` on the whole fixed batch; ``drift`` since the moment
        before; and the numbers of :class:`~lightning_gradcam.GradCAMCallback` by their names there, aggregated like
        them over :attr:`used`.
        """
        rows = []
        for t, moment in enumerate(self.moments.tolist()):
            row = {str(self.by): moment}
            for run in self.runs:
                known = run.samples["right"][t][run.samples["right"][t] >= 0]
                numbers = {"accuracy": float(known.mean()) if len(known) else float("nan")}
                values = {"drift": run.drift, **run.values}
                if run is not self.runs[0]:
                    values = {"agreement": run.agreement, **values}
                numbers |= aggregate({key: value[t][self.used] for key, value in values.items()})
                row |= {f"{run.name}/{key}": value for key, value in numbers.items()}
            rows.append(row)
        return rows

    def most_different(self) -> list[tuple[int | str, float]]:
        """Each used sample's id and its agreement at the last moment, the smallest over the runs; least first."""
        if len(self.runs) == 1:
            return []
        ids = self.runs[0].record.about["ids"]
        least = np.nan_to_num(np.stack([run.agreement[-1] for run in self.runs[1:]]), nan=2).min(0)
        order = [i for i in least.argsort(kind="stable").tolist() if self.used[i] and least[i] <= 1]
        return [(ids[i], float(least[i])) for i in order]

    def differences(self) -> list[Difference]:
        """What the other runs have less or more than the first at the last moment, over :attr:`used`, by number."""
        first, found = self.runs[0], []
        for run in self.runs[1:]:
            sides = [
                {key: value[-1][self.used] for key, value in {"drift": one.drift, **one.values}.items()}
                for one in (first, run)
            ]
            found += differences((first.name, run.name), *sides)
        return found

    def _repr_html_(self) -> str:
        """The page, where a notebook ends a cell with it."""
        from lightning_gradcam.record.page import frame

        return frame(self)

    def __str__(self) -> str:
        rows = self.table()
        names = [run.name for run in self.runs]
        numbers = [key.rpartition("/")[2] for key in rows[0] if "/" in key]
        columns = [
            (number, name)
            for number in dict.fromkeys(["agreement", *numbers])
            for name in names
            if f"{name}/{number}" in rows[0]
        ]
        # A number's name stands over the first of its columns.
        heads = [number if i == 0 or columns[i - 1][0] != number else "" for i, (number, _) in enumerate(columns)]
        wide = [max(len(head), len(_shorten_name(name)), 6) + 2 for head, (_, name) in zip(heads, columns, strict=True)]

        def line(start: str, cells: Sequence[str]) -> str:
            return f"{start:8}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, wide, strict=True))

        lines = [line("", heads), line(self.by, [_shorten_name(name) for _, name in columns])]
        for row in rows:
            moment = row[self.by]
            start = f"{moment:.2f}" if self.by == "fraction" else "start" if moment < 0 else f"{moment:.0f}"
            lines.append(line(start, [_format_number(row[f"{name}/{number}"]) for number, name in columns]))
        differ = ", ".join(
            f"{sample_name(sample)} {least:.2f}" for sample, least in self.most_different()[:_MOST_NAMED]
        )
        lines += ["", *self.notes]
        if differ:
            lines.append(f"The runs agree least at the last moment on {differ}.")
        if apart := differences_in_words(self.differences()):
            lines += ["", "At the last moment:", *apart]
        return "\n".join(lines)


def _format_number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}" if abs(value) < 1000 else f"{value:.2g}"


def _shorten_name(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def compare(
    *runs: Record | str | Path,
    by: By = "epoch",
    samples: Literal["right", "all"] = "right",
    layer: str | None = None,
    force: bool = False,
) -> Comparison:
    """Set runs side by side: where a weak and a strong model look, on the same samples, epoch by epoch.

    Maps on unlike grids are averaged, their positive part alone, down to the coarser one to see how they agree; all
    else is measured on each run's own grid.

    Args:
        runs: Records or their folders, such as ``weak`` and ``strong``; the others are compared with the first.
        by: Align by ``"epoch"``; by ``"step"``, the number of optimizer steps; or by ``"fraction"`` of each run, where
            runs have unlike lengths.
        samples: ``"right"``: those that all runs classify rightly at the last moment, as in the paper's study (arXiv
            1610.02391, section 5.2); ``"all"``.
        layer: The prefix of the keys of the layer to compare; ``None``: the first that all runs have, or of runs of
            one layer each that one.
        force: Go on where the fixed batches are not the same samples, as long as they are as many.

    Raises:
        FileNotFoundError: If there is no record.
        ValueError: If the runs cannot be compared; the message says why and what to do.
    """
    if not runs:
        raise ValueError("`compare` needs at least one run, got none")
    if by not in ("epoch", "step", "fraction"):
        raise ValueError(f'`by` must be "epoch", "step" or "fraction", got {by!r}')
    if samples not in ("right", "all"):
        raise ValueError(f'`samples` must be "right" or "all", got {samples!r}')
    records = [run if isinstance(run, Record) else Record.open(run) for run in runs]
    names = _distinct_names(records)
    notes = [
        note
        for name, record in zip(names[1:], records[1:], strict=True)
        for note in _differences((names[0], records[0]), (name, record), force)
    ]
    layers = _compared_layers(records, names, layer)
    at, moments = _aligned(records, names, by)
    used = _used_samples(records, at, samples, notes)
    found: list[Run] = []
    for name, record, prefix, which in zip(names, records, layers, at, strict=True):
        run = _run(name, record, prefix, which, found[0] if found else None)
        found.append(run)
        grids = [f"{one.name} {'x'.join(map(str, one.maps.shape[2:]))}" for one in (found[0], run)]
        if run.maps.shape[2:] != found[0].maps.shape[2:]:
            notes.append(f"The grids differ, {grids[0]} and {grids[1]}: agreement is measured on the coarser of each.")
    return Comparison(by, moments, found, used, notes)


@np.errstate(all="ignore")  # a map that is not finite has NaN for numbers, as of tensors
def _run(name: str, record: Record, prefix: str, at: np.ndarray, first: Run | None) -> Run:
    """A run at these of its observations, measured against the first run; ``None``: this is the first."""
    maps, samples = record.maps[prefix][at], record.samples[at]
    moments, n = maps.shape[:2]
    regions = {key: region_masks(value, record.size) for key, value in record.regions.items()}
    additive = f"{prefix}/strength" in record.numbers[-1]
    rows, firsts = (one.reshape(-1, *one.shape[2:]) for one in (maps, first.maps if first else maps))
    drift = np.full((moments, n), np.nan, np.float32)
    drift[1:] = 1 - similarity(rows[n:], rows[:-n]).reshape(moments - 1, n)
    # Of another class than before, or than in the other run, a map answers another question.
    classes, others = (one["asked"] for one in (samples, first.samples if first else samples))
    other_class = (classes != others) & (classes >= 0) & (others >= 0)
    drift[1:][classes[1:] != classes[:-1]] = np.nan
    values = {key: value.reshape(moments, n) for key, value in describe(rows, additive, regions).items()}
    del values["empty_fraction"]
    return Run(
        name,
        record,
        prefix,
        at,
        maps,
        samples,
        drift,
        np.where(other_class, np.nan, agreement(rows, firsts).reshape(moments, n)),
        values,
    )


def sample_mismatch(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """In what the fixed batches of two runs are not the same samples; empty where they are.

    Args:
        one: What is known of a run, with ``fingerprint``, ``ids`` and ``labels``, see :attr:`Record.about`.
        two: The same of another.
    """
    axes = [len(about.get("size", ())) for about in (one, two)]  # unknown of records of images alone
    if all(axes) and axes[0] != axes[1]:
        return f"their images have {axes[0]} and {axes[1]} axes"
    if one["fingerprint"]["identity"] == two["fingerprint"]["identity"]:
        return ""
    lengths = [about["fingerprint"].get("length") for about in (one, two)]
    if lengths[0] != lengths[1]:
        return f"the datasets hold {lengths[0]} and {lengths[1]}"
    if one["ids"] != two["ids"]:
        return f"these are {_listed(one['ids'])} and {_listed(two['ids'])}"
    pairs = zip(one["ids"], one["labels"] or [], two["labels"] or [], strict=False)
    where = next(
        (f"{sample_name(name)} has the label {first} and {second}" for name, first, second in pairs if first != second),
        "",
    )
    return where or "only one of them has labels"


def _listed(values: Sequence[Any] | None) -> str:
    if values is None:
        return "none"
    return ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")


def _differences(one: tuple[str, Record], two: tuple[str, Record], force: bool) -> list[str]:
    """In what samples, pixels and settings of two runs differ; a ``ValueError`` where they cannot be compared."""
    (name, record), (other_name, other) = one, two
    notes = []
    if _axes(record) != _axes(other):
        raise ValueError(
            f"{name} looks at {_images_in_words(record)}, {other_name} at {_images_in_words(other)}; "
            "compare runs on images with the same axes"
        )
    mismatch = sample_mismatch(record.about, other.about)
    if mismatch:
        note = f"{name} and {other_name} do not look at the same samples: {mismatch}"
        if not force:
            raise ValueError(
                f"{note}; compare runs with the same validation data and `samples`, or go on with `force` (--force)"
            )
        notes.append(f"{note}.")
    counts = [len(one.about["ids"]) for one in (record, other)]
    if counts[0] != counts[1]:
        raise ValueError(f"{name} has {counts[0]} maps a moment, {other_name} {counts[1]}")
    if record.about["fingerprint"].get("pixels") != other.about["fingerprint"].get("pixels"):
        notes.append(f"The pixels of {name} and {other_name} differ: another resolution, precision or transform.")
    settings, others = record.about["settings"], other.about["settings"]
    for key in dict.fromkeys([*settings, *others]):
        if settings.get(key) != others.get(key):
            here, there = (_in_words(value.get(key)) for value in (settings, others))
            notes.append(f"{key}: {here} in {name}, {there} in {other_name}.")
    return notes


def _axes(record: Record) -> tuple[int, int]:
    """How many axes images have, and across which of them volumes and clips are cut."""
    return len(record.size), record.about["time"] or 0


def _images_in_words(record: Record) -> str:
    time = record.about["time"]
    kind = _KINDS[len(record.size)] if time is None else f"clips with frames along axis {time}"
    return f"{kind} of {in_words(record.size)} pixels"


def _in_words(setting: Any) -> str:
    return ", ".join(map(str, setting.values())) if isinstance(setting, Mapping) else str(setting)


def _distinct_names(records: Sequence[Record]) -> list[str]:
    """What the runs are called; with a number behind it where a name has come before."""
    names: list[str] = []
    for record in records:
        name, number = record.name, 1
        while name in names:
            number += 1
            name = f"{record.name} ({number})"
        names.append(name)
    return names


def _compared_layers(records: Sequence[Record], names: Sequence[str], layer: str | None) -> list[str]:
    """The prefix of the layer to compare in each run."""
    if layer is None and all(len(record.maps) == 1 for record in records):
        return [next(iter(record.maps)) for record in records]
    common = [prefix for prefix in records[0].maps if all(prefix in record.maps for record in records)]
    if layer in common or (layer is None and common):
        return [layer or common[0]] * len(records)
    found = "; ".join(f"{name}: {', '.join(record.maps)}" for name, record in zip(names, records, strict=True))
    raise ValueError(f"the runs have no layer {'in common' if layer is None else repr(layer)}; they have {found}")


def _aligned(records: Sequence[Record], names: Sequence[str], by: By) -> tuple[list[np.ndarray], np.ndarray]:
    """Which observations of each run to compare, ``(t,)`` each, and the moments ``(t,)``."""
    if by != "epoch" and not all(record.steps[-1] for record in records):
        raise ValueError(f'a run has counted no optimizer steps, so runs cannot be aligned by {by}; use "epoch"')
    if by == "fraction":
        shares = [record.steps / max(1, record.steps[-1]) for record in records]
        moments = min(shares, key=len)
        return [np.abs(share[None] - moments[:, None]).argmin(1) for share in shares], moments
    keys: list[dict[int, int]] = []
    for record in records:
        counted = record.epochs if by == "epoch" else record.steps
        keys.append({int(value): i for i, value in enumerate(counted)})  # the last observation of an epoch
    moments = sorted(set(keys[0]).intersection(*keys[1:]))
    if not moments:
        found = ", ".join(f"{name} has {_listed(sorted(key))}" for name, key in zip(names, keys, strict=True))
        raise ValueError(f'the runs have no {by} in common: {found}; align them by "fraction" (--by fraction)')
    return [np.array([key[moment] for moment in moments]) for key in keys], np.array(moments)


def _used_samples(records: Sequence[Record], at: Sequence[np.ndarray], samples: str, notes: list[str]) -> np.ndarray:
    """Which samples numbers are of, ``(n,)`` bool."""
    verdicts = np.stack([record.samples["right"][which[-1]] for record, which in zip(records, at, strict=True)])
    everything = np.ones(verdicts.shape[1], dtype=bool)
    if samples == "all":
        return everything
    if (verdicts < 0).any():
        notes.insert(0, "Not every run tells what is right, so numbers are of all samples.")
        return everything
    used = (verdicts == 1).all(0)
    runs = "the run classifies" if len(records) == 1 else "both runs classify" if len(records) == 2 else "all classify"
    if not used.any():
        notes.insert(0, f"There is no sample that {runs} rightly at the last moment, so numbers are of all samples.")
        return everything
    notes.insert(0, f"Numbers are of the {used.sum()} of {len(used)} samples that {runs} rightly at the last moment.")
    return used
