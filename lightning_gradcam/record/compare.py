"""Runs side by side: the same samples at the same moments of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_gradcam.attribution.names import sample_name
from lightning_gradcam.attribution.regions import region_masks
from lightning_gradcam.attribution.spatial import in_words
from lightning_gradcam.metrics.drift import similarity
from lightning_gradcam.metrics.numbers import describe
from lightning_gradcam.metrics.positional import FEWEST_TO_TELL, stands_out
from lightning_gradcam.record.comparison import By, Comparison, Run, Side, map_agreement
from lightning_gradcam.record.record import Record

Opened = list[tuple[str, dict[str, Record]]]  # by side, by run
_KINDS = {1: "signals", 2: "images", 3: "volumes"}  # by the number of their spatial axes


def compare(
    *runs: Record | str | Path | Mapping[str, Sequence[Record | str | Path]],
    by: By = "epoch",
    samples: Literal["right", "all"] = "right",
    layer: str | None = None,
    force: bool = False,
) -> Comparison:
    """Set runs side by side: where a weak and a strong model look, on the same samples, epoch by epoch.

    Maps on unlike grids are averaged, their positive part alone, down to the coarser one to see how they agree; all
    else is measured on each run's own grid.

    Args:
        runs: Records or their folders, such as ``weak`` and ``strong``; the others are compared with the first. Or,
            alone, several runs a side by its name, such as ``{"weak": [run, run, run], "strong": [run, run, run]}``:
            seeds. The unit is then the run: a number is aggregated over a run's samples, and compared over runs.
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
    if by not in ("epoch", "step", "fraction"):
        raise ValueError(f'`by` must be "epoch", "step" or "fraction", got {by!r}')
    if samples not in ("right", "all"):
        raise ValueError(f'`samples` must be "right" or "all", got {samples!r}')
    sides = _opened_sides(runs)
    names = [name for _, of_runs in sides for name in of_runs]
    records = [record for _, of_runs in sides for record in of_runs.values()]
    notes = _notes(sides, force)
    layers = _compared_layers(records, names, layer)
    at, moments = _aligned(records, names, by)
    used = _used_samples(records, at, samples, notes)
    chosen = dict(zip(names, zip(layers, at, strict=True), strict=True))
    found: list[Side] = []
    for side, of_runs in sides:
        firsts = found[0].runs if found else [None]
        made = [
            _run(name, record, *chosen[name], firsts[place % len(firsts)])
            for place, (name, record) in enumerate(of_runs.items())
        ]
        found.append(Side(side, made))
    return Comparison(by, moments, found, used, notes + _grid_notes(found) + _place_notes(found))


@np.errstate(all="ignore")  # a map that is not finite has NaN for numbers, as of tensors
def _run(name: str, record: Record, prefix: str, at: np.ndarray, first: Run | None) -> Run:
    """A run at these of its observations, measured against one of the first side; ``None``: against itself."""
    maps, samples = record.maps[prefix][at], record.samples[at]
    moments, n = maps.shape[:2]
    regions = {key: region_masks(value, record.size) for key, value in record.regions.items()}
    additive = f"{prefix}/strength" in record.numbers[-1]
    rows, classes = maps.reshape(-1, *maps.shape[2:]), samples["asked"]
    drift = np.full((moments, n), np.nan, np.float32)
    drift[1:] = 1 - similarity(rows[n:], rows[:-n]).reshape(moments - 1, n)
    drift[1:][classes[1:] != classes[:-1]] = np.nan  # of another class a map answers another question
    values = {key: value.reshape(moments, n) for key, value in describe(rows, additive, regions).items()}
    del values["empty_fraction"]
    others, other_classes = (first.maps, first.samples["asked"]) if first else (maps, classes)
    agrees = map_agreement(maps, classes, others, other_classes)
    return Run(name, record, prefix, at, maps, samples, drift, agrees, values)


