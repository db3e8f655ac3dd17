"""Labels of every form, and samples without any."""

import pytest
import torch

from lightning_gradcam import Batch
from lightning_gradcam.attribution.labels import UNKNOWN, NoClassesError, class_labels, labelled
from lightning_gradcam.attribution.names import NO_LABEL
from lightning_gradcam.attribution.prediction import Prediction
from lightning_gradcam.attribution.targets import label

NAN = float("nan")


def batch(labels, multilabel=None):
    labels = torch.tensor(labels)
    return Batch(torch.zeros(len(labels), 3, 4, 4), labels, multilabel=multilabel)


@pytest.mark.parametrize(
    ("labels", "outputs", "expected"),
    [
        ([2, 0], 3, [2, 0]),
        ([[2], [0]], 3, [2, 0]),
        ([2.0, 0.0], 3, [2, 0]),
        ([-1, 2], 3, [NO_LABEL, 2]),
        ([-100, 2], 3, [NO_LABEL, 2]),
        ([NAN, 2.0], 3, [NO_LABEL, 2]),
        ([1, 0], 1, [1, 0]),
        ([-1, 1], 1, [0, 1]),  # of a hinge loss
        ([0.05, 0.95, 0.05], 1, [0, 1, 0]),  # smoothed
        ([-1, 0, 1], 1, [NO_LABEL, 0, 1]),
        ([[0, 0, 1], [1, 0, 0]], 3, [2, 0]),
        ([[0.025, 0.925, 0.05]], 3, [1]),  # smoothed
        ([[0.3, 0.0, 0.7]], 3, [2]),  # mixed
        ([[1, 1, 0], [0, 0, 0]], 3, [[1, 1, 0], [0, 0, 0]]),
        ([[1, -1, 0], [0, 1, -100]], 3, [[1, UNKNOWN, 0], [0, 1, UNKNOWN]]),
        ([[1.0, NAN, 0.0]], 3, [[1, UNKNOWN, 0]]),
        ([[0.05, 0.95, 0.95]], 3, [[0, 1, 1]]),  # smoothed, of several classes
        ([[True, True]], 2, [[1, 1]]),
        ([-1.0, 1.0, NAN], 1, [0, 1, NO_LABEL]),
        ([[0, 0, 1], [-1, -1, -1]], 3, [2, NO_LABEL]),
        ([True, False], 2, [1, 0]),
        ([True, False], 1, [1, 0]),
    ],
)
def test_by_hand(labels, outputs, expected):
    found = class_labels(batch(labels), outputs)
    assert found.tolist() == expected
    again = Batch(torch.zeros(len(found), 3, 4, 4), found, multilabel=found.ndim == 2)
    assert torch.equal(class_labels(again, outputs), found)


def test_labels_of_bytes_and_of_half_precision():
    images = torch.zeros(2, 3, 4, 4)
    assert class_labels(Batch(images, torch.tensor([254, 7], dtype=torch.uint8)), 300).tolist() == [254, 7]
    mixed = torch.tensor([[0.3, 0.7, 0.0], [0.9, 0.05, 0.05]], dtype=torch.bfloat16)
    assert class_labels(Batch(images, mixed), 3).tolist() == [1, 0]


def test_what_a_row_means_can_be_said():
    assert class_labels(batch([[0, 1], [1, 0]], multilabel=True), 2).tolist() == [[0, 1], [1, 0]]
    assert class_labels(batch([[0.2, 0.6, 0.9]], multilabel=True), 3).tolist() == [[0, 1, 1]]
    assert class_labels(batch([[0, 1], [0, 0]], multilabel=False), 2).tolist() == [1, NO_LABEL]


@pytest.mark.parametrize(
    ("labels", "outputs", "error", "message"),
    [
        ([1, 5], 3, ValueError, "label 5 is outside the model's 3 classes, 0 to 2, at #1"),
        ([1.5, 0.0], 3, NoClassesError, "label 1.5 is outside .* give `target=RegressionTarget"),
        ([24, 31], 1, NoClassesError, "label 24 is outside the model's 2 classes.* give `target=RegressionTarget"),
        ([[4.0, 12.0]], 2, NoClassesError, r"from 4 to 12 name no classes.*RegressionTarget\(column=0\)"),
        ([[0.2, 0.6, 0.9]], 3, NoClassesError, r"may be classes or coordinates.*Batch\(..., multilabel=True\)"),
        ([[1, 0]], 3, ValueError, r"multi-hot labels \(1, 2\) do not match the model's 3 outputs"),
    ],
)
def test_what_names_no_class_is_refused(labels, outputs, error, message):
    with pytest.raises(error, match=message):
        class_labels(batch(labels), outputs)


def test_samples_without_a_label_are_asked_for_what_is_predicted():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, -1.0, 3.0]])
    assert label(logits, batch([-1, 2])).tolist() == [5, 3]
    assert label(logits, batch([[0, 0, 0], [1, 0, 1]])).tolist() == [5, 7]
    assert label(torch.tensor([[-3.0], [2.0]]), batch([-100, 0])).tolist() == [3, -2]
    for labels, expected in (([-1, 2], [-1, 0]), ([[0, 0, 0], [1, 0, 1]], [-1, 1]), ([[0, -1, 1], [1, 0, 0]], [-1, 1])):
        found = class_labels(batch(labels, multilabel=isinstance(labels[0], list)), 3)
        assert Prediction.of(logits, found).right.tolist() == expected


def test_which_samples_have_a_label():
    assert labelled(torch.tensor([1, NO_LABEL, 0])).tolist() == [True, False, True]
    assert labelled(torch.tensor([0.5, NAN])).tolist() == [True, False]
    assert labelled(torch.tensor([[0, 0], [0, 1], [UNKNOWN, 0]])).tolist() == [False, True, False]
