"""Scores and predictions from every form of output."""

from types import SimpleNamespace

import pytest
import torch

from lightning_gradcam import Batch
from lightning_gradcam.attribution.question import predict
from lightning_gradcam.attribution.targets import as_target

LOGITS = torch.tensor([[1.0, 5.0, 2.0], [4.0, -1.0, 3.0]])


def batch(labels=None):
    return Batch(torch.zeros(2, 3, 4, 4), None if labels is None else torch.tensor(labels))


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, "hidden states"),
        [LOGITS],
        {"logits": LOGITS, "loss": 0},
        SimpleNamespace(logits=LOGITS),
        ({"logits": LOGITS},),
    ],
    ids=["tensor", "tuple", "list", "mapping", "attribute", "mapping in a tuple"],
)
def test_finds_the_logits(output):
    assert as_target("label")(output, batch([1, 2])).tolist() == [5, 3]
    assert as_target("predicted")(output, batch()).tolist() == [5, 4]
    assert as_target(2)(output, batch()).tolist() == [2, 3]
    assert predict(output, batch()).classes.tolist() == [1, 0]


def test_column_of_labels():
    assert as_target("label")(LOGITS, batch([[1], [2]])).tolist() == [5, 3]


def test_multi_hot_labels():
    labels = [[1, 1, 0], [0, 0, 1]]
    assert as_target("label")(LOGITS, batch(labels)).tolist() == [6, 3]
    prediction = predict(LOGITS, batch(labels))
    torch.testing.assert_close(prediction.probabilities, LOGITS.sigmoid())
    assert prediction.right.tolist() == [True, False]


@pytest.mark.parametrize("shape", [(2, 1), (2,)])
def test_one_logit_head(shape):
    output = torch.tensor([3.0, -2.0]).reshape(shape)
    assert as_target("label")(output, batch([1, 0])).tolist() == [3, 2]
    assert as_target("label")(output, batch([0.0, 1.0])).tolist() == [-3, -2]
    assert as_target("predicted")(output, batch()).tolist() == [3, 2]
    assert as_target(0)(output, batch()).tolist() == [-3, 2]
    assert as_target(1)(output, batch()).tolist() == [3, -2]
    prediction = predict(output, batch([1, 1]))
    assert prediction.classes.tolist() == [1, 0]
    assert prediction.right.tolist() == [True, False]
    torch.testing.assert_close(prediction.probabilities.sum(1), torch.ones(2))


def test_one_sample_whose_logits_lost_their_batch_dimension():
    one = Batch(torch.zeros(1, 3, 4, 4), torch.tensor([1]))
    assert as_target("label")(LOGITS[0], one).tolist() == [5]
    assert as_target("label")(torch.tensor(3.0), one).tolist() == [3]


def test_softmax_by_hand():
    prediction = predict(torch.tensor([[1.0, 1.0], [1.0, 3.0]]).log(), batch([0, 0]))
    torch.testing.assert_close(prediction.probabilities, torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    assert prediction.right.tolist() == [True, False]


def test_no_prediction_from_other_outputs():
    assert predict(torch.zeros(2, 3, 4, 4), batch()) is None
    assert predict("text", batch()) is None


@pytest.mark.parametrize(
    ("target", "output", "labels", "message"),
    [
        ("label", LOGITS, None, '`target="label"` needs labels and the batch has none; give `labels`'),
        ("label", LOGITS, [1, 3], "label 3 is outside the model's 3 classes, 0 to 2"),
        ("label", LOGITS, [-2, 0], "label -2 is outside the model's 3 classes, 0 to 2, at #0"),
        ("label", LOGITS, [0.5, 0], "label 0.5 is outside the model's 3 classes"),
        ("label", torch.zeros(2, 1), [0, 2], "label 2 is outside the model's 2 classes, 0 to 1"),
        ("label", LOGITS, [[1, 0], [0, 1]], r"multi-hot labels \(2, 2\) do not match the model's 3 outputs"),
        (3, LOGITS, None, "`target` 3 is outside the model's 3 classes, 0 to 2"),
        ("label", torch.zeros(2, 3, 4, 4), [0, 0], r"no logits \(2, classes\) in the model's output, got tensor"),
        ("predicted", "text", None, r"no logits \(2, classes\) in the model's output, got str; pass a function"),
    ],
)
def test_errors_in_words(target, output, labels, message):
    with pytest.raises(ValueError, match=message):
        as_target(target)(output, batch(labels))


def test_refuses_what_is_no_target():
    with pytest.raises(ValueError, match=r"`target` must be one of \['label', 'predicted'\].*got 'labels'"):
        as_target("labels")
    with pytest.raises(ValueError, match="`target` as a class index must be at least 0, got -1"):
        as_target(-1)
    for wrong in (True, 1.5):
        with pytest.raises(TypeError, match=f"`target` must be one of .* got {type(wrong).__name__}"):
            as_target(wrong)
