"""Which weights lie above a layer: those of modules that are called only once it has been left."""

import pytest
import torch
from torch import nn

from lightning_gradcam.metrics.randomization import parameters_above


class Net(nn.Module):
    """A head under two names, a block that is called on both sides of the mixing, and an own weight of the model."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.stem = nn.Linear(4, 4)
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.stem.weight
        self.unused = nn.Linear(4, 4)
        self.parts = nn.ModuleDict({"head": nn.Sequential(nn.Linear(4, 2))})
        self.head = self.parts["head"]

    def forward(self, tokens):
        tokens = self.block(self.stem(tokens))
        tokens = self.block(self.mix(tokens, tokens, tokens)[0])
        return self.scale * self.head(self.tied(self.recurrent(tokens)[0])[:, 0])


RECURRENT = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
ABOVE = ["parts.head.0.weight", "parts.head.0.bias", "tied.bias", *(f"recurrent.{name}" for name in RECURRENT)]
MIX = ["mix.in_proj_weight", "mix.in_proj_bias", "mix.out_proj.weight", "mix.out_proj.bias"]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("recurrent", ABOVE[:3]),
        ("mix", ABOVE),
        ("block#1", ABOVE + MIX),
        ("block#2", ABOVE),
        ("stem", [*ABOVE, *MIX, "block.0.weight", "block.0.bias"]),
        ("head", []),
    ],
)
def test_weights_of_what_is_called_only_after_the_layer(layer, expected):
    net = Net()
    found = parameters_above(net, layer, lambda: net(torch.rand(1, 3, 4)))
    names = {parameter: name for name, parameter in net.named_parameters()}
    assert sorted(names[one] for one in found) == sorted(expected)
    assert [names[one] for one in found][:2] == expected[:2]  # those nearest the output come first
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
