"""A model's output to one score a sample, and to what the model predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.batch import Batch

Target = Callable[[Any, Batch], Tensor]


def logits(output: Any, samples: int) -> Tensor:
    """Find the logits ``(n, classes)`` in what a classifier returned.

    Args:
        output: A tensor, an object with ``.logits``, a mapping with ``"logits"``, or a tuple or list that starts
            with one of these. A one-logit head may leave its last dimension out.
        samples: The number of samples ``n``.

    Raises:
        ValueError: If there are none; the message says to pass a function as target.
    """
    found = output
    if isinstance(found, (tuple, list)) and found and not hasattr(found, "logits"):
        found = found[0]
    if isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    found = getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.ndim < 2 and found.numel() and found.numel() % samples == 0:
        found = found.reshape(samples, -1)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != samples:
        got = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise ValueError(
            f"no logits ({samples}, classes) in the model's output, got {got}; "
            "pass a function `(output, batch) -> scores (n,)` as `target`"
        )
    return found


def label(output: Any, batch: Batch) -> Tensor:
    """The logit of each sample's label, ``(n,)``.

    A one-logit head gives the logit for label 1 and its negative for label 0. Multi-hot labels ``(n, classes)``
    give the sum of the logits of a sample's labels.
    """
    scores = logits(output, len(batch.images))
    labels = _labels(batch, scores.shape[1]).to(scores.device)
    if labels.ndim == 2:
        return (scores * labels).sum(1)
    if scores.shape[1] == 1:
        return scores[:, 0] * (2 * labels - 1)
    return scores.gather(1, labels[:, None])[:, 0]


def predicted(output: Any, batch: Batch) -> Tensor:
    """The logit of each sample's predicted class, ``(n,)``; for a one-logit head its magnitude."""
    scores = logits(output, len(batch.images))
    return scores[:, 0].abs() if scores.shape[1] == 1 else scores.amax(1)


def class_score(output: Any, batch: Batch, *, index: int) -> Tensor:
    """The logit of one class for all samples, ``(n,)``; for a one-logit head its negative for class 0."""
    scores = logits(output, len(batch.images))
    classes = max(2, scores.shape[1])
    if index >= classes:
        raise ValueError(f"`target` {index} is outside the model's {classes} classes, 0 to {classes - 1}")
    return scores[:, 0] * (2 * index - 1) if scores.shape[1] == 1 else scores[:, index]


def score(target: Target, output: Any, batch: Batch) -> Tensor:
    """The target's score of each sample, ``(n,)``; raise a ``ValueError`` where it gives anything else."""
    scores, samples = target(output, batch), len(batch.images)
    if not isinstance(scores, Tensor) or scores.shape != (samples,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"`target` must give one score a sample, shape ({samples},), got {got}")
    return scores


TARGETS: dict[str, Target] = {"label": label, "predicted": predicted}


def as_target(target: str | int | Target) -> Target:
    """Turn the ``target`` argument into a function; raise a ``ValueError`` or ``TypeError`` where it is none."""
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(f"`target` must be one of {sorted(TARGETS)}, a class index or a function, got {target!r}")
        return TARGETS[target]
    if isinstance(target, Integral) and not isinstance(target, bool):
        if target < 0:
            raise ValueError(f"`target` as a class index must be at least 0, got {target}")
        return partial(class_score, index=int(target))
    if callable(target):
        return target
    raise TypeError(
        f"`target` must be one of {sorted(TARGETS)}, a class index or a function, got {type(target).__name__}"
    )


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


def predict(output: Any, batch: Batch) -> Prediction | None:
    """Read the predictions from a model's output; ``None`` where it holds no logits ``(n, classes)``."""
    try:
        scores = logits(output, len(batch.images)).detach().float().cpu()
        labels = None if batch.labels is None else _labels(batch, scores.shape[1]).cpu()
    except ValueError:
        return None
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
    return Prediction(probabilities, classes, right)


def _labels(batch: Batch, outputs: int) -> Tensor:
    """Labels as class indices ``(n,)`` or multi-hot ``(n, classes)``, checked against the number of outputs."""
    labels = batch.labels
    if labels is None:
        raise ValueError(
            '`target="label"` needs labels and the batch has none; '
            'return them from `batch_fn`, or use `target="predicted"` or a class index'
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
