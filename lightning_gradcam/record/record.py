"""What a run leaves on disk: written an observation at a time, and read at any time, also while the run goes on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradcam.attribution.regions import are_boxes
from lightning_gradcam.attribution.spatial import Size, in_words

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 4
_READABLE = (2, 3, SCHEMA)  # schema 2 is of images alone; up to 3 all samples are pictured
_VOLUME_PHOTO = 64  # pixels that a photo of a volume has along an axis at most
OBSERVATION_GLOB = "observation=*.npz"
_DAMAGE = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)  # what other content leads to
ABOUT, SAMPLES = "record.json", "samples.npz"

# What is kept of each sample at each observation; -1 where a class or a verdict is not known, else NaN.
SAMPLE = np.dtype(
    [
        ("score", "<f4"),
        ("asked", "<i4"),
        ("predicted", "<i4"),
        ("confidence", "<f4"),
        ("of_label", "<f4"),
        ("right", "<i1"),
    ]
)


@dataclass(frozen=True, eq=False)
class Record:
    """A run's observations; ``t`` of them, of ``n`` samples.

    Attributes:
        path: The folder that it was read from.
        about: What is the same for all observations: ``name``, ``id`` and ``started`` of the run, ``settings``,
            ``fingerprint``, the samples' ``ids``, ``labels`` and ``groups``, ``class_names``, and ``signed``: whether
            the negative side of the maps is evidence against the target. Of the images their ``size``, such as
            ``[H, W]``; ``time``, which of these axes is time, and ``spacing``, one number an axis, or ``None``.
        pictured: ``(p,)``, the positions of the samples that are drawn.
        photos: ``(p, *spatial)``, uint8, grey, of these: at the images' size, of volumes and clips averaged down to at
            most 64 pixels along each axis.
        regions: By name, at the images' size: boxes ``(n, 2 d)`` in pixels, such as x0, y0, x1, y1, or several
            a sample, ``(n, m, 2 d)``, or masks ``(n, *size)``; see :class:`~lightning_gradcam.Batch`.
        epochs: ``(t,)``, counted from 0; -1 before training.
        steps: ``(t,)``, the optimizer steps that were done.
        maps: By the prefix of a layer's keys, signed maps ``(t, n, *grid)``, float32.
        samples: ``(t, n)`` with the fields ``score``, the target's, and ``asked``, the class that it is of;
            ``predicted``, a class; ``confidence``, its probability, and ``of_label`` that of the label; ``right``, 1 or
            0. -1 or NaN where there is none or it is not told.
        numbers: For each observation what was logged, by full key.
    """

    path: Path
    about: dict[str, Any]
    pictured: np.ndarray
    photos: np.ndarray
    regions: dict[str, np.ndarray]
    epochs: np.ndarray
    steps: np.ndarray
    maps: dict[str, np.ndarray]
    samples: np.ndarray
    numbers: list[dict[str, float]]

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.about["name"]

    @property
    def size(self) -> Size:
        """The images' length along each spatial axis, in pixels."""
        return tuple(self.about["size"])

    @classmethod
    def open(cls, path: str | Path) -> Record:
        """Read a record.

        Args:
            path: Its folder, or a folder that holds one such, as a run's does.

        Raises:
            FileNotFoundError: If there is no record.
            ValueError: If it is damaged or of another version; the message says which file and what to do.
        """
        folder = _find_record(Path(path))
        about = read_about(folder)
        kept = _load(folder / SAMPLES)
        observations = [_load(file) for file in sorted(folder.glob(OBSERVATION_GLOB)) if file.is_file()]
        if not observations:
            raise ValueError(f"the record in {str(folder)!r} holds no observation yet")
        try:
            rows = [json.loads(one["row"].tobytes()) for one in observations]
            record = cls(
                folder,
                {"size": list(kept["photos"].shape[1:]), "time": None, "spacing": None} | about,
                np.array(about.get("pictured", range(len(about["ids"]))), np.int64),
                kept["photos"],
                {name.removeprefix("region."): value for name, value in kept.items() if name.startswith("region.")},
                np.array([row["epoch"] for row in rows], np.int64),
                np.array([row["step"] for row in rows], np.int64),
                {
                    prefix: np.stack([one[f"maps.{prefix}"] for one in observations])
                    for prefix in about["settings"]["layers"]
                },
                np.stack([one["samples"] for one in observations]),
                [
                    {key: np.nan if value is None else float(value) for key, value in row["numbers"].items()}
                    for row in rows
                ],
            )
            _check_shapes(record)
        except _DAMAGE as error:
            raise ValueError(
                f"the record in {str(folder)!r} is damaged, its files do not fit each other: {error}"
            ) from error
        return record

    def _repr_html_(self) -> str:
        """The page of the run, where a notebook ends a cell with it."""
        from lightning_gradcam.record.compare import compare

        return compare(self)._repr_html_()

    def last(self) -> Record:
        """The record with its last observation alone."""
        end = slice(-1, None)
        return replace(
            self,
            epochs=self.epochs[end],
            steps=self.steps[end],
            maps={prefix: maps[end] for prefix, maps in self.maps.items()},
            samples=self.samples[end],
            numbers=self.numbers[end],
        )

    def table(self) -> list[dict[str, float]]:
        """What was logged: a row an observation, with ``epoch`` and ``step``."""
        rows = zip(self.epochs.tolist(), self.steps.tolist(), self.numbers, strict=True)
        return [{"epoch": epoch, "step": step, **numbers} for epoch, step, numbers in rows]

    def frame(self) -> DataFrame:
        """The table as a pandas frame.

        Raises:
            ImportError: If pandas is missing.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError(
                "`frame` gives a pandas frame, and pandas is not installed: pip install pandas; `table` gives the same "
                "rows as a list"
            ) from error
        return DataFrame(self.table())


def _check_shapes(record: Record) -> None:
    """Refuse shapes and types that a reader of it would fail on."""
    n, size, d = len(record.about["ids"]), record.size, len(record.size)
    time, spacing, labels = (record.about[name] for name in ("time", "spacing", "labels"))
    if d not in (1, 2, 3) or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"`size` must be one to three whole numbers above 0, got {list(size)}")
    grids = {(*maps.shape[1:2], maps.ndim, maps.dtype) for maps in record.maps.values()}
    fits = {
        "pictured": all(one in range(n) for one in record.about.get("pictured", ())),
        "photos": record.photos.dtype == np.uint8 and record.photos.shape == (len(record.pictured), *photo_size(size)),
        "maps": grids == {(n, d + 2, np.dtype(np.float32))} and all(maps.size for maps in record.maps.values()),
        "samples": record.samples.dtype == SAMPLE and record.samples.shape[1:] == (n,),
        "labels": labels is None or np.asarray(labels, float).shape[:1] == (n,),
        "regions": all(
            len(value) == n and (are_boxes(value, size) or value.shape[1:] == size) and value.dtype.kind in "buif"
            for value in record.regions.values()
        ),
        "groups": len(record.about.get("groups") or record.about["ids"]) == n,
        "time": time is None or (d == 3 and time in range(d)),
        "spacing": spacing is None or (len(spacing) == d and all(0 < side < math.inf for side in spacing)),
    }
    wrong = [name for name, right in fits.items() if not right]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of another form than {n} samples of {in_words(size)} pixels have")


def photo_size(size: Size) -> Size:
    """The size of the photos of images of this size."""
    return tuple(min(side, _VOLUME_PHOTO) for side in size) if len(size) == 3 else size


def _find_record(path: Path) -> Path:
    if (path / ABOUT).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"*/{ABOUT}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise FileNotFoundError(f"{str(path)!r} holds several records, name one: {', '.join(map(str, found))}")
    what = f"has no {ABOUT!r}" if path.is_dir() else "is no folder"
    raise FileNotFoundError(f"no record at {str(path)!r}, which {what}; give the folder of a run, or `gradcam` in it")


def read_about(folder: Path) -> dict[str, Any]:
    """What :attr:`Record.about` is, without the observations.

    Raises:
        OSError: If there is none.
        ValueError: If it is damaged or of another version.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        schema = about["schema"]
    except _DAMAGE as error:
        raise ValueError(f"{str(folder / ABOUT)!r} is damaged or of another program: {error!r}") from error
    if schema not in _READABLE:
        raise ValueError(
            f"{str(folder / ABOUT)!r} has schema {schema!r}, this version of lightning_gradcam reads "
            f"{', '.join(map(str, _READABLE[:-1]))} and {SCHEMA}; read it with the version that wrote it"
        )
    types = {"name": str, "id": str, "settings": dict, "fingerprint": dict, "ids": list}
    types |= {"labels": (list, type(None)), "class_names": (list, type(None))}
    if schema > 2:
        types |= {"size": list, "time": (int, type(None)), "spacing": (list, type(None))}
    if schema > 3:
        types |= {"pictured": list}
    wrong = [name for name, one in types.items() if name not in about or not isinstance(about[name], one)]
    wrong += [] if isinstance(about.get("settings", {}), dict) and "layers" in about.get("settings", {}) else ["layers"]
    if wrong:
        raise ValueError(f"{str(folder / ABOUT)!r} is damaged: {', '.join(wrong)} missing or of another kind")
    return about


def is_record(folder: Path) -> bool:
    """Whether a folder holds a record that this version reads."""
    try:
        return bool(read_about(folder))
    except (OSError, ValueError):
        return False


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError as error:
        raise ValueError(f"the record in {str(file.parent)!r} is damaged, it has no {file.name!r}") from error
    except Exception as error:  # the zip, its checksums, a header, or an array of objects
        raise ValueError(f"{str(file)!r} is damaged: {error}; take it away to read the rest") from error
