"""A model's output to one score a sample, and to what the model predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.labels import class_labels, labelled
from lightning_gradcam.attribution.outputs import find_logits, flat
from lightning_gradcam.attribution.reading import item, structure
from lightning_gradcam.attribution.sequences import as_list

# Returns a tensor (n,), or (n, k) for several scores a sample; a target whose questions are classes may tell them by a
# method `classes(output, batch)` of the same shape, and what its captions say by a method `words(output, batch)` that
# gives `Words`. LightningCLI would take a class path for one of a `Tensor`.
Target = Callable[[Any, Batch], Any]


def logits(output: Any, samples: int) -> Tensor:
    """Find the logits ``(n, classes)`` in what a classifier returned.

    Args:
        output: See :func:`~lightning_gradcam.attribution.outputs.find_logits`.
        samples: The number of samples ``n``.

    Raises:
        ValueError: If there are none; the message says to pass a function as target.
    """
    path = find_logits(output, samples)
    found = None if path is None else flat(item(output, path), samples)
    if found is None or found.ndim != 2:
        raise ValueError(
            f"no logits ({samples}, classes) in the model's output, got {structure(output)}; "
            "pass a function `(output, batch) -> scores (n,)` as `target`"
        )
    return found


def label(output: Any, batch: Batch) -> Tensor:
    """The logit of each sample's label, ``(n,)``.

    A one-logit head gives the logit for label 1 and its negative for label 0. Rows that name several classes give the
    sum of their logits. Of a sample without a label it is the logit of the predicted class.
    """
    scores = logits(output, len(batch.images))
    labels = class_labels(batch, scores.shape[1]).to(scores.device)
    if labels.ndim == 2:
        asked = (scores * (labels == 1)).sum(1)
    else:
        asked = two_class_logits(scores).gather(1, labels.clamp_min(0)[:, None])[:, 0]
    return torch.where(labelled(labels), asked, predicted(output, batch))


def predicted(output: Any, batch: Batch) -> Tensor:
    """The logit of each sample's predicted class, ``(n,)``; for a one-logit head its magnitude."""
    scores = logits(output, len(batch.images))
    return scores[:, 0].abs() if scores.shape[1] == 1 else scores.amax(1)


def class_score(output: Any, batch: Batch, *, index: int) -> Tensor:
    """The logit of one class for all samples, ``(n,)``; for a one-logit head its negative for class 0."""
    scores = two_class_logits(logits(output, len(batch.images)))
    classes = scores.shape[1]
    if index >= classes:
        raise ValueError(f"`target` {index} is outside the model's {classes} classes, 0 to {classes - 1}")
    return scores[:, index]


def two_class_logits(scores: Tensor) -> Tensor:
    """Logits ``(n, classes, ...)``; of a one-logit head its negative for class 0 and the logit for class 1."""
    return torch.cat([-scores, scores], 1) if scores.shape[1] == 1 else scores


@dataclass(frozen=True)
class TopTarget:
    """The logits of the ``k`` most probable classes of each sample, ``(n, k)``, the most probable first.

    One forward and ``k`` backward passes give a map for each. Which classes these are may change from one
    observation to the next; drift leaves out the maps that then answer another question.

    Attributes:
        k: How many classes, at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, Integral) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"`k` must be a number of classes of at least 1, got {self.k!r}")

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output; raise a ``ValueError`` where it has fewer classes."""
        return self._top(output, batch).values

    def classes(self, output: Any, batch: Batch) -> Tensor:
        """Which classes these are, ``(n, k)``."""
        return self._top(output, batch).indices

    def _top(self, output: Any, batch: Batch) -> Any:
        scores = two_class_logits(logits(output, len(batch.images)))
        if self.k > scores.shape[1]:
            raise ValueError(f"`k` must be at most the model's {scores.shape[1]} classes, got {self.k}")
        return scores.topk(self.k, 1)


@dataclass(frozen=True)
class _Classes:
    """The logits of certain classes for all samples, ``(n, k)``."""

    indices: tuple[int, ...]

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        return torch.stack([class_score(output, batch, index=index) for index in self.indices], 1)

    def classes(self, output: Any, batch: Batch) -> Tensor:
        return torch.tensor(self.indices).expand(len(batch.images), -1)


@dataclass(frozen=True, eq=False)
class FixedClasses:
    """The logits of classes that were found before, ``(n, k)``, whatever is predicted now.

    Attributes:
        indices: ``(n, k)``, of all samples; the ``ids`` of a batch are their places among these.
    """

    indices: Tensor

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output."""
        scores = two_class_logits(logits(output, len(batch.images)))
        return scores.gather(1, self.indices[list(map(int, batch.ids))].to(scores.device))


def score(target: Target, output: Any, batch: Batch) -> Tensor:
    """The target's scores, ``(n,)`` or ``(n, k)``; raise a ``ValueError`` where it gives anything else."""
    scores, samples = target(output, batch), len(batch.images)
    if not isinstance(scores, Tensor) or scores.shape[:1] != (samples,) or scores.ndim > 2 or not scores.numel():
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"`target` must give one score a sample, shape ({samples},), or several, ({samples}, k), got {got}"
        )
    return scores


def target_classes(target: Target, output: Any, batch: Batch, shape: Sequence[int]) -> Tensor | None:
    """The class that each score of the target is of, in the scores' shape; ``None`` where it does not tell.

    Raises:
        ValueError: If a target tells them in another shape.
    """
    if target is predicted:
        return TopTarget(1).classes(output, batch)[:, 0].as_subclass(Tensor)
    tell: Callable[[Any, Batch], Tensor] | None = getattr(target, "classes", None)
    if not callable(tell):
        return None
    classes = tell(output, batch)
    if not isinstance(classes, Tensor) or classes.shape != shape:
        got = tuple(classes.shape) if isinstance(classes, Tensor) else type(classes).__name__
        raise ValueError(f"`target.classes` must give the class of each score, shape {tuple(shape)}, got {got}")
    return classes.as_subclass(Tensor)


TARGETS: dict[str, Target] = {"label": label, "predicted": predicted}


def as_target(target: str | int | Sequence[int] | Target) -> Target:
    """Turn the ``target`` argument into a function; raise a ``ValueError`` or ``TypeError`` where it is none."""
    allowed = f"`target` must be one of {sorted(TARGETS)}, a class index, several of these or a function"
    target = as_list(target)
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(f"{allowed}, got {target!r}")
        return TARGETS[target]
    if isinstance(target, list):
        if not target or not all(map(is_class, target)) or len(set(target)) < len(target):
            raise ValueError(
                f"`target` as classes must be indices, at least one, none twice, 0 or above, got {target!r}"
            )
        return _Classes(tuple(int(index) for index in target))
    if isinstance(target, Integral) and not isinstance(target, bool):
        if target < 0:
            raise ValueError(f"`target` as a class index must be at least 0, got {target}")
        return partial(class_score, index=int(target))
    if callable(target) and not isinstance(target, type):
        return target
    got = f"the class {target.__name__}; make an instance" if isinstance(target, type) else type(target).__name__
    raise TypeError(f"{allowed}, got {got}")


def is_class(index: Any) -> bool:
    """Whether it is a whole number of at least 0."""
    return isinstance(index, Integral) and not isinstance(index, bool) and int(index) >= 0


def reads_logits(target: Target) -> bool:
    """Whether it is one of the targets that ask for classes."""
    of_one_class = isinstance(target, partial) and target.func is class_score
    of_some = isinstance(target, (TopTarget, FixedClasses, _Classes))
    return target is label or target is predicted or of_one_class or of_some
