"""Grad-CAM's weights in words."""

import pytest
import torch
from captum.attr import LayerActivation
from torch import nn

from lightning_gradcam import explain, gradcam, neuron_importance

NAMES = ["fur", "ear", "sky", "wheel", "door"]


def test_by_hand():
    (one,) = explain(torch.tensor([[0.5, -1.0, 0.0, 3.0, -0.25]]), NAMES, k=2)
    assert one.strongest == [("wheel", 3), ("fur", 0.5)]
    assert one.weakest == [("ear", -1), ("door", -0.25)]
    assert str(one) == "strongest: wheel +3, fur +0.5; weakest: ear -1, door -0.25"


def test_no_channel_is_on_both_sides():
    (one,) = explain(torch.tensor([[1.0, 2.0, 3.0]]))
    assert one.strongest == [("channel 2", 3), ("channel 1", 2)]
    assert one.weakest == [("channel 0", 1)]
    (single,) = explain(torch.tensor([[1.0]]), ["it"])
    assert (single.strongest, single.weakest) == ([("it", 1)], [])


@pytest.mark.parametrize(
    ("alpha", "options", "message"),
    [
        (torch.zeros(3), {}, r"`alpha` must be \(n, channels\), got \(3,\)"),
        (torch.zeros(1, 5), {"names": NAMES[:4]}, "`names` must name 5 channels, got 4"),
        (torch.zeros(1, 5), {"k": 0}, "`k` must be a whole number of at least 1, got 0"),
        (torch.full((1, 5), torch.nan), {}, "`alpha` holds NaN"),
    ],
)
def test_refusals(alpha, options, message):
    with pytest.raises(ValueError, match=message):
        explain(alpha, **options)


def test_importance_is_the_mean_gradient_and_makes_the_map():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4)).eval()
    images = torch.rand(2, 3, 8, 8)
    alpha = neuron_importance(model, images, "1", [1, 3])
    assert alpha.shape == (2, 2, 5)
    weights = model[3].weight.unflatten(1, (5, 36)).mean(2)
    torch.testing.assert_close(alpha, weights[[1, 3]].detach().expand(2, 2, 5))
    activations = LayerActivation(model, model[1]).attribute(images)
    expected = torch.einsum("njk,nkhw->njhw", alpha, activations).detach()
    torch.testing.assert_close(gradcam(model, images, "1", [1, 3]), expected)
    assert neuron_importance(model, images, "1", 1).shape == (2, 5)
    assert explain(alpha[:, 0], NAMES)[0].strongest[0][0] == NAMES[int(weights[1].argmax())]
