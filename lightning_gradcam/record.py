"""What a run leaves on disk: written an observation at a time, and read at any time, also while the run goes on."""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1
ABOUT, SAMPLES = "record.json", "samples.npz"

# What is kept of each sample at each observation; -1 where a class or a verdict is not known, else NaN.
_SAMPLE = np.dtype(
    [("score", "<f4"), ("predicted", "<i4"), ("confidence", "<f4"), ("of_label", "<f4"), ("right", "<i1")]
)


@dataclass(frozen=True, eq=False)
class Record:
    """A run's observations; ``t`` of them, of ``n`` samples.

    Attributes:
        path: The folder that it was read from.
        about: What is the same for all observations: ``name``, ``id`` and ``started`` of the run, ``settings``,
            ``fingerprint``, the samples' ``ids`` and ``labels``, and ``class_names``.
        photos: ``(n, H, W)``, uint8, grey.
        regions: By name, boxes ``(n, 4)`` as x0, y0, x1, y1 in pixels, or masks ``(n, H, W)``.
        epochs: ``(t,)``, counted from 0; -1 before training.
        steps: ``(t,)``, the optimizer steps that were done.
        maps: By the prefix of a layer's keys, signed maps ``(t, n, h, w)``, float32.
        samples: ``(t, n)`` with the fields ``score``, the target's; ``predicted``, a class; ``confidence``, its
            probability, and ``of_label`` that of the label; ``right``, 1 or 0. -1 or NaN where there is none.
        numbers: For each observation what was logged, by full key.
    """

    path: Path
    about: dict[str, Any]
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

    @classmethod
    def open(cls, path: str | Path) -> Record:
        """Read a record.

        Args:
            path: Its folder, or a folder that holds one such, as a run's does.

        Raises:
            FileNotFoundError: If there is no record.
            ValueError: If it is damaged or of another version; the message says which file and what to do.
        """
        folder = _locate(Path(path))
        about = _about(folder)
        kept = _load(folder / SAMPLES)
        observations = [_load(file) for file in folder.glob("step=*.npz")]
        if not observations:
            raise ValueError(f"the record in {str(folder)!r} holds no observation yet")
        try:
            rows = [json.loads(one["row"].tobytes()) for one in observations]
            order = sorted(range(len(rows)), key=lambda i: (rows[i]["step"], rows[i]["epoch"]))
            return cls(
                folder,
                about,
                kept["photos"],
                {name.removeprefix("region."): value for name, value in kept.items() if name.startswith("region.")},
                np.array([rows[i]["epoch"] for i in order]),
                np.array([rows[i]["step"] for i in order]),
                {
                    prefix: np.stack([observations[i][f"maps.{prefix}"] for i in order])
                    for prefix in about["settings"]["layers"]
                },
                np.stack([observations[i]["samples"] for i in order]),
                [{key: np.nan if value is None else value for key, value in rows[i]["numbers"].items()} for i in order],
            )
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"the record in {str(folder)!r} is damaged, its files do not fit each other: {error}"
            ) from error

    def table(self) -> list[dict[str, float]]:
        """What was logged: a row an observation, with ``epoch`` and ``step``."""
        rows = zip(self.epochs.tolist(), self.steps.tolist(), self.numbers, strict=True)
        return [{"epoch": epoch, "step": step, **numbers} for epoch, step, numbers in rows]

    def frame(self) -> DataFrame:
        """The table as a pandas frame, where pandas is installed."""
        from pandas import DataFrame

        return DataFrame(self.table())


