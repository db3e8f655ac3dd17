"""What is asked of a model, and how its output is read for it: decided once, from the first output and the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch, few_of
from lightning_gradcam.attribution.labels import NoClassesError, class_labels, labelled, name_one_class
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
from lightning_gradcam.attribution.reading import AskError, Path, item, items_of, structure
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
            return None, None

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
            labels: Whether some sample has a label.
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
    if found is None or (question.path and reads_logits(target) and _holds_pictures(output, few.images)):
        if not reads_logits(target):
            return Asked(replace(question, path=None), batch)
        raise AskError(
            f"no logits (n, classes) in the model's output, got {structure(output)}; pass a function "
            "`(output, batch) -> scores (n,)` as `target`",
            **_function_to_paste(output, n),
        )
    if not isinstance(target, (RegressionTarget, EmbeddingTarget)):
        question = replace(question, activation=activation_of(found))
    if found.ndim == 4 and target is label:
        return _ask_pixels(question, found, batch, main_classes, classes.number, restored)
    if not reads_logits(target):
        return _ask_value(question, batch, main_classes)
    if found.ndim == 4:
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
        batch = replace(batch, multilabel=not name_one_class(batch.labels))  # the same for every part of it
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


_FAR_MORE = 4  # times as many columns as there are classes
_MADE_BY = {SIGMOID: "sigmoid", LOG_ODDS: "softmax or sigmoid"}


def predict(output: Any, batch: Batch, sigmoid: bool = False) -> Prediction | None:
    """Read the predictions from a model's output; ``None`` where it holds no logits ``(n, classes)``.

    Args:
        output: What the model returned.
        batch: The samples.
        sigmoid: Whether each class has a probability of its own, whatever the labels.
    """
    question = Question(predicted)
    logits, labels = question.predict(Answer(output, question.find(output, len(batch.images))), batch)
    return None if logits is None else Prediction.of(logits.cpu(), None if labels is None else labels.cpu(), sigmoid)


def reading_logits(
    forward: Callable[[Batch], Any], target: Target, batch: Batch
) -> tuple[Callable[[Batch], Any], bool]:
    """A forward that hands on logits to a target that reads them, also where the model returns probabilities.

    Args:
        forward: Runs the model.
        target: What is asked.
        batch: Samples to find out with.

    Returns:
        The forward, and whether each class has a probability of its own.
    """
    question = Question(target)
    if not reads_logits(target):
        return forward, False
    output, few = first_look(forward, batch)
    question = question.with_activation_of(question.to_answer(lambda few: output)(few))
    if not question.activation:
        return forward, False
    answer = question.to_answer(forward)
    return lambda batch: answer(batch).logits, question.has_sigmoid


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
