"""The run so far: the maps that drift is measured against, and the few that the filmstrip keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.prediction import Prediction
from lightning_gradcam.attribution.spatial import along_cells, cell_axes
from lightning_gradcam.metrics import drift as measures
from lightning_gradcam.metrics.numbers import aggregate, by_group, describe, worst_value
from lightning_gradcam.metrics.positional import how_often, positional_bias_chance
from lightning_gradcam.picture.filmstrip import COLUMNS, ROWS, Frame, frame_maps
from lightning_gradcam.run.reference import ReferenceRun
from lightning_gradcam.run.settings import Drift


@dataclass(frozen=True)
class Moment:
    """When an observation is made.

    Attributes:
        epoch: Counted from 0; -1 before training.
        complete: Whether the epoch's training is over.
    """

    epoch: int
    complete: bool


@dataclass
class Track:
    """What a run remembers of one layer. Its size does not grow with the number of observations.

    Attributes:
        reference: ``(n, *grid)``, NaN where a sample has no reference yet.
        reference_question: ``(n,)``, what the target asked of each sample then.
        previous: The maps of the observation before, or ``None``.
        previous_question: As above.
        peak: ``(n,)``, the largest value of each sample's maps in the run.
        frames: The first observation, every ``spacing``-th one, and the last.
        spacing: A power of two, so that there are at most twice :data:`COLUMNS` frames and one.
        count: The number of observations.
        calm: In how many observations in a row the drift has not exceeded the limit of the alert and the noise floor.
        epoch: That of the last observation.
    """

    reference: Tensor
    reference_question: Tensor
    previous: Tensor | None
    previous_question: Tensor
    peak: Tensor
    frames: list[Frame] = field(default_factory=list)
    spacing: int = 1
    count: int = 0
    calm: int = 0
    epoch: int | None = None

    @classmethod
    def start(cls, maps: Tensor) -> Track:
        """An empty track for maps of this shape."""
        n = len(maps)
        nothing = torch.full((n,), -1)
        return cls(torch.full_like(maps, torch.nan), nothing, None, nothing.clone(), torch.zeros(n))

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Track:
        """The inverse of ``asdict``, which a checkpoint holds."""
        return cls(**{**state, "frames": [Frame(**frame) for frame in state["frames"]]})

    def measure(self, maps: Tensor, question: Tensor) -> dict[str, Tensor]:
        """How far each sample has moved; NaN where the target now asks another question of it.

        Args:
            maps: ``(n, *grid)``.
            question: ``(n,)``, what the target asks of each sample.

        Returns:
            Values ``(n,)`` by key.
        """
        same = torch.where(question == self.reference_question, 0.0, torch.nan)
        values = {
            "drift_from_reference": 1 - measures.similarity(maps, self.reference) + same,
            "centroid_shift": measures.centroid_shift(maps, self.reference) + same,
            "topk_iou": measures.topk_iou(maps, self.reference) + same,
        }
        if self.previous is None:
            values["drift"] = torch.full((len(maps),), torch.nan)
        else:
            unchanged = torch.where(question == self.previous_question, 0.0, torch.nan)
            values["drift"] = 1 - measures.similarity(maps, self.previous) + unchanged
        return values

    def add(self, maps: Tensor, question: Tensor, frame: Frame, moment: Moment, reference: str | int) -> None:
        """Remember an observation after it was measured."""
        usable = measures.distribution(maps).isfinite().flatten(1).all(1)
        if reference == "first":
            new = usable & self.reference.isnan().flatten(1).all(1) & (moment.complete or moment.epoch > 0)
        else:
            new = usable & (moment.epoch == reference) & moment.complete
        self.reference = torch.where(along_cells(new, maps), maps, self.reference)
        self.reference_question = torch.where(new, question, self.reference_question)
        self.previous, self.previous_question, self.epoch = maps, question, moment.epoch
        self.peak = torch.maximum(self.peak, torch.where(usable, maps.relu().amax(cell_axes(maps)), 0))
        self._thin_frames(frame)

    def _thin_frames(self, frame: Frame) -> None:
        """Keep the frame as the last one; thin the others out evenly where they become too many.

        A frame that is dropped hands its drift on to the one that follows.
        """
        if self.frames and (self.count - 1) % self.spacing:
            frame.drift = torch.fmax(self.frames.pop().drift, frame.drift)
        self.frames.append(frame)
        self.count += 1
        if len(self.frames) > 2 * COLUMNS:
            self.spacing *= 2
            kept: list[Frame] = []
            for index, one in enumerate(self.frames):
                if index % 2 and one is not frame:
                    following = self.frames[index + 1]
                    following.drift = torch.fmax(one.drift, following.drift)
                else:
                    kept.append(one)
            self.frames = kept


def _questions(target_classes: Tensor | None, n: int) -> Tensor:
    """What is asked of each sample, ``(n,)``, as numbers that are the same for the same question."""
    return torch.zeros(n, dtype=torch.long) if target_classes is None else target_classes


def _same_maps(maps: Tensor, others: Tensor) -> bool:
    """Whether each sample's maps are equal to a millionth of their largest value; not so where all are empty."""
    largest = maps.abs().amax(cell_axes(maps))
    return bool(((maps - others).abs().amax(cell_axes(maps)) <= 1e-6 * largest).all() and largest.any())