def _locate(path: Path) -> Path:
    if (path / ABOUT).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"*/{ABOUT}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise FileNotFoundError(f"{str(path)!r} holds several records, name one: {', '.join(map(str, found))}")
    what = f"has no {ABOUT!r}" if path.is_dir() else "is no folder"
    raise FileNotFoundError(f"no record at {str(path)!r}, which {what}; give the folder `gradcam` of a run")


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        schema = about["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder / ABOUT)!r} is damaged or of another program: {error!r}") from error
    if schema != SCHEMA:
        raise ValueError(
            f"{str(folder / ABOUT)!r} has schema {schema!r}, this version of lightning_gradcam reads {SCHEMA}; "
            "read it with the version that wrote it"
        )
    missing = {"name", "id", "settings", "fingerprint", "ids", "labels", "class_names"} - set(about)
    if missing:
        raise ValueError(f"{str(folder / ABOUT)!r} is damaged, it lacks {', '.join(sorted(missing))}")
    return about


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
        id: What tells the run from others.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        photos: np.ndarray,
        regions: Mapping[str, np.ndarray],
        before: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Claim a folder: the given one, or with a number behind it where another run has left a record there.

        Args:
            folder: The folder.
            about: See :class:`Record`.
            photos: See :class:`Record`.
            regions: See :class:`Record`.
            before: ``id`` and ``folder`` of the record of the run that is resumed, whose observations are kept.
            step: The optimizer step at which it is resumed; what it had seen later is set aside.
        """
        self.id = before["id"] if before else uuid.uuid4().hex
        about = {"schema": SCHEMA, "id": self.id, "started": datetime.now(timezone.utc).isoformat("s"), **about}
        self.folder = next(
            place
            for number in count()
            if self._claim(place := folder if not number else folder.with_name(f"{folder.name}_{number}"), about)
        )
        _write(self.folder / SAMPLES, photos=photos, **{f"region.{name}": value for name, value in regions.items()})
        for file in self.folder.glob("step=*.npz"):
            if _step(file) > step:
                file.replace(file.with_suffix(".superseded"))
        if before and Path(before["folder"]) != self.folder:
            for file in Path(before["folder"]).glob("step=*.npz"):
                if _step(file) <= step:
                    shutil.copyfile(file, self.folder / file.name)

    def _claim(self, place: Path, about: Mapping[str, Any]) -> bool:
        """Whether the folder is this run's now."""
        place.mkdir(parents=True, exist_ok=True)
        try:
            with (place / ABOUT).open("x", encoding="utf-8") as file:
                file.write(json.dumps(about, indent=1))
        except FileExistsError:
            try:
                return _about(place)["id"] == self.id
            except ValueError:
                return False
        return True

    def write(
        self, epoch: int, step: int, maps: Mapping[str, np.ndarray], samples: np.ndarray, numbers: Mapping[str, float]
    ) -> None:
        """Add an observation, see :class:`Record` for its parts; one of the same epoch and step is replaced."""
        finite = {key: value if np.isfinite(value) else None for key, value in numbers.items()}
        row = json.dumps({"epoch": epoch, "step": step, "numbers": finite}).encode()
        arrays = {f"maps.{prefix}": signed.astype(np.float32) for prefix, signed in maps.items()}
        _write(
            self.folder / f"step={step:08d}-epoch={epoch}.npz",
            row=np.frombuffer(row, np.uint8),
            samples=samples,
            **arrays,
        )


def _step(file: Path) -> int:
    return int(file.name.removeprefix("step=").split("-")[0])


def _write(file: Path, **arrays: Any) -> None:
    """Write a file whole or not at all."""
    part = file.with_suffix(".part")
    try:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        part.write_bytes(buffer.getvalue())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def sample_rows(
    scores: np.ndarray,
    probabilities: np.ndarray | None,
    predicted: np.ndarray | None,
    right: np.ndarray | None,
    labels: np.ndarray | None,
) -> np.ndarray:
    """What a record keeps of each sample.

    Args:
        scores: ``(n,)``.
        probabilities: ``(n, classes)``, or ``None`` where the model is no classifier.
        predicted: The predicted classes ``(n,)``.
        right: ``(n,)``.
        labels: Class indices ``(n,)`` or ``(n, 1)``; others have no probability.

    Returns:
        ``(n,)`` with the fields of :attr:`Record.samples`.
    """
    n = len(scores)
    rows = np.zeros(n, _SAMPLE)
    rows["score"] = scores
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
