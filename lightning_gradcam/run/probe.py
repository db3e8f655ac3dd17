"""The probe: what all observations of a run share, made at the first look and thrown away whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from torch import Tensor

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.labels import labelled
from lightning_gradcam.attribution.layout import Layout
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.targets import label
from lightning_gradcam.attribution.tasks import DetectionTarget, SegmentationTarget
from lightning_gradcam.picture.filmstrip import ROWS
from lightning_gradcam.picture.view import Axes
from lightning_gradcam.run.reference import ReferenceRun
from lightning_gradcam.run.samples import Fingerprint
from lightning_gradcam.run.settings import Settings


@dataclass(frozen=True)
class Probe:
    """What every observation of a run has in common.

    Maps, numbers and pictures have a row for each score of each sample, see
    :class:`~lightning_gradcam.attribution.functional.Attribution`; so have ``rows``, ``regions`` and ``photos``.

    Attributes:
        settings: What the user said, with the target and the forward that were found where none was named.
        batch: The fixed batch, on the CPU, with labels as the target reads them.
        rows: The same, a row a score.
        fingerprint: Of the batch.
        layers: The name of each layer by the prefix of its keys.
        layouts: By the name of a layer, how its output lies on the image, once that is known.
        regions: Masks ``(n, H, W)`` by name.
        photos: Grey, ``(n, H, W)`` in [0, 1].
        axes: What their axes are.
        class_names: The name of each class, where they are known.
        reference_run: What another run saw last, where the settings name one.
        question: What is asked, and how the model's output is read for it.
        notes: What was taken for what.
        k: How many scores the target gives a sample, once that is known.
        pictured: The positions in the batch of the samples that are drawn.
        at_once: How many samples to run at a time; ``None``: all.
    """

    settings: Settings
    batch: Batch
    rows: Batch
    fingerprint: Fingerprint
    layers: dict[str, str]
    layouts: dict[str, Layout | None]
    regions: dict[str, Tensor]
    photos: Tensor
    axes: Axes
    class_names: Sequence[str] | None
    reference_run: ReferenceRun | None
    question: Question
    notes: tuple[str, ...] = ()
    k: int | None = None
    pictured: list[int] = field(default_factory=list)
    at_once: int | None = None

    @property
    def pictured_rows(self) -> list[int]:
        """The rows that are drawn."""
        k = self.k or 1
        return [sample * k + score for sample in self.pictured for score in range(k)]

    @property
    def samples_of_rows(self) -> list[int]:
        """Which sample each row is of: the position of the first one with its id."""
        ids = list(self.batch.ids)
        firsts = {name: place for place, name in reversed(list(enumerate(ids)))}
        return [firsts[name] for name in ids for _ in range(self.k or 1)]

    @property
    def filmed_rows(self) -> list[int]:
        """The rows of the filmstrip."""
        return self.pictured_rows[:ROWS]

    @cached_property  # a picture's photos are resized once, as long as it is the same tensor
    def in_pictures(self) -> Probe:
        """The same of the samples that are drawn."""
        if self.pictured == list(range(len(self.batch.images))):
            return self
        rows = self.pictured_rows
        return replace(
            self,
            batch=self.batch.part(self.pictured),
            rows=self.rows.part(rows),
            regions={name: region[rows] for name, region in self.regions.items()},
            photos=self.photos[rows],
            pictured=list(range(len(self.pictured))),
        )

    @cached_property
    def mean_photo(self) -> Tensor:
        """The mean over all samples, ``(1, *spatial)`` in [0, 1]."""
        return self.photos.mean(0, keepdim=True)

    @property
    def with_label(self) -> list[int] | None:
        """The rows whose samples have a label; ``None``: all, or there are no labels at all."""
        labels = self.rows.labels
        return None if labels is None else labelled(labels).nonzero()[:, 0].tolist()

    @property
    def counted(self) -> list[int] | None:
        """The rows that numbers are taken over: of a target that asks for labels those that have one; ``None``: all."""
        target = self.question.target
        asks_labels = target is label or (
            isinstance(target, (SegmentationTarget, DetectionTarget)) and target.index is None
        )
        return self.with_label if asks_labels else None

    def with_first_look(self, k: int, layouts: Mapping[str, Layout]) -> Probe:
        """The same with ``k`` rows a sample, and with the layouts."""
        if self.k not in (None, k):
            raise ValueError(
                f"`target` gave {self.k} scores a sample before and {k} now; let it give as many each time"
            )
        if self.k == k:
            return self
        return replace(
            self,
            rows=self.batch.repeated(k),
            regions={name: region.repeat_interleave(k, 0) for name, region in self.regions.items()},
            photos=self.photos.repeat_interleave(k, 0),
            k=k,
            layouts=dict(layouts),
        )


def describe_samples(batch: Batch, fingerprint: Fingerprint) -> dict[str, Any]:
    """Which samples these are, as a record tells it."""
    return {
        "fingerprint": asdict(fingerprint),
        "ids": [one if isinstance(one, int) else str(one) for one in batch.ids],
        "labels": None if batch.labels is None else [_known(label) for label in batch.labels.tolist()],
    }


def _known(label: Any) -> Any:
    """A label as JSON has it, which knows no NaN."""
    return None if label != label else label


def layer_prefixes(prefix: str, names: Sequence[str]) -> dict[str, str]:
    """Each layer's name by the prefix of its keys: the plain one for one layer, else with what tells names apart."""
    if len(names) == 1:
        return {prefix: names[0]}
    parts = [name.split(".") for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*(path[:-1] for path in parts), strict=False))
    common = len(list(shared))
    # A key becomes a tag and a file name, and a `ModuleDict` takes any text as a name.
    suffixes = [re.sub(r"[^\w.-]", "_", ".".join(path[common:]), flags=re.ASCII) for path in parts]
    suffixes = [f"{own}_{i}" if suffixes.count(own) > 1 else own for i, own in enumerate(suffixes)]
    return {f"{prefix}_{own}": name for own, name in zip(suffixes, names, strict=True)}
