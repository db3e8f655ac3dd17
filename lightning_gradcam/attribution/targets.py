"""A model's output to one score a sample, and to what the model predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch, structure
from lightning_gradcam.attribution.regions import region_masks
from lightning_gradcam.attribution.sequences import as_list

# Returns a tensor (n,), or (n, k) for several scores a sample; a target whose questions are classes may tell them by a
# method `classes(output, batch)` of the same shape. LightningCLI would take a class path for one of a `Tensor`.
Target = Callable[[Any, Batch], Any]


def logits(output: Any, samples: int) -> Tensor:
    """Find the logits ``(n, classes)`` in what a classifier returned.

    Args:
        output: A tensor, an object with ``.logits``, a mapping with ``"logits"``, or a tuple or list that starts
            with one of these. A one-logit head may leave its last dimension out.
        samples: The number of samples ``n``.

    Raises:
        ValueError: If there are none; the message says to pass a function as target.
    """
    found = _logits_in(output)
    if isinstance(found, Tensor) and found.ndim < 2 and found.numel() and found.numel() % samples == 0:
        found = found.reshape(samples, -1)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != samples:
        got = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise ValueError(
            f"no logits ({samples}, classes) in the model's output, got {got}; "
            "pass a function `(output, batch) -> scores (n,)` as `target`"
        )
    return found


def _logits_in(output: Any) -> Any:
    if isinstance(output, (tuple, list)) and output and not hasattr(output, "logits"):
        output = output[0]
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    return getattr(output, "logits", output)


def label(output: Any, batch: Batch) -> Tensor:
    """The logit of each sample's label, ``(n,)``.

    A one-logit head gives the logit for label 1 and its negative for label 0. Multi-hot labels ``(n, classes)``
    give the sum of the logits of a sample's labels.
    """
    scores = logits(output, len(batch.images))
    labels = _labels(batch, scores.shape[1]).to(scores.device)
    if labels.ndim == 2:
        return (scores * labels).sum(1)
    return two_class_logits(scores).gather(1, labels[:, None])[:, 0]


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


@dataclass(frozen=True)
class SegmentationTarget:
    """The mean logit of one class over a part of each image, ``(n,)``: for semantic segmentation.

    The model's output is ``(n, classes, H', W')``, at any resolution, or has this as ``["out"]``, ``.logits`` or
    ``["logits"]``. With a single output channel its logit is that of class 1, and its negative of class 0.

    Attributes:
        index: The class, counted from 0.
        region: The region of the batch to take the mean over, in every epoch the same. ``None``: the pixels that the
            model itself gives to the class. Where there are none the score is 0 and the map empty.

    Source: Vinogradova et al. 2020, arXiv 2002.11434, equation 2, divided by the number of pixels.
    """

    index: int
    region: str | None = None

    def __post_init__(self) -> None:
        _check_index(self.index)

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output; raise a ``ValueError`` where it holds no such logits or the batch no such region."""
        pixels = output["out"] if isinstance(output, Mapping) and "out" in output else _logits_in(output)
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != len(batch.images):
            got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(output).__name__
            raise ValueError(f"no logits (n, classes, H, W) in the model's output, got {got}")
        pixels = pixels.float()  # a sum over pixels is too large for half precision
        pixels = two_class_logits(pixels)
        if self.index >= pixels.shape[1]:
            raise ValueError(f"`index` {self.index} is outside the model's {pixels.shape[1]} classes")
        if self.region is None:
            mask = (pixels.argmax(1) == self.index).to(pixels.dtype)
        else:
            mask = region_masks(_region(batch, self.region), batch.size)
            mask = F.interpolate(mask[:, None], pixels.shape[2:], mode="area")[:, 0]
        return (pixels[:, self.index] * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1e-6)


