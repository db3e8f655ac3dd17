"""What is asked of a model, and how its output is read for it: decided once, from the first output and the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch, few_of
from lightning_gradcam.attribution.labels import NoClassesError, class_labels, labelled
from lightning_gradcam.attribution.outputs import (
    LOG_ODDS,
    SIGMOID,
    activation_of,
    before_activation,
    find_logits,
    flat,
    recording_activations,
)
from lightning_gradcam.attribution.prediction import Prediction, Words
from lightning_gradcam.attribution.reading import AskError, Path, item, structure
from lightning_gradcam.attribution.targets import Target, label, predicted, reads_logits, score, target_classes
from lightning_gradcam.attribution.tasks import (
    DetectionTarget,
    EmbeddingTarget,
    RegressionTarget,
    SegmentationTarget,
    are_detections,
    is_queries,
)


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        output: Whatever it returned.
        logits: ``(n, classes)`` or ``(n, classes, H, W)`` in it, of probabilities what they were made of; ``None``
            where there are none.
    """

    output: Any
    logits: Tensor | None


@dataclass(frozen=True)
class Question:
    """A target, and where in the model's output it finds what it reads. Itself a target, of an :class:`Answer`.

    Attributes:
        target: What is asked.
        path: Where the logits lie; ``None``: each output tells.
        activation: What has made probabilities of them, see
            :func:`~lightning_gradcam.attribution.outputs.activation_of`.
        of_classes: Whether the logits' columns are classes, as far as can be known.
    """

    target: Target
    path: Path | None = None
    activation: str = ""
    of_classes: bool = True

    def to_answer(self, forward: Callable[[Batch], Any]) -> Callable[[Batch], Answer]:
        """A forward that reads its output at once."""

        def answer(batch: Batch) -> Answer:
            with recording_activations() if self.activation else nullcontext([]) as made:
                output = forward(batch)
            found = self.find(output, len(batch.images))
            return Answer(output, None if found is None else before_activation(found, self.activation, made))

        return answer

    def find(self, output: Any, samples: int) -> Tensor | None:
        """The tensor that holds the logits or probabilities."""
        path = find_logits(output, samples) if self.path is None else self.path
        try:
            found = None if path is None else item(output, path)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"the model's output has another form than at the first look, {structure(output)}"
            ) from error
        return flat(found, samples) if isinstance(found, Tensor) else None

    def __call__(self, answer: Answer, batch: Batch) -> Tensor:
        """The target's scores."""
        return score(self.target, self._read(answer), batch)

    def classes(self, answer: Answer, batch: Batch, shape: Sequence[int]) -> Tensor | None:
        """The class that each score is of, see :func:`~lightning_gradcam.attribution.targets.target_classes`."""
        return target_classes(self.target, self._read(answer), batch, shape)

    def predict(self, answer: Answer, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """The logits ``(n, classes)``, float32, and the labels of classes; both ``None`` where it is no classifier."""
        found = answer.logits
        if found is None or found.ndim != 2 or not self.of_classes or callable(getattr(self.target, "words", None)):
            return None, None
        found = found.detach().as_subclass(Tensor).float()
        try:
            return found, None if batch.labels is None else class_labels(batch, found.shape[1])
        except ValueError:
            return (None, None) if self.target is label else (found, None)

    def with_activation_of(self, answer: Answer) -> Question:
        """The same for probabilities, where the answer proves to hold some and nothing was decided before."""
        decided = self.path is not None or self.activation
        if decided or answer.logits is None or isinstance(self.target, (RegressionTarget, EmbeddingTarget)):
            return self
        return replace(self, activation=activation_of(answer.logits))

    @property
    def has_sigmoid(self) -> bool:
        """Whether each class has a probability of its own, whatever the labels."""
        return self.activation in (SIGMOID, LOG_ODDS)

    def words(self, answer: Answer, batch: Batch) -> Words | None:
        """What captions say, where the target tells."""
        tell: Callable[[Any, Batch], Words] | None = getattr(self.target, "words", None)
        return tell(self._read(answer), batch) if callable(tell) else None

    def _read(self, answer: Answer) -> Any:
        """What the target gets: the logits where it is one that reads them, else the output as it is."""
        reads = reads_logits(self.target) or isinstance(self.target, SegmentationTarget)
        return answer.logits if reads and answer.logits is not None else answer.output


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
    class_names: Sequence[str] | None = None,
    restored: Mapping[str, Any] | None = None,
) -> Asked:
    """Decide what is asked and how outputs are read.

    Args:
        target: What the user asks for. ``label`` is given what it naturally means for this model and these labels.
        output: What the model has returned for some samples, with its autograd graph.
        few: These samples.
        batch: All samples.
        main_classes: ``(n,)``, the class of most of each sample's mask or boxes, where there are some.
        class_names: The names of the classes, where they are known.
        restored: What :func:`to_state` gave in the run that is resumed.

    Raises:
        AskError: If two readings are possible, and a wrong one would give wrong numbers.
        ValueError: If a label names no class of the model.
    """
    n, count = len(few.images), len(class_names) if class_names else None
    if target is label and (are_detections(output, n) or is_queries(output)):
        return _ask_boxes(batch, main_classes)
    question = Question(target, find_logits(output, n, count))
    found = None if question.path is None else question.find(output, n)
    if found is None:
        if reads_logits(target):
            raise AskError(
                f"no logits (n, classes) in the model's output, got {structure(output)}; pass a function "
                "`(output, batch) -> scores (n,)` as `target`",
                target="lambda output, batch: output...",
            )
        return Asked(replace(question, path=None), batch)
    if not isinstance(target, (RegressionTarget, EmbeddingTarget)):
        question = replace(question, activation=activation_of(found))
    if found.ndim == 4 and target is label:
        return _ask_pixels(question, found, batch, main_classes, count, restored)
    if not reads_logits(target):
        return _ask_value(question, batch, main_classes)
    if found.ndim == 4:
        raise AskError(
            f"`target` asks for classes, and the model's output holds maps {tuple(found.shape)}; give "
            "`target=SegmentationTarget(index)`, or a function `(output, batch) -> scores (n,)`",
            target="SegmentationTarget(1)",
        )
    return _ask_classes(question, found, batch, class_names)


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
        target = SegmentationTarget(region="object")
        return Asked(replace(question, target=target), replace(batch, labels=main_classes), (note,))
    if not labelled_ones and (main_classes is not None or count == classes):
        pixels = found.argmax(1) if found.shape[1] > 1 else (found[:, 0] > 0).long()
        pixels = pixels[pixels > 0]
        index = int(pixels.mode().values) if len(pixels) else 1
        index = (restored or {}).get("index", index)
        note = f"reads the output as a segmentation and asks for class {index}, the commonest but 0 of the first look"
        return Asked(replace(question, target=SegmentationTarget(index)), replace(batch, labels=None), (note,))
    why = "no mask of the images' size" if main_classes is None else f"a mask of class {int(main_classes.max())}"
    raise AskError(
        f"the model's output is maps {tuple(found.shape)} and the batch has {why}: it may be a segmentation, a picture "
        "or a depth map; give `target=SegmentationTarget(index)` or a function `(output, batch) -> scores (n,)`",
        target="SegmentationTarget(1)",
    )


