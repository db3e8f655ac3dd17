"""What is asked of a model, and how its output is read for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch, few_of
from lightning_gradcam.attribution.labels import class_labels
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
from lightning_gradcam.attribution.reading import Path, item, structure
from lightning_gradcam.attribution.targets import Target, predicted, reads_logits, score, target_classes
from lightning_gradcam.attribution.tasks import EmbeddingTarget, RegressionTarget, SegmentationTarget


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

    def to_reading(self, forward: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        """A forward that hands on what the target reads."""
        answer = self.to_answer(forward)
        return lambda batch: self._read(answer(batch))

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

    def tried_on(self, forward: Callable[[Batch], Any], batch: Batch) -> Question:
        """The same for probabilities, where a forward of the first samples proves to give some."""
        output, few = first_look(forward, batch)
        return self.with_activation_of(Answer(output, self.find(output, len(few.images))))

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
    if reads_logits(target):
        question = question.tried_on(forward, batch)
    return question.to_reading(forward) if question.activation else forward, question.has_sigmoid


def first_look(forward: Callable[[Batch], Any], batch: Batch) -> tuple[Any, Batch]:
    """What a model returns for the first samples, with its autograd graph, and these samples."""
    few = few_of(batch)
    with torch.enable_grad():
        few = few.apply(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
        return forward(few), few