@dataclass(frozen=True)
class DetectionTarget:
    """The summed scores of the boxes of one class, ``(n,)``: for object detection.

    The model's output is that of torchvision's detectors in eval mode: for every image a mapping with ``"boxes"``
    ``(k, 4)``, ``"labels"`` and ``"scores"``, both ``(k,)``.

    Attributes:
        index: The class, as in ``"labels"``.
        region: The region of the batch, given as boxes, that a box must overlap by half (intersection over union).
            ``None``: all boxes of the class count. Where there are none the score is 0 and the map empty.
    """

    index: int
    region: str | None = None

    def __post_init__(self) -> None:
        _check_index(self.index)

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Score an output; raise a ``ValueError`` where it holds no boxes or the batch no such region."""
        from torchvision.ops import box_iou

        fields = {"boxes", "labels", "scores"}
        found = output if isinstance(output, (list, tuple)) and len(output) == len(batch.images) else ()
        if not found or not all(isinstance(image, Mapping) and fields <= image.keys() for image in found):
            raise ValueError(f"no boxes, labels and scores of each image in the model's output, {structure(output)}")
        places = None if self.region is None else _region(batch, self.region)
        if places is not None and places.ndim != 2:
            raise ValueError(f"`region` {self.region!r} must be boxes (n, 4), got {tuple(places.shape)}")
        scores = []
        for i, image in enumerate(found):
            chosen = image["labels"] == self.index
            if places is not None:
                chosen = chosen & (box_iou(image["boxes"], places[i : i + 1].to(image["boxes"]))[:, 0] >= 0.5)
            scores.append(image["scores"][chosen].sum())
        return torch.stack(scores)


def _check_index(index: int) -> None:
    if not _is_class(index):
        raise ValueError(f"`index` must be a class, 0 or above, got {index!r}")


def _is_class(index: Any) -> bool:
    return isinstance(index, Integral) and not isinstance(index, bool) and int(index) >= 0


def _region(batch: Batch, name: str) -> Tensor:
    if name not in batch.regions:
        raise ValueError(f"`region` {name!r} is not one of the batch's regions, {sorted(batch.regions)}")
    return batch.regions[name]


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
        if not target or not all(map(_is_class, target)) or len(set(target)) < len(target):
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


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of each sample.

    Attributes:
        probabilities: ``(n, classes)`` in [0, 1], on the CPU; two columns for a one-logit head. Softmax, or
            sigmoid for a one-logit head and for multi-hot labels.
        classes: ``(n,)``, the index of the largest probability.
        right: ``(n,)`` bool, whether that class is the sample's label or one of its labels; ``None`` without labels.
    """

    probabilities: Tensor
    classes: Tensor
    right: Tensor | None

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor | None) -> Prediction:
        """What logits ``(n, classes)`` say, of samples with these class indices ``(n,)`` or multi-hot labels."""
        if scores.shape[1] == 1:
            positive = scores.sigmoid()
            probabilities = torch.cat([1 - positive, positive], 1)
        elif labels is not None and labels.ndim == 2:
            probabilities = scores.sigmoid()
        else:
            probabilities = scores.softmax(1)
        classes = probabilities.argmax(1)
        if labels is None:
            right = None
        elif labels.ndim == 2:
            right = labels.gather(1, classes[:, None])[:, 0] > 0
        else:
            right = labels == classes
        return cls(probabilities, classes, right)

    def repeated(self, times: int) -> Prediction:
        """The same with each sample so many times in a row."""
        right = None if self.right is None else self.right.repeat_interleave(times, 0)
        return Prediction(
            self.probabilities.repeat_interleave(times, 0), self.classes.repeat_interleave(times, 0), right
        )


def predict(output: Any, batch: Batch) -> Prediction | None:
    """Read the predictions from a model's output; ``None`` where it holds no logits ``(n, classes)``."""
    scores, labels = logits_and_labels(output, batch)
    if scores is None:
        return None
    return Prediction.of(scores.cpu(), None if labels is None else labels.cpu())


def logits_and_labels(output: Any, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    """The logits ``(n, classes)`` in a model's output, float32, and what labels there are; both ``None`` without."""
    try:
        scores = logits(output, len(batch.images)).detach().as_subclass(Tensor).float()
        return scores, None if batch.labels is None else _labels(batch, scores.shape[1]).as_subclass(Tensor)
    except ValueError:
        return None, None


def _labels(batch: Batch, outputs: int) -> Tensor:
    """Labels as class indices ``(n,)`` or multi-hot ``(n, classes)``, checked against the number of outputs."""
    labels = batch.labels
    if labels is None:
        raise ValueError(
            '`target="label"` needs labels and the batch has none; '
            'give `labels`, in a run from `batch_fn`, or use `target="predicted"` or a class index'
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        if labels.shape[1] != outputs:
            raise ValueError(f"multi-hot labels {tuple(labels.shape)} do not match the model's {outputs} outputs")
        return labels
    classes = max(2, outputs)
    indices = labels.long()
    outside = (indices < 0) | (indices >= classes) | (indices != labels)
    if outside.any():
        raise ValueError(
            f"label {labels[outside][0].item()} is outside the model's {classes} classes, 0 to {classes - 1}"
        )
    return indices
