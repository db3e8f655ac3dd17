"""Writing a record: an observation at a time, so that a reader finds whole files only."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradcam.attribution.arrays import as_float
from lightning_gradcam.attribution.spatial import Size, averaged
from lightning_gradcam.record.files import write_whole
from lightning_gradcam.record.record import (
    ABOUT,
    OBSERVATION_GLOB,
    SAMPLE,
    SAMPLES,
    SCHEMA,
    is_record,
    photo_size,
    read_about,
)

_CLAIM = ".claim"


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
        self.id: str = before["id"] if before else uuid.uuid4().hex
        self.session: str = uuid.uuid4().hex
        folder = folder.resolve()
        self.folder: Path = next(
            place
            for number in count()
            if self._claim(place := folder.with_name(f"{folder.name}_{number}") if number else folder, before)
        )
        for file in self.folder.glob(OBSERVATION_GLOB):
            if _is_later(file, before, at):
                endings = (f".superseded{number or ''}" for number in count())
                file.replace(next(name for end in endings if not (name := file.with_suffix(end)).exists()))
        if before and Path(before["folder"]) != self.folder and is_record(Path(before["folder"])):
            for file in Path(before["folder"]).glob(OBSERVATION_GLOB):
                if not _is_later(file, before, at):
                    write_whole(self.folder / file.name, file.read_bytes())
        self._number = max(
            (int(_numbers_in_name(file)[0]) + 1 for file in self.folder.glob(OBSERVATION_GLOB)), default=0
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
    rows = np.zeros(n, SAMPLE)
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


def _thinned(photos: np.ndarray) -> np.ndarray:
    """Photos ``(n, *size)`` as a record keeps them."""
    size = photos.shape[1:]
    if photo_size(size) == size:
        return photos
    # One by one, since as float32 all of them may take a gigabyte.
    thin = [averaged(as_float(one[None]), photo_size(size)) for one in photos]
    return np.concatenate(thin).round().astype(np.uint8)


def _compact(region: np.ndarray, size: Size) -> np.ndarray:
    """A region as a record keeps it: a mask of a volume that holds 0 and 1 alone takes a byte a pixel."""
    is_binary = len(size) == 3 and region.shape[1:] == size and bool(((region == 0) | (region == 1)).all())
    return region.astype(np.uint8) if is_binary else region
