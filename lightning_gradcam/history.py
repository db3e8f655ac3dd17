"""The run so far: the maps that drift is measured against, and the few that the filmstrip keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gradcam.metrics import drift as measures
from lightning_gradcam.metrics.evidence import empty, strength
from lightning_gradcam.metrics.localization import lift, mass
from lightning_gradcam.record import Record
from lightning_gradcam.targets import Prediction

ROWS = 8  # samples in a filmstrip: the first ones of the fixed batch, so that the rows never change
COLUMNS = 8  # observations in a filmstrip
_GRID = 28  # longer side of the maps that the filmstrip keeps


@dataclass(frozen=True)
class Drift:
    """What drift is measured against.

    Attributes:
        reference: ``"first"``: each sample's first map with a positive cell after a trained epoch; or the number of
            the epoch, counted from 0, whose maps serve. The untrained model is never the reference: everything is far
            from it.
        reference_run: The folder of another run's record, or of the run. Its last maps are the last column of the
            filmstrip, and ``difference_from_<its name>`` is logged: one less how far the maps agree with these, in
            [0, 1]. It must have looked at the same samples.
        noise_floor: Measure at every observation how far the maps move when the images are shifted by one pixel. It
            costs a second capture.
        alert_above: Warn when the median drift exceeds this and the noise floor, after two observations in a row in
            which it did not; in (0, 1). ``None``: never.

    Raises:
        ValueError: If a value is not as above.
    """

    reference: Literal["first"] | int = "first"
    reference_run: str | Path | None = None
    noise_floor: bool = True
    alert_above: float | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.reference, int) and not isinstance(self.reference, bool)
        if self.reference != "first" and (not whole or self.reference < 0):
            raise ValueError(f'`reference` must be "first" or an epoch of at least 0, got {self.reference!r}')
        if self.reference_run is not None and not isinstance(self.reference_run, (str, Path)):
            raise ValueError(f"`reference_run` must be a folder, got {self.reference_run!r}")
        number = isinstance(self.alert_above, (int, float))
        if self.alert_above is not None and not (number and 0 < self.alert_above < 1):
            raise ValueError(f"`alert_above` must lie between 0 and 1, got {self.alert_above!r}")


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
class Frame:
    """An observation that the filmstrip keeps: of its first :data:`ROWS` samples, ``r`` in number.

    Attributes:
        epoch: See :class:`Moment`.
        maps: ``(r, h, w)``, at most 28 cells a side.
        classes: The classes that were asked for, else predicted, ``(r,)``, -1 where there are none.
        right: Whether these are predicted and right, ``(r,)``: 1, 0, or -1 where that is not known.
        drift: ``(r,)``, the largest drift since the frame before.
    """

    epoch: int
    maps: Tensor
    classes: Tensor
    right: Tensor
    drift: Tensor


@dataclass
class Track:
    """What a run remembers of one layer. Its size does not grow with the number of observations.

    Attributes:
        reference: ``(n, h, w)``, NaN where a sample has no reference yet.
        reference_question: ``(n,)``, what the target asked of each sample then.
        previous: The maps of the observation before, or ``None``.
        previous_question: As above.
        peak: ``(n,)``, the largest value of each sample's maps in the run.
        frames: The first observation, every ``spacing``-th one, and the last.
        spacing: A power of two, so that there are at most twice :data:`COLUMNS` frames and one.
        count: The number of observations.
        calm: In how many observations in a row the drift has not exceeded the limit of the alert and the noise floor.
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

    @classmethod
    def start(cls, maps: Tensor) -> Track:
        """An empty track for maps of this shape."""
        n = len(maps)
        nothing = torch.full((n,), -1)
        return cls(torch.full_like(maps, torch.nan), nothing, None, nothing.clone(), torch.zeros(n))

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Track:
        """The inverse of :meth:`state`."""
        return cls(**{**state, "frames": [Frame(**frame) for frame in state["frames"]]})

    def measure(self, maps: Tensor, question: Tensor) -> dict[str, Tensor]:
        """How far each sample has moved; NaN where the target now asks another question of it.

        Args:
            maps: ``(n, h, w)``.
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
        usable = measures.distribution(maps).isfinite().all(2).all(1)
        if reference == "first":
            new = usable & self.reference.isnan().all(2).all(1) & (moment.complete or moment.epoch > 0)
        else:
            new = usable & (moment.epoch == reference) & moment.complete
        self.reference = torch.where(new[:, None, None], maps, self.reference)
        self.reference_question = torch.where(new, question, self.reference_question)
        self.previous, self.previous_question = maps, question
        self.peak = torch.maximum(self.peak, torch.where(usable, maps.relu().amax((1, 2)), 0))
        self._keep(frame)

    def _keep(self, frame: Frame) -> None:
        """Keep the frame as the last one; thin the others out evenly where they become too many."""
        if self.frames and (self.count - 1) % self.spacing:
            _merge(self.frames.pop(), frame)
        self.frames.append(frame)
        self.count += 1
        if len(self.frames) > 2 * COLUMNS:
            self.spacing *= 2
            kept: list[Frame] = []
            for index, one in enumerate(self.frames):
                if index % 2 and one is not frame:
                    _merge(one, self.frames[index + 1])
                else:
                    kept.append(one)
            self.frames = kept


def _merge(dropped: Frame, following: Frame) -> None:
    """Hand the drift of a frame that is dropped on to the one that follows."""
    following.drift = torch.fmax(dropped.drift, following.drift)


def kept_maps(maps: Tensor) -> Tensor:
    """The maps ``(r, h, w)`` of the filmstrip's samples, averaged down to at most 28 cells a side."""
    maps = maps[:ROWS]
    factor = _GRID / max(maps.shape[1:])
    if factor >= 1:
        return maps.clone()  # a checkpoint would hold the whole of what a part is a view of
    h, w = (max(1, round(side * factor)) for side in maps.shape[1:])
    return torch.nn.functional.adaptive_avg_pool2d(maps[:, None], (h, w))[:, 0]


