"""What a model says of each sample: a class with its probability, or words where it is no classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradcam.attribution.labels import UNKNOWN, labelled
from lightning_gradcam.attribution.sequences import part_of


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of each sample.

    Attributes:
        probabilities: ``(n, classes)`` in [0, 1], on the CPU; two columns for a one-logit head. Softmax, or sigmoid
            for a one-logit head and for classes that do not exclude each other.
        classes: ``(n,)``, the index of the largest probability.
        right: ``(n,)`` int8, 1 where that class is the sample's label or one of its labels, 0 where it is not, -1 where
            that is not known; ``None`` without labels.
    """

    probabilities: Tensor
    classes: Tensor
    right: Tensor | None

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor | None, sigmoid: bool = False) -> Prediction:
        """What logits ``(n, classes)`` say.

        Args:
            scores: The logits.
            labels: As :func:`~lightning_gradcam.attribution.labels.class_labels` gives them.
            sigmoid: Whether each class has a probability of its own, also where a label names one class.
        """
        if scores.shape[1] == 1:
            positive = scores.sigmoid()
            probabilities = torch.cat([1 - positive, positive], 1)
        elif sigmoid or (labels is not None and labels.ndim == 2):
            probabilities = scores.sigmoid()
        else:
            probabilities = scores.softmax(1)
        classes = probabilities.argmax(1)
        right = None
        if labels is not None:
            found = labels if labels.ndim == 1 else labels.gather(1, classes[:, None])[:, 0]
            known = labelled(labels) & ((found != UNKNOWN) | (labels.ndim == 1))
            agrees = found == classes if labels.ndim == 1 else found == 1
            right = torch.where(known, agrees, -1).to(torch.int8)
        return cls(probabilities, classes, right)

    def part(self, rows: slice | list[int]) -> Prediction:
        """What it says of some samples."""
        right = None if self.right is None else self.right[rows]
        return Prediction(self.probabilities[rows], self.classes[rows], right)

    def repeated(self, times: int) -> Prediction:
        """The same with each sample so many times in a row."""
        right = None if self.right is None else self.right.repeat_interleave(times, 0)
        return Prediction(
            self.probabilities.repeat_interleave(times, 0), self.classes.repeat_interleave(times, 0), right
        )


@dataclass(frozen=True)
class Words:
    """What stands in the captions of a model that is no classifier, ``n`` texts each.

    Attributes:
        truth: What is true, beside a sample's label; may be empty.
        said: What the model says.
    """

    truth: list[str]
    said: list[str]

    def part(self, rows: slice | list[int]) -> Words:
        """What stands in the captions of some samples."""
        return Words(part_of(self.truth, rows), part_of(self.said, rows))

    def repeated(self, times: int) -> Words:
        """The same with each sample so many times in a row."""
        return Words(*([text for text in texts for _ in range(times)] for texts in (self.truth, self.said)))
