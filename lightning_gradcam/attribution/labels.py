"""Labels of every form brought to two: the index of a class, or a row that names several."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.names import NO_LABEL, sample_name
from lightning_gradcam.attribution.reading import AskError

UNKNOWN = -1  # an entry of a multi-hot row that says neither yes nor no, as CheXpert has them


class NoClassesError(AskError):
    """Labels that name no classes, such as the values of a regression."""


def class_labels(batch: Batch, outputs: int) -> Tensor:
    """The labels of a batch as those of classes, checked against the model's number of outputs.

    Args:
        batch: With labels: indices ``(n,)`` or ``(n, 1)``, of one output also -1 and 1; or ``(n, outputs)``, one-hot,
            smoothed, mixed or multi-hot. -1, -100 and NaN are no label.
        outputs: How many columns the model's logits have; one means two classes.

    Returns:
        On the CPU, ``(n,)`` int64, :data:`NO_LABEL` where a sample has none; or ``(n, outputs)`` int64 of 1, 0 and
        :data:`UNKNOWN`. Given once more they come back as they are.

    Raises:
        NoClassesError: If they are no such labels.
        ValueError: If there are none, or one names no class of the model.
    """
    labels = batch.labels
    if labels is None:
        raise ValueError(
            '`target="label"` needs labels and the batch has none; '
            'give `labels`, in a run from `batch_fn`, or use `target="predicted"` or a class index'
        )
    labels = labels.as_subclass(Tensor).cpu()  # once, since what follows asks for values
    labels = labels if labels.is_floating_point() else labels.long()  # of bytes 256 is 0
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return _rows(labels, outputs, batch.multilabel) if labels.ndim == 2 else _indices(labels, outputs, batch)


def _missing(labels: Tensor) -> Tensor:
    return labels.isnan() | (labels == UNKNOWN) | (labels == NO_LABEL)


def _indices(labels: Tensor, outputs: int, batch: Batch) -> Tensor:
    missing = _missing(labels)
    if outputs == 1 and set(labels[~labels.isnan()].unique().tolist()) == {-1, 1}:
        return torch.where(labels.isnan(), NO_LABEL, labels == 1).long()  # the two classes of a hinge loss
    known = labels[~missing]
    if outputs == 1 and _is_smoothed(known):
        labels = labels.round()
    classes = max(2, outputs)
    outside = ~missing & ((labels < 0) | (labels >= classes) | (labels != labels.round()))
    if outside.any():
        first = int(outside.nonzero()[0])
        name = sample_name(batch.ids[first]) if batch.ids else f"#{first}"
        text = f"label {labels[first].item():g} is outside the model's {classes} classes, 0 to {classes - 1}, at {name}"
        if outputs == 1 or bool((known != known.round()).any()):
            raise NoClassesError(
                f"{text}; if it is a value to be predicted, give `target=RegressionTarget()`",
                target="RegressionTarget()",
            )
        raise ValueError(
            f"{text}; -1 and -100 mean that a sample has no label, and if the labels are values, "
            "`target=RegressionTarget(column=0)` asks for one"
        )
    return torch.where(missing, NO_LABEL, labels.nan_to_num()).long()


def _is_smoothed(known: Tensor) -> bool:
    """Whether these are zeros and ones that are both moved towards a half alike."""
    values = known.unique()
    return (
        bool(known.is_floating_point())
        and len(values) == 2
        and 0 < values[0] < 0.5
        and bool((values.sum() - 1).abs() < 1e-4)
    )


def _rows(labels: Tensor, outputs: int, multilabel: bool | None) -> Tensor:
    if labels.shape[1] != outputs:
        raise ValueError(
            f"multi-hot labels {tuple(labels.shape)} do not match the model's {outputs} outputs; if they are values, "
            "`target=RegressionTarget(column=0)` asks for one"
        )
    missing = _missing(labels)
    values = labels[~missing].unique()
    if len(values) and (values[0] < 0 or values[-1] > 1):
        raise NoClassesError(
            f"labels {tuple(labels.shape)} from {values[0].item():g} to {values[-1].item():g} name no classes; "
            "if one is to be predicted, give `target=RegressionTarget(column=0)`",
            target="RegressionTarget(column=0)",
        )
    if name_one_class(labels) if multilabel is None else not multilabel:
        there = labels.nan_to_num(0, 0, 0).clamp_min(0)
        return torch.where(there.sum(1) > 0, there.argmax(1), NO_LABEL)
    if multilabel is None and len(values) > 2 and labels.is_floating_point():
        raise NoClassesError(
            f"labels {tuple(labels.shape)} with {len(values)} values between 0 and 1 may be classes or coordinates; "
            "return `Batch(..., multilabel=True)` from `batch_fn`, or give `target=RegressionTarget(column=0)`",
            target="RegressionTarget(column=0)",
        )
    return torch.where(missing, UNKNOWN, (labels.nan_to_num() > 0.5).long())


def name_one_class(labels: Tensor) -> bool:
    """Whether each row ``(n, classes)`` that is not unknown sums to 1, as one-hot, smoothed and mixed labels do."""
    rows = labels[~_missing(labels).all(1)].float()
    rounding = 1e-3 if labels.dtype not in (torch.bfloat16, torch.float16) else 3e-2
    return bool(len(rows) and (rows >= 0).all() and ((rows.sum(1) - 1).abs() < rounding).all())


def labelled(labels: Tensor) -> Tensor:
    """Which samples have a label, ``(n,)`` bool, of labels as they come or as :func:`class_labels` has them."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return (labels > 0).any(1)
    labels = labels.flatten()
    return ~labels.isnan() & (labels != NO_LABEL)
