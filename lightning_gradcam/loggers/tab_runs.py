"""The runs of the tab in TensorBoard: where their records lie, which can be compared, and the page of some."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_gradcam.record.compare import compare, sample_mismatch
from lightning_gradcam.record.page import page
from lightning_gradcam.record.record import ABOUT, SAMPLES, Record, read_about

_MOST_PAGES = 8  # that are kept, of a megabyte or so each

Files = tuple[tuple[str, int, int], ...]  # name, when it was written in ns, bytes


@dataclass(frozen=True)
class TabRun:
    """A run with a record, or with what keeps it from being read.

    Attributes:
        name: That in TensorBoard, with the prefix of the keys where a run has several records; no two share one.
        folder: The record's.
        about: See :attr:`Record.about`.
        files: Of the record, by which it is seen to have grown.
        error: Why it cannot be read; empty where it can.
    """

    name: str
    folder: Path = field(default_factory=Path)
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Files = ()
    error: str = ""

    @property
    def observations(self) -> int:
        """How many there are."""
        return sum(name.endswith(".npz") and name != SAMPLES for name, _, _ in self.files)


def find_runs(places: Mapping[tuple[str, str], Any], logdir: str, logdir_spec: str) -> list[TabRun]:
    """Find the records, in the order in which the runs started.

    Args:
        places: By run and tag, in an array, what :func:`~lightning_gradcam.loggers.tensorboard.write_record` wrote.
        logdir: TensorBoard's argument, or nothing.
        logdir_spec: TensorBoard's other one.
    """
    runs: dict[str, TabRun] = {}
    tags = [run for run, _ in places]
    for (run, tag), place in sorted(places.items()):
        name = base = run if tags.count(run) == 1 else f"{run} ({tag.removesuffix('/record')})"
        number = 1
        while name in runs:
            number += 1
            name = f"{base} ({number})"
        try:
            runs[name] = _read_run(name, place, _run_folders(run, logdir, logdir_spec))
        except Exception as error:  # whatever a summary or a record may hold
            runs[name] = TabRun(name, error=f"{type(error).__name__}: {error}")
    return sorted(runs.values(), key=lambda run: str(run.about.get("started")))


def _run_folders(run: str, logdir: str, logdir_spec: str) -> list[Path]:
    """Where the event files of a run may lie, by how TensorBoard names runs."""
    if logdir:
        return [Path(logdir).expanduser() / run]
    folders = []
    for part in logdir_spec.split(","):
        name, colon, path = part.partition(":")
        if not colon or part.startswith("/") or os.path.splitdrive(part)[0]:
            folders.append(Path(part).expanduser() / run)
        elif run == name or run.startswith((f"{name}/", f"{name}{os.sep}")):
            folders.append(Path(path).expanduser() / run[len(name) + 1 :])
    return folders


def _read_run(name: str, place: Any, folders: Sequence[Path]) -> TabRun:
    way = json.loads(place.item())
    tried = [folder / way["relative"] for folder in folders if "relative" in way] + [Path(way["absolute"])]
    tried = [folder.resolve() for folder in tried]
    abouts = {folder: _about(folder) for folder in tried}
    folder = next((folder for folder, about in abouts.items() if about.get("id") == way["id"]), None)
    if folder is None:
        where = " or ".join(dict.fromkeys(map(repr, map(str, tried))))
        other = next((folder for folder in tried if (folder / ABOUT).exists()), None)
        if other is not None:
            read_about(other)  # says what is wrong with it
            raise FileNotFoundError(f"the record at {where} is that of another run; this one's was taken away")
        raise FileNotFoundError(f"there is no record at {where}; it was taken away, or lies on another machine")
    with os.scandir(folder) as entries:
        known = (ABOUT, SAMPLES)
        found = [entry for entry in entries if entry.name in known or _is_observation(entry)]
        stats = [(entry.name, entry.stat()) for entry in found]
    files = tuple(sorted((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats))
    run = TabRun(name, folder, abouts[folder], files)
    sample_mismatch(run.about, run.about)  # fails here where its fingerprint is damaged
    return run if run.observations else replace(run, error="it holds no observation yet")


def _about(folder: Path) -> dict[str, Any]:
    try:
        return read_about(folder)
    except (OSError, ValueError):
        return {}


def _is_observation(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("observation=") and entry.name.endswith(".npz") and entry.is_file()


class Pages:
    """Pages by what the records held when they were made, and which records could not be read."""

    def __init__(self) -> None:
        self._pages: dict[Any, str] = {}
        self._failures: dict[Path, tuple[Files, str]] = {}

    def page(self, runs: Sequence[TabRun]) -> str:
        """The page that compares runs.

        Raises:
            ValueError: If they cannot be read or compared; the message says why.
        """
        key = tuple((run.name, run.folder, run.files) for run in runs)
        if key not in self._pages:
            self._pages[key] = page(compare(*(self._open(run) for run in runs)))
            while len(self._pages) > _MOST_PAGES:
                del self._pages[next(iter(self._pages))]
        return self._pages[key]

    def failure(self, run: TabRun) -> str:
        """Why a run could not be read when that was last tried; empty where it has changed since."""
        files, error = self._failures.get(run.folder, ((), ""))
        return error if files == run.files else ""

    def _open(self, run: TabRun) -> Record:
        try:
            if run.error:
                raise ValueError(run.error)
            record = Record.open(run.folder)
        except Exception as error:
            self._failures[run.folder] = (run.files, f"{type(error).__name__}: {error}")
            raise ValueError(f"{run.name} cannot be read: {error}") from error
        return replace(record, about={**record.about, "name": run.name})


def describe_runs(runs: Sequence[TabRun], pages: Pages) -> list[dict[str, Any]]:
    """What the tab lists: a row a run.

    A row has the ``name``, the number of ``observations``, and the ``error`` of a run that cannot be read. Others have
    a ``group``, whose runs are on the same samples and
    layers: 0 is that of the run that started last. ``differs`` says in
    what its samples are not those of group 0. ``state`` changes with the record.
    """
    groups: list[TabRun] = []  # the run of each that started last
    rows: dict[str, dict[str, Any]] = {}
    for run in reversed(runs):
        row = {"name": run.name, "observations": run.observations, "error": run.error or pages.failure(run)}
        if not row["error"]:
            same = (i for i, other in enumerate(groups) if not _differs(other, run))
            row["group"] = next(same, len(groups))
            groups += [run] if row["group"] == len(groups) else []
            first, other = groups[0], groups[row["group"]]
            why = _differs(first, other)
            row["differs"] = f"Cannot be compared with {first.name}, on other {why}." if why else ""
            row["state"] = str(hash(run.files))
        rows[run.name] = row
    return [rows[run.name] for run in runs]


def _differs(one: TabRun, two: TabRun) -> str:
    """Why two runs cannot be compared: by their samples or their layers; empty where they can."""
    if why := sample_mismatch(one.about, two.about):
        return f"samples: {why}"
    layers = [list(run.about["settings"]["layers"]) for run in (one, two)]
    if len(layers[0]) == len(layers[1]) == 1 or set(layers[0]) & set(layers[1]):
        return ""
    return f"layers: these are {' and '.join(', '.join(names) for names in layers)}"
