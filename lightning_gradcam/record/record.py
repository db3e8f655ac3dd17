"""What a run leaves on disk: written an observation at a time, and read at any time, also while the run goes on."""

from __future__ import annotations

import io
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradcam.attribution.arrays import as_float
from lightning_gradcam.attribution.regions import are_boxes
from lightning_gradcam.attribution.spatial import Size, averaged, in_words
from lightning_gradcam.record.files import write_whole

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 4
_READABLE = (2, 3, SCHEMA)  # schema 2 is of images alone; up to 3 all samples are pictured
_VOLUME_PHOTO = 64  # pixels that a photo of a volume has along an axis at most
_OBSERVATION_GLOB = "observation=*.npz"
_DAMAGE = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)  # what other content leads to
ABOUT, SAMPLES, _CLAIM = "record.json", "samples.npz", ".claim"

# What is kept of each sample at each observation; -1 where a class or a verdict is not known, else NaN.
_SAMPLE = np.dtype(
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
        observations = [_load(file) for file in sorted(folder.glob(_OBSERVATION_GLOB)) if file.is_file()]
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
        """The table as a pandas frame, where pandas is installed."""
        from pandas import DataFrame

        return DataFrame(self.table())


def _check_shapes(record: Record) -> None:
    """Refuse shapes and types that a reader of it would fail on."""
    n, size, d = len(record.about["ids"]), record.size, len(record.size)
    time, spacing, labels = (record.about[name] for name in ("time", "spacing", "labels"))
    if d not in (1, 2, 3) or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"`size` must be one to three whole numbers above 0, got {list(size)}")
    grids = {(*maps.shape[1:2], maps.ndim, maps.dtype) for maps in record.maps.values()}
    fits = {
        "pictured": record.pictured.ndim == 1 and all(0 <= one < n for one in record.pictured.tolist()),
        "photos": record.photos.dtype == np.uint8 and record.photos.shape == (len(record.pictured), *_photo_size(size)),
        "maps": grids == {(n, d + 2, np.dtype(np.float32))} and all(maps.size for maps in record.maps.values()),
        "samples": record.samples.dtype == _SAMPLE and record.samples.shape[1:] == (n,),
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


def _photo_size(size: Size) -> Size:
    """The size of the photos of images of this size."""
    return tuple(min(side, _VOLUME_PHOTO) for side in size) if len(size) == 3 else size


def _thinned(photos: np.ndarray) -> np.ndarray:
    """Photos ``(n, *size)`` as a record keeps them."""
    size = photos.shape[1:]
    if _photo_size(size) == size:
        return photos
    # One by one, since as float32 all of them may take a gigabyte.
    thin = [averaged(as_float(one[None]), _photo_size(size)) for one in photos]
    return np.concatenate(thin).round().astype(np.uint8)


def _compact(region: np.ndarray, size: Size) -> np.ndarray:
    """A region as a record keeps it: a mask of a volume that holds 0 and 1 alone takes a byte a pixel."""
    is_binary = len(size) == 3 and region.shape[1:] == size and bool(((region == 0) | (region == 1)).all())
    return region.astype(np.uint8) if is_binary else region


def _find_record(path: Path) -> Path:
    if (path / ABOUT).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"*/{ABOUT}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise FileNotFoundError(f"{str(path)!r} holds several records, name one: {', '.join(map(str, found))}")
    what = f"has no {ABOUT!r}" if path.is_dir() else "is no folder"
    raise FileNotFoundError(f"no record at {str(path)!r}, which {what}; give the folder `gradcam` of a run")


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


class Writer:
    """Writes a record. A reader finds whole files only.

    Attributes:
        folder: Where it writes.
        id: What tells the run from others, also when it is resumed.
        session: What tells a run from the same one resumed.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        photos: np.ndarray,
        regions: Mapping[str, np.ndarray],
        before: Mapping[str, Any] | None = None,
        at: tuple[int, int] = (0, 0),
    ) -> None:
        """Claim a folder: the given one, or with a number behind it where another run has left a record there.

        Args:
            folder: The folder.
            about: See :class:`Record`; the ``size`` is that of the photos; ``time``, ``spacing`` and ``pictured``,
                which is else all, may be left out.
            photos: Grey, ``(p, *spatial)``, uint8, at the images' size.
            regions: See :class:`Record`.
            before: What :meth:`state` gave of the record of the run that is resumed. It is gone on with where it lies
                in this folder and nobody else has gone on with it; else its observations are copied. What it had seen
                later is set aside.
            at: The epoch and the optimizer step at which it is resumed, for states without a number of observations.
        """
        self.id, self.session = before["id"] if before else uuid.uuid4().hex, uuid.uuid4().hex
        folder = folder.resolve()
        self.folder = next(
            place
            for number in count()
            if self._claim(place := folder.with_name(f"{folder.name}_{number}") if number else folder, before)
        )
        for file in self.folder.glob(_OBSERVATION_GLOB):
            if _is_later(file, before, at):
                endings = (f".superseded{number or ''}" for number in count())
                file.replace(next(name for end in endings if not (name := file.with_suffix(end)).exists()))
        if before and Path(before["folder"]) != self.folder and is_record(Path(before["folder"])):
            for file in Path(before["folder"]).glob(_OBSERVATION_GLOB):
                if not _is_later(file, before, at):
                    write_whole(self.folder / file.name, file.read_bytes())
        self._number = max(
            (int(_numbers_in_name(file)[0]) + 1 for file in self.folder.glob(_OBSERVATION_GLOB)), default=0
        )
        size = photos.shape[1:]
        arrays = {f"region.{name}": _compact(region, size) for name, region in regions.items()}
        # Masks of volumes are large, and mostly empty.
        _write(self.folder / SAMPLES, np.savez_compressed, photos=_thinned(photos), **arrays)
        started = datetime.now(timezone.utc).isoformat()
        own = {"schema": SCHEMA, "id": self.id, "session": self.session, "started": started}
        everything = list(range(len(about["ids"])))
        about = {**own, "size": size, "time": None, "spacing": None, "pictured": everything, **about}
        write_whole(self.folder / ABOUT, json.dumps(about, indent=1).encode())

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to know to go on with it."""
        return {"id": self.id, "session": self.session, "folder": str(self.folder), "observations": self._number}

    def _claim(self, place: Path, before: Mapping[str, Any] | None) -> bool:
        """Whether the folder is this run's now."""
        place.mkdir(parents=True, exist_ok=True)
        if not (place / ABOUT).exists():
            with suppress(FileExistsError):  # by a run that starts just now
                (place / _CLAIM).open("x").close()
                return True
        try:
            return before is not None and read_about(place).get("session") == before["session"]
        except (FileNotFoundError, ValueError):
            return False

    def write(
        self,
        epoch: int,
        step: int,
        maps: Mapping[str, np.ndarray],
        samples: np.ndarray,
        numbers: Mapping[str, float],
        again: bool = False,
    ) -> None:
        """Add an observation, see :class:`Record` for its parts; with ``again`` in place of the last one."""
        number = self._number - again
        finite = {key: value if np.isfinite(value) else None for key, value in numbers.items()}
        row = json.dumps({"epoch": epoch, "step": step, "numbers": finite}).encode()
        arrays = {f"maps.{prefix}": signed.astype(np.float32) for prefix, signed in maps.items()}
        name = f"observation={number:06d}-epoch={epoch}-step={step}.npz"
        _write(self.folder / name, np.savez, row=np.frombuffer(row, np.uint8), samples=samples, **arrays)
        self._number = number + 1


def _numbers_in_name(file: Path) -> list[str]:
    """The number of an observation, its epoch and its step, by the name of its file."""
    return re.findall(r"=(-?\d+)", file.stem)


def _is_later(file: Path, before: Mapping[str, Any] | None, at: tuple[int, int]) -> bool:
    number, epoch, step = map(int, _numbers_in_name(file))
    if before and "observations" in before:
        return number >= before["observations"]
    return epoch > at[0] or step > at[1]


def _write(file: Path, save: Callable[..., None], **arrays: Any) -> None:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    write_whole(file, buffer.getvalue())


def sample_rows(
    scores: np.ndarray,
    probabilities: np.ndarray | None,
    predicted: np.ndarray | None,
    right: np.ndarray | None,
    labels: np.ndarray | None,
    target_classes: np.ndarray | None = None,
) -> np.ndarray:
    """What a record keeps of each sample.

    Args:
        scores: ``(n,)``.
        probabilities: ``(n, classes)``, or ``None`` where the model is no classifier.
        predicted: The predicted classes ``(n,)``.
        right: ``(n,)``.
        labels: Class indices ``(n,)`` or ``(n, 1)``; others have no probability.
        target_classes: The classes ``(n,)`` that the scores are of.

    Returns:
        ``(n,)`` with the fields of :attr:`Record.samples`.
    """
    n = len(scores)
    rows = np.zeros(n, _SAMPLE)
    rows["score"] = scores
    rows["asked"] = -1 if target_classes is None else target_classes
    rows["predicted"] = rows["right"] = -1
    rows["confidence"] = rows["of_label"] = np.nan
    if probabilities is not None and predicted is not None:
        every = np.arange(n)
        rows["predicted"], rows["confidence"] = predicted, probabilities[every, predicted]
        if right is not None:
            rows["right"] = right
        if labels is not None and labels.size == n:
            classes = labels.reshape(n).astype(np.int64)
            known = (classes >= 0) & (classes < probabilities.shape[1]) & (classes == labels.reshape(n))
            rows["of_label"] = np.where(known, probabilities[every, np.where(known, classes, 0)], np.nan)
    return rows