def _opened_sides(runs: Sequence[Any]) -> Opened:
    """The records by the names of sides and runs; no two runs share a name, and no two sides."""
    if not any(isinstance(run, Mapping) for run in runs):
        if not runs:
            raise ValueError("`compare` needs at least one run, got none")
        records = [_opened(run) for run in runs]
        names = _distinct_names([record.name for record in records])
        return [(name, {name: record}) for name, record in zip(names, records, strict=True)]
    if len(runs) > 1:
        raise ValueError(
            f"`compare` takes runs, or one mapping of sides, such as {{name: [run, run]}}; got {len(runs)} arguments, "
            "a mapping among them"
        )
    given = {str(side): [of_runs] if _is_run(of_runs) else list(of_runs) for side, of_runs in runs[0].items()}
    if not given or not all(given.values()):
        without = "".join(f"; {side!r} has none" for side, of_runs in given.items() if not of_runs)
        raise ValueError(f"`compare` needs at least one run a side, got {len(given)} sides{without}")
    if len(given) < len(runs[0]):
        raise ValueError(f"two sides of {list(runs[0])} have the same name in words; name each otherwise")
    wanted = [
        side if len(of_runs) == 1 else f"{side} {place}"
        for side, of_runs in given.items()
        for place, _ in enumerate(of_runs, 1)
    ]
    names = iter(_distinct_names(wanted))
    sides = [(side, {next(names): _opened(run) for run in of_runs}) for side, of_runs in given.items()]
    _refuse_runs_twice(sides)
    return sides


def _is_run(value: Any) -> bool:
    return isinstance(value, (Record, str, Path))


def _opened(run: Record | str | Path) -> Record:
    return run if isinstance(run, Record) else Record.open(run)


def _refuse_runs_twice(sides: Opened) -> None:
    """A run that counts twice would make chance look smaller than it is."""
    seen: dict[str, str] = {}
    for _, of_runs in sides:
        for name, record in of_runs.items():
            other = seen.setdefault(record.about["id"], name)
            if other != name:
                raise ValueError(f"{other} and {name} are the same run, {str(record.path)!r}; give each run once")


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


def _notes(sides: Opened, force: bool) -> list[str]:
    """In what the first run differs from the others; once for all runs of a side in which it is the same."""
    (name, record), notes = next(iter(sides[0][1].items())), []
    for _, of_runs in sides:
        found: dict[tuple[str, str], list[str]] = {}  # by what stands before and behind the other run's name
        for other_name, other in of_runs.items():
            if other is not record:
                for parts in _differences((name, record), (other_name, other), force):
                    found.setdefault(parts, []).append(other_name)
        notes += [f"{before}{_joined(names)}{behind}" for (before, behind), names in found.items()]
    return notes


def _grid_notes(sides: Sequence[Side]) -> list[str]:
    first, *others = (run for side in sides for run in side.runs)
    size, *sizes = ("x".join(map(str, run.maps.shape[2:])) for run in (first, *others))
    return [
        f"The grids differ, {first.name} {size} and {run.name} {other}: agreement is measured on the coarser of each."
        for run, other in zip(others, sizes, strict=True)
        if other != size
    ]


def _place_notes(sides: Sequence[Side]) -> list[str]:
    """Which runs look at one place at the last moment, as they have logged it of all their samples."""
    notes = []
    for run in (run for side in sides for run in side.runs):
        numbers, key = run.record.numbers[run.at[-1]], f"{run.layer}/positional_bias"
        share, chance = (numbers.get(f"{key}{end}", np.nan) for end in ("", "_chance"))
        if stands_out(share, chance) and len(set(run.record.about["ids"])) >= FEWEST_TO_TELL:
            notes.append(
                f"The maps of {run.name} lie at one place at the last moment: positional_bias {share:.2f}, by chance "
                f"{chance:.2f}. Objects that are always in the middle do this too."
            )
    return notes


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _differences(one: tuple[str, Record], two: tuple[str, Record], force: bool) -> list[tuple[str, str]]:
    """In what samples, pixels and settings of two runs differ; a ``ValueError`` where they cannot be compared.

    Each is a sentence in two parts, with the other run's name between them.
    """
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
        notes.append((f"{name} and ", f" do not look at the same samples: {mismatch}."))
    counts = [len(one.about["ids"]) for one in (record, other)]
    if counts[0] != counts[1]:
        raise ValueError(f"{name} has {counts[0]} maps a moment, {other_name} {counts[1]}")
    if record.about["fingerprint"].get("pixels") != other.about["fingerprint"].get("pixels"):
        notes.append((f"The pixels of {name} and ", " differ: other pictures, resolution, precision or transform."))
    settings, others = record.about["settings"], other.about["settings"]
    for key in dict.fromkeys([*settings, *others]):
        if settings.get(key) != others.get(key):
            here, there = (_in_words(value.get(key)) for value in (settings, others))
            notes.append((f"{key}: {here} in {name}, {there} in ", "."))
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


def _distinct_names(wanted: Sequence[str]) -> list[str]:
    """Names; with a number behind it where one has come before."""
    names: list[str] = []
    for name in wanted:
        distinct, number = name, 1
        while distinct in names:
            number += 1
            distinct = f"{name} ({number})"
        names.append(distinct)
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
