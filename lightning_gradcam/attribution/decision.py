"""What a model is asked, decided once: from its first output, the labels, and what is known of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.labels import NoClassesError, class_labels, labelled
from lightning_gradcam.attribution.outputs import LOG_ODDS, SIGMOID, activation_of, find_logits
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.reading import AskError, items_of, structure
from lightning_gradcam.attribution.targets import Target, label, predicted, reads_logits
from lightning_gradcam.attribution.tasks import (
    DetectionTarget,
    EmbeddingTarget,
    RegressionTarget,
    SegmentationTarget,
    are_detections,
    is_queries,
)

_FAR_MORE = 4  # times as many columns as there are classes
_MADE_BY = {SIGMOID: "sigmoid", LOG_ODDS: "softmax or sigmoid"}


@dataclass(frozen=True)
class Classes:
    """What is known of the classes, from elsewhere than the model.

    Attributes:
        names: The name of each.
        labelled: How many there are by all labels of the dataset; ``None`` where they cannot be had at once.
        views: Whether the batch holds several views of the images, as of self-supervised learning.
    """

    names: Sequence[str] | None = None
    labelled: int | None = None
    views: bool = False

    @property
    def number(self) -> int | None:
        """How many classes there are."""
        return len(self.names) if self.names else self.labelled

    def doubt(self, columns: int, labels: bool, asked: bool) -> str:
        """Why so many columns of an output may be no classes; empty where nothing speaks against it.

        Args:
            columns: How many.
            labels: Whether the batch has labels, be it that its samples have none.
            asked: Whether the user asks for classes in so many words.
        """
        names = len(self.names or ())
        if names and columns > max(2, names):
            return f"the model has {columns} outputs and the dataset {names} class names"
        if names or columns == 1 or asked:
            return ""
        if self.views:
            return f"the batch holds several views of the images, as for learning without labels, and {columns} outputs"
        if not labels:
            return f"the model has {columns} outputs, and there are neither labels nor class names"
        if self.labelled is not None and columns >= _FAR_MORE * self.labelled:
            return f"the model has {columns} outputs, and the dataset's labels name {self.labelled} classes"
        return ""


@dataclass(frozen=True)
class Asked:
    """What was decided.

    Attributes:
        question: What is asked.
        batch: The samples, with labels as the question reads them.
        notes: What was taken for what.
        warning: What may well be another thing; empty where all is as it should be.
    """

    question: Question
    batch: Batch
    notes: tuple[str, ...] = ()
    warning: str = ""


def decide(
    target: Target,
    output: Any,
    few: Batch,
    batch: Batch,
    main_classes: Tensor | None = None,
    classes: Classes | None = None,
    restored: Mapping[str, Any] | None = None,
) -> Asked:
    """Decide what is asked and how outputs are read.

    Args:
        target: What the user asks for. ``label`` is given what it naturally means for this model and these labels.
        output: What the model has returned for some samples, with its autograd graph.
        few: These samples.
        batch: All samples.
        main_classes: ``(n,)``, the class of most of each sample's mask or boxes, where there are some.
        classes: What is known of the classes.
        restored: What :func:`to_state` gave in the run that is resumed.

    Raises:
        AskError: If two readings are possible, and a wrong one would give wrong numbers.
        ValueError: If a label names no class of the model.
    """
    n, classes = len(few.images), classes or Classes()
    if reads_logits(target) and (are_detections(output, n) or is_queries(output)):
        return _ask_boxes(batch, main_classes if target is label else None)
    question = Question(target, find_logits(output, n, classes.number))
    found = None if question.path is None else question.find(output, n)
    redrawn = found is not None and found.ndim == 2 and reads_logits(target) and _holds_pictures(output, few.images)
    if found is None or redrawn:
        if not reads_logits(target):
            return Asked(replace(question, path=None), batch)
        raise AskError(
            f"no logits (n, classes) in the model's output, got {structure(output)}; pass a function "
            "`(output, batch) -> scores (n,)` as `target`",
            **_function_to_paste(output, n),
        )
    if not isinstance(target, (RegressionTarget, EmbeddingTarget)):
        question = replace(question, activation=activation_of(found))
    if found.ndim > 2 and target is label:
        return _ask_pixels(question, found, batch, main_classes, classes.number, restored)
    if not reads_logits(target):
        return _ask_value(question, batch, main_classes)
    if found.ndim > 2:
        raise AskError(
            f"`target` asks for classes, and the model's output holds maps {tuple(found.shape)}; give "
            "`target=SegmentationTarget(index)`, or a function `(output, batch) -> scores (n,)`",
            target="SegmentationTarget(1)",
        )
    return _ask_classes(question, found, batch, classes)


def _holds_pictures(output: Any, images: Tensor) -> bool:
    """Whether a part of an output has the images' own shape, as of what draws them anew."""
    return any(isinstance(one, Tensor) and one.shape == images.shape for _, one in items_of(output) or ())


def _function_to_paste(output: Any, samples: int) -> dict[str, str]:
    """A target of the first part of an output that has a row a sample."""
    for key, one in items_of(output) or ():
        if isinstance(one, Tensor) and one.ndim > 1 and len(one) == samples:
            place = f"output[{key!r}]" if isinstance(output, (Mapping, list, tuple)) else f"output.{key}"
            return {"target": f"lambda output, batch: {place}.flatten(1).mean(1)"}
    return {}