def by_group(groups: Sequence[str], n: int) -> dict[str, Tensor]:
    """The positions of all ``n`` samples and of those of each group, by what stands behind a key."""
    parts = {"": torch.arange(n)}
    for name in dict.fromkeys(groups):
        parts[f"/{name}"] = torch.tensor([i for i, group in enumerate(groups) if group == name])
    return parts


def _question(asked: Tensor | None, n: int) -> Tensor:
    """What is asked of each sample, ``(n,)``, as numbers that are the same for the same question."""
    return torch.zeros(n, dtype=torch.long) if asked is None else asked


def describe(maps: Tensor, additive: bool, regions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What can be said of maps without another observation.

    Args:
        maps: ``(n, h, w)``.
        additive: Whether a map sums to evidence in the score's unit.
        regions: Masks ``(n, H, W)`` by name.

    Returns:
        Values ``(n,)`` by key.
    """
    values = {"concentration": measures.concentration(maps), "empty_fraction": empty(maps).float()}
    if additive:
        values["strength"] = strength(maps)
    for name, masks in regions.items():
        values[f"mass_{name}"] = mass(maps, masks)
        values[f"lift_{name}"] = lift(maps, masks)
    return values


def aggregate(values: Mapping[str, Tensor]) -> dict[str, float]:
    """One number a key: the mean over samples of shares and lifts, the median of all else; NaN values are left out."""
    numbers = {}
    for key, value in values.items():
        value = value[~value.isnan()]
        shares = key.startswith(("mass_", "lift_")) or key == "empty_fraction"
        if not len(value):
            numbers[key] = torch.nan
        else:
            numbers[key] = (value.mean() if shares else value.quantile(0.5)).item()
    return numbers


def worst(key: str) -> float:
    """What a monitor gets for a key, without its prefix, before there is a value."""
    if key == "strength":
        return torch.finfo(torch.float32).min
    smallest = ("topk_iou", "concentration", "seconds", "max_box_acc_v2", "pxap")
    return 0.0 if key.startswith(("mass_", "lift_")) or key in smallest else 1.0


@dataclass(frozen=True)
class Reading:
    """What one observation says.

    Attributes:
        numbers: Every number by its full key; NaN where there is none.
        drift: By the prefix of a layer, the drift ``(n,)`` of each sample since the observation before.
        moved: The same from the reference.
        alarms: By the prefix of a layer, the positions in the batch of the samples that an alert names.
    """

    numbers: dict[str, float]
    drift: dict[str, Tensor]
    moved: dict[str, Tensor]
    alarms: dict[str, list[int]]


@dataclass(frozen=True)
class Beside:
    """What another run saw last.

    Attributes:
        name: What that run is called, as a part of a key.
        maps: Signed maps ``(n, h, w)`` by the prefix of our layer's keys.
        asked: ``(n,)``, the class that each map is of, -1 where that is not told.
        classes: See :class:`Frame`, of all samples.
        right: As above.
    """

    name: str
    maps: dict[str, Tensor]
    asked: Tensor
    classes: Tensor
    right: Tensor

    @classmethod
    def of(cls, record: Record, prefixes: Sequence[str]) -> Beside:
        """Read a record for our layers with these prefixes, or for our only layer its only one.

        Raises:
            ValueError: If it has not all of these layers.
        """
        layers = list(record.maps) if len(record.maps) == len(prefixes) == 1 else list(prefixes)
        if not set(layers) <= record.maps.keys():
            raise ValueError(
                f"the reference run {record.name} has the layers {', '.join(record.maps)}, and this run has "
                f"{', '.join(prefixes)}; give both the same `target_layer`"
            )
        return cls(
            re.sub(r"[^\w.-]", "_", record.name, flags=re.ASCII),
            {prefix: torch.from_numpy(record.maps[name][-1]) for prefix, name in zip(prefixes, layers, strict=True)},
            *(torch.from_numpy(record.samples[field][-1].astype(int)) for field in ("asked", "predicted", "right")),
        )

    def frame(self, prefix: str) -> Frame:
        """Its maps of a layer as a column of the filmstrip."""
        maps = kept_maps(self.maps[prefix])
        return Frame(-1, maps, self.classes[:ROWS], self.right[:ROWS], torch.full((len(maps),), torch.nan))


class History:
    """All that a run remembers of its observations, for every layer.

    Attributes:
        tracks: The track of each layer by the prefix of its keys.
        beside: The last observation of another run, or ``None``.
        monitored: By full key the last finite number of the run, or the worst one that there can be.
    """

    def __init__(self, prefix: str, settings: Drift, additive: bool) -> None:
        """Start a run.

        Args:
            prefix: Of the keys that do not belong to a layer.
            settings: What drift is measured against.
            additive: Whether a map sums to evidence in the score's unit.
        """
        self.prefix = prefix
        self.settings = settings
        self.additive = additive
        self.tracks: dict[str, Track] = {}
        self.classes: Tensor | None = None
        self.beside: Beside | None = None
        self.monitored: dict[str, float] = {}

    @property
    def count(self) -> int:
        """The number of observations so far."""
        return max((track.count for track in self.tracks.values()), default=0)

    def read(
        self,
        maps: Mapping[str, Tensor],
        shifted: Mapping[str, Tensor],
        prediction: Prediction | None,
        regions: Mapping[str, Tensor],
        groups: Sequence[str] = (),
        asked: Tensor | None = None,
    ) -> Reading:
        """Measure an observation against the run so far, and change nothing.

        Args:
            maps: Signed maps ``(n, h, w)`` by the prefix of the layer's keys.
            shifted: The same with the images shifted by one pixel; may be empty.
            prediction: What the model predicts, if it is a classifier.
            regions: Masks ``(n, H, W)`` by name.
            groups: The name of each sample's group; may be empty.
            asked: ``(n,)``, the class that each map is of; ``None`` where it is always the same question.
        """
        parts = by_group(groups, len(next(iter(maps.values()))))
        numbers: dict[str, float] = {}
        drift: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        alarms: dict[str, list[int]] = {}
        for prefix, signed in maps.items():
            track = self._track(prefix, signed)
            values = describe(signed, self.additive, regions)
            values |= track.measure(signed, _question(asked, len(signed)))
            if self.beside is not None:
                difference = 1 - measures.agreement(signed, self.beside.maps[prefix])
                if asked is not None:  # of another class a map answers another question
                    unlike = (asked != self.beside.asked) & (self.beside.asked >= 0)
                    difference = torch.where(unlike, torch.nan, difference)
                values[f"difference_from_{self.beside.name}"] = difference
            if shifted:
                values["drift_floor"] = 1 - measures.similarity(signed, shifted[prefix])
            drift[prefix], moved[prefix] = values["drift"], values["drift_from_reference"]
            for behind, of in parts.items():
                chosen = {key: value[of] for key, value in values.items()}
                chosen["drift_chance"] = measures.chance(signed[of])
                numbers |= {f"{prefix}/{key}{behind}": value for key, value in aggregate(chosen).items()}
            limit = self._limit(numbers.get(f"{prefix}/drift_floor", torch.nan))
            if track.calm >= 2 and numbers[f"{prefix}/drift"] > limit:
                alarms[prefix] = (values["drift"] > limit).nonzero()[:, 0].tolist()
        if prediction is not None:
            for behind, of in parts.items():
                flips = torch.nan
                if self.classes is not None:
                    flips = (self.classes != prediction.classes)[of].float().mean().item()
                numbers[f"{self.prefix}/prediction_flips{behind}"] = flips
        return Reading(numbers, drift, moved, alarms)

    def add(
        self,
        reading: Reading,
        maps: Mapping[str, Tensor],
        prediction: Prediction | None,
        moment: Moment,
        asked: Tensor | None = None,
    ) -> None:
        """Remember an observation that :meth:`read` has measured."""
        n = len(next(iter(maps.values())))
        question = _question(asked, n)
        unknown = torch.full((n,), -1)
        classes = unknown if prediction is None else prediction.classes
        right = unknown if prediction is None or prediction.right is None else prediction.right.int()
        if asked is not None:  # the filmstrip says what each map is of; whether that is right, where it is predicted
            right = torch.where(asked == classes, right, -1)
            classes = asked
        for prefix, signed in maps.items():
            track = self.tracks[prefix] = self._track(prefix, signed)
            drift = reading.drift[prefix]
            frame = Frame(
                moment.epoch, kept_maps(signed), *(values[:ROWS].clone() for values in (classes, right, drift))
            )
            track.add(signed, question, frame, moment, self.settings.reference)
            limit = self._limit(reading.numbers.get(f"{prefix}/drift_floor", torch.nan))
            median = reading.numbers[f"{prefix}/drift"]
            if not math.isnan(median):
                track.calm = track.calm + 1 if median <= limit else 0
        self.classes = None if prediction is None else prediction.classes
        for key, value in reading.numbers.items():
            self.monitored.setdefault(key, worst(key.split("/")[1]))
            if math.isfinite(value) and moment.epoch >= 0:
                self.monitored[key] = value

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        tracks = {prefix: track.state() for prefix, track in self.tracks.items()}
        return {"tracks": tracks, "classes": self.classes, "monitored": dict(self.monitored)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.tracks = {prefix: Track.restored(track) for prefix, track in state["tracks"].items()}
        self.classes, self.monitored = state["classes"], dict(state["monitored"])

    def _track(self, prefix: str, maps: Tensor) -> Track:
        track = self.tracks.get(prefix)
        return track if track is not None and track.reference.shape == maps.shape else Track.start(maps)

    def _limit(self, floor: float) -> float:
        """What drift has to exceed for an alert: the limit that was set and, where it was measured, the noise floor."""
        limit = self.settings.alert_above
        return math.inf if limit is None else limit if math.isnan(floor) else max(limit, floor)