def _ask_value(question: Question, batch: Batch, main_classes: Tensor | None) -> Asked:
    target = question.target
    if isinstance(target, RegressionTarget):
        return Asked(question, _with_values(batch, target.column))
    if isinstance(target, (SegmentationTarget, DetectionTarget)) and main_classes is not None:
        return Asked(question, replace(batch, labels=main_classes))
    return Asked(question, batch)


def _with_values(batch: Batch, column: int) -> Batch:
    """The batch with one value a sample as its label."""
    labels = batch.labels
    if labels is not None and labels.ndim == 2:
        labels = labels[:, column] if column < labels.shape[1] else None
    return replace(batch, labels=labels)


def _ask_classes(question: Question, found: Tensor, batch: Batch, class_names: Sequence[str] | None) -> Asked:
    columns, target, notes = found.shape[1], question.target, []
    if question.path:
        notes.append(f"reads the output's `{''.join(f'[{step!r}]' for step in question.path)}` as logits")
    if question.activation:
        notes.append(f"reads the output as probabilities, made by a {_MADE_BY.get(question.activation, 'softmax')}")
    if target is label and batch.labels is None and columns == 1:
        raise AskError(
            'the model gives one output a sample, and there are no labels: give `target="predicted"` if it is the '
            "logit of a class, or `target=RegressionTarget()` if it is a value",
            target="RegressionTarget()",
        )
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
        target = predicted
        notes.append('asks for `target="predicted"`, since no sample has a label')
    question = replace(question, target=target)
    if labels is not None:
        batch = replace(batch, labels=labels, multilabel=labels.ndim == 2)
    warning = ""
    if class_names and columns > max(2, len(class_names)):
        question = replace(question, of_classes=False)
        warning = (
            f"the model has {columns} outputs and the dataset {len(class_names)} class names, so that captions name no "
            "class; if the output is an embedding give `target=EmbeddingTarget()`, if it is a classifier of others "
            "`Display(class_names=[...])`"
        )
    return Asked(question, batch, tuple(notes), warning)


_MADE_BY = {SIGMOID: "sigmoid", LOG_ODDS: "softmax or sigmoid"}


def predict(output: Any, batch: Batch) -> Prediction | None:
    """Read the predictions from a model's output; ``None`` where it holds no logits ``(n, classes)``."""
    question = Question(predicted)
    logits, labels = question.predict(Answer(output, question.find(output, len(batch.images))), batch)
    return None if logits is None else Prediction.of(logits.cpu(), None if labels is None else labels.cpu())


def to_state(question: Question) -> dict[str, Any]:
    """What the run that is resumed reads alike: plain values for a checkpoint."""
    path = None if question.path is None else list(question.path)
    return {"path": path, "activation": question.activation, "index": getattr(question.target, "index", None)}


def first_look(forward: Callable[[Batch], Any], batch: Batch) -> tuple[Any, Batch]:
    """What a model returns for the first samples, with its autograd graph, and these samples."""
    few = few_of(batch)
    with torch.enable_grad():
        few = few.apply(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
        return forward(few), few