@dataclass(frozen=True)
class Measurement:
    """What one observation says.

    Attributes:
        numbers: Every number by its full key; NaN where there is none.
        drift: By the prefix of a layer, the drift ``(n,)`` of each sample since the observation before.
        drift_from_reference: The same from the reference.
        alerts: By the prefix of a layer, the positions in the batch of the samples that an alert names.
        places: By the prefix of a layer, in what share of the maps each cell is among the strongest tenth, ``(*grid)``.
    """

    numbers: dict[str, float]
    drift: dict[str, Tensor]
    drift_from_reference: dict[str, Tensor]
    alerts: dict[str, list[int]]
    places: dict[str, Tensor]


@dataclass(eq=False)
class History:
    """All that a run remembers of its observations, for every layer.

    Attributes:
        prefix: Of the keys that do not belong to a layer.
        settings: What drift is measured against.
        additive: Whether a map sums to evidence in the score's unit.
        reference_run: The last observation of another run, or ``None``.
        tracks: The track of each layer by the prefix of its keys.
        classes: The predicted classes ``(n,)`` of the observation before.
        monitored: By full key the last finite number of the run, or the worst one that there can be.
    """

    prefix: str
    settings: Drift
    additive: bool
    reference_run: ReferenceRun | None = None
    tracks: dict[str, Track] = field(default_factory=dict)
    classes: Tensor | None = None
    monitored: dict[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of observations so far."""
        return max((track.count for track in self.tracks.values()), default=0)

    @property
    def last_epoch(self) -> int | None:
        """The epoch of the last observation; ``None`` before there is one."""
        return max((track.epoch for track in self.tracks.values() if track.epoch is not None), default=None)

    def peak(self, prefix: str) -> Tensor | None:
        """The largest value ``(n,)`` of each sample's maps of a layer so far; ``None`` before there is one."""
        track = self.tracks.get(prefix)
        return track.peak if track else None

    def measure(
        self,
        maps: Mapping[str, Tensor],
        shifted: Mapping[str, Tensor],
        prediction: Prediction | None,
        regions: Mapping[str, Tensor],
        groups: Sequence[str] = (),
        target_classes: Tensor | None = None,
        counted: Sequence[int] | None = None,
        samples: Sequence[int] | None = None,
    ) -> Measurement:
        """Measure an observation against the run so far, and change nothing.

        Args:
            maps: Signed maps ``(n, *grid)`` by the prefix of the layer's keys.
            shifted: The same with the images shifted by one pixel; may be empty. Where they are the same, there is no
                noise floor: the shift did not reach the model.
            prediction: What the model predicts, if it is a classifier.
            regions: Masks ``(n, *size)`` by name.
            groups: The name of each sample's group; may be empty.
            target_classes: ``(n,)``, the class that each map is of; ``None`` where it is always the same question.
            counted: The positions of the samples that numbers are taken over; ``None``: all.
            samples: Which sample each map is of, ``(n,)``; ``None``: each of another one.
        """
        samples = range(len(next(iter(maps.values())))) if samples is None else samples
        parts = by_group(groups, len(next(iter(maps.values()))), counted)
        measured = Measurement({}, {}, {}, {}, {})
        for prefix, signed in maps.items():
            track = self._track(prefix, signed)
            values = describe(signed, self.additive, regions)
            values |= track.measure(signed, _questions(target_classes, len(signed)))
            if self.reference_run is not None:
                self.reference_run.check_rows(len(signed))
                difference = self.reference_run.difference(prefix, signed, target_classes)
                values[f"difference_from_{self.reference_run.name}"] = difference
            if prefix in shifted and not _same_maps(signed, shifted[prefix]):
                values["drift_floor"] = 1 - measures.similarity(signed, shifted[prefix])
            measured.drift[prefix] = values["drift"]
            measured.drift_from_reference[prefix] = values["drift_from_reference"]
            for suffix, members in parts.items():
                chosen = {key: value[members] for key, value in values.items()}
                chosen["drift_chance"] = measures.chance(signed[members])
                of = [samples[i] for i in members]
                places = how_often(signed[members], of)
                found = aggregate(chosen) | {
                    "positional_bias": float(places.max()),
                    "positional_bias_chance": positional_bias_chance(signed[members], of),
                }
                measured.numbers.update({f"{prefix}/{key}{suffix}": one for key, one in found.items()})
                measured.places.setdefault(prefix, places)  # of all, which come first
            limit = self._limit(measured.numbers, prefix)
            if track.calm >= 2 and measured.numbers[f"{prefix}/drift"] > limit:
                measured.alerts[prefix] = (values["drift"] > limit).nonzero()[:, 0].tolist()
        if prediction is not None:
            for suffix, members in parts.items():
                flips = torch.nan
                if self.classes is not None:
                    flips = (self.classes != prediction.classes)[members].float().mean().item()
                measured.numbers[f"{self.prefix}/prediction_flips{suffix}"] = flips
        return measured

    def add(
        self,
        measured: Measurement,
        maps: Mapping[str, Tensor],
        prediction: Prediction | None,
        moment: Moment,
        target_classes: Tensor | None = None,
        filmed: slice | list[int] = slice(ROWS),
    ) -> None:
        """Remember an observation that :meth:`measure` has measured; the filmstrip keeps the maps of some rows."""
        n = len(next(iter(maps.values())))
        questions = _questions(target_classes, n)
        unknown = torch.full((n,), -1)
        classes = unknown if prediction is None else prediction.classes
        right = unknown if prediction is None or prediction.right is None else prediction.right.int()
        if target_classes is not None:  # the filmstrip says what each map is of; whether right, where it is predicted
            right = torch.where(target_classes == classes, right, -1)
            classes = target_classes
        for prefix, signed in maps.items():
            track = self.tracks[prefix] = self._track(prefix, signed)
            of_rows = (values[filmed].clone() for values in (classes, right, measured.drift[prefix]))
            frame = Frame(moment.epoch, frame_maps(signed[filmed]), *of_rows)
            track.add(signed, questions, frame, moment, self.settings.reference)
            median = measured.numbers[f"{prefix}/drift"]
            if not math.isnan(median):
                track.calm = track.calm + 1 if median <= self._limit(measured.numbers, prefix) else 0
        self.classes = None if prediction is None else prediction.classes
        for key, value in measured.numbers.items():
            self.monitored.setdefault(key, worst_value(key.split("/")[1]))
            if math.isfinite(value) and moment.epoch >= 0:
                self.monitored[key] = value

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        tracks = {prefix: asdict(track) for prefix, track in self.tracks.items()}
        return {"tracks": tracks, "classes": self.classes, "monitored": dict(self.monitored)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.tracks = {prefix: Track.restored(track) for prefix, track in state["tracks"].items()}
        self.classes, self.monitored = state["classes"], dict(state["monitored"])

    def _track(self, prefix: str, maps: Tensor) -> Track:
        track = self.tracks.get(prefix)
        return track if track is not None and track.reference.shape == maps.shape else Track.start(maps)

    def _limit(self, numbers: Mapping[str, float], prefix: str) -> float:
        """What drift has to exceed for an alert: the limit that was set and, where it was measured, the noise floor."""
        limit, floor = self.settings.alert_above, numbers.get(f"{prefix}/drift_floor", torch.nan)
        return math.inf if limit is None else limit if math.isnan(floor) else max(limit, floor)