def _ask_boxes(batch: Batch, main_classes: Tensor | None) -> Asked:
    if main_classes is None:
        raise AskError(
            "the model's output is of a detector, and the batch has no boxes that are certainly such; give "
            "`target=DetectionTarget(index)` with the class to ask for",
            target="DetectionTarget(1)",
        )
    note = "reads the output as detections and asks for the class of most of a sample's boxes"
    return Asked(Question(DetectionTarget()), replace(batch, labels=main_classes), (note,))


def _ask_pixels(
    question: Question,
    found: Tensor,
    batch: Batch,
    main_classes: Tensor | None,
    count: int | None,
    restored: Mapping[str, Any] | None,
) -> Asked:
    classes = max(2, found.shape[1])
    labelled_ones = main_classes is not None and bool(labelled(main_classes).any())
    if main_classes is not None and labelled_ones and int(main_classes.max()) < classes:
        note = "reads the output as a segmentation and asks for the class of most of a sample's mask, over that mask"
        target, notes = SegmentationTarget(region="object"), (*_note_path(question), note)
        return Asked(replace(question, target=target), replace(batch, labels=main_classes), notes)
    if not labelled_ones and (main_classes is not None or count == classes):
        pixels = found.argmax(1) if found.shape[1] > 1 else (found[:, 0] > 0).long()
        pixels = pixels[pixels > 0]
        index = int(pixels.mode().values) if len(pixels) else 1
        before = (restored or {}).get("index")
        index = index if before is None else before
        note = f"reads the output as a segmentation and asks for class {index}, the commonest but 0 of the first look"
        notes = *_note_path(question), note
        return Asked(replace(question, target=SegmentationTarget(index)), replace(batch, labels=None), notes)
    why = "no mask of the images' size" if main_classes is None else f"a mask of class {int(main_classes.max())}"
    raise AskError(
        f"the model's output is maps {tuple(found.shape)} and the batch has {why}: it may be a segmentation, a picture "
        "or a depth map; give `target=SegmentationTarget(index)` or a function `(output, batch) -> scores (n,)`",
        target="SegmentationTarget(1)" if found.shape[1] > 3 else _function_of_maps(question),
    )


def _function_of_maps(question: Question) -> str:
    place = "".join(f"[{step!r}]" for step in question.path or ())
    return f"lambda output, batch: output{place}.flatten(1).mean(1)"


def _note_path(question: Question) -> tuple[str, ...]:
    """Which part of an output is read, where it is one of several."""
    place = "".join(f"[{step!r}]" for step in question.path or ())
    return (f"reads the output's `{place}` as logits",) if place else ()


def _ask_value(question: Question, batch: Batch, main_classes: Tensor | None) -> Asked:
    target = question.target
    if isinstance(target, RegressionTarget):
        return Asked(question, _with_values(batch, target.column))
    if isinstance(target, (SegmentationTarget, DetectionTarget)) and main_classes is not None:
        return Asked(question, replace(batch, labels=main_classes))
    if batch.labels is not None and batch.labels.ndim == 2 and batch.multilabel is None:
        with suppress(ValueError):  # of labels that name no classes
            several = class_labels(batch, batch.labels.shape[1]).ndim == 2
            batch = replace(batch, multilabel=several)  # the same for every part of it
    return Asked(question, batch)


def _with_values(batch: Batch, column: int) -> Batch:
    """The batch with one value a sample as its label."""
    labels = batch.labels
    if labels is not None and labels.ndim == 2:
        labels = labels[:, column] if column < labels.shape[1] else None
    return replace(batch, labels=labels)


def _ask_classes(question: Question, found: Tensor, batch: Batch, classes: Classes) -> Asked:
    columns, target, notes, asked = found.shape[1], question.target, [], question.target is not label
    notes += _note_path(question)
    if question.activation:
        notes.append(f"reads the output as probabilities, made by a {_MADE_BY.get(question.activation, 'softmax')}")
    try:
        labels = None if batch.labels is None else class_labels(batch, columns)
    except NoClassesError:
        if target is not label:
            labels = None
        elif columns > 1:
            raise
        else:
            target, notes = RegressionTarget(), ["reads the output as a value, since the labels name no classes"]
            return Asked(Question(target, question.path), _with_values(batch, 0), tuple(notes))
    except ValueError:
        if target is label:
            raise
        labels = None
    if target is label and (labels is None or not labelled(labels).any()):
        if columns == 1:
            raise AskError(
                'the model gives one output a sample, and no sample has a label: give `target="predicted"` if it is '
                "the logit of a class, or `target=RegressionTarget()` if it is a value",
                target="RegressionTarget()",
            )
        target = predicted
        notes.append('asks for `target="predicted"`, since no sample has a label')
    question = replace(question, target=target)
    if labels is not None:
        batch = replace(batch, labels=labels, multilabel=labels.ndim == 2)
    doubt = classes.doubt(columns, labels is not None, asked)
    warning = ""
    if doubt:
        question = replace(question, of_classes=False)
        warning = (
            f"{doubt}, so that captions name no class; if the output is an embedding give `target=EmbeddingTarget()`, "
            "if it is a classifier's `Display(class_names=[...])`"
        )
    return Asked(question, batch, tuple(notes), warning)


def to_state(question: Question) -> dict[str, Any]:
    """What the run that is resumed reads alike: plain values for a checkpoint."""
    path = None if question.path is None else list(question.path)
    return {"path": path, "activation": question.activation, "index": getattr(question.target, "index", None)}
