"""Where logits lie in an output, and outputs that are probabilities already."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_net
from torch import nn

from lightning_gradcam import EmbeddingTarget, gradcam
from lightning_gradcam.attribution.outputs import LOG_ODDS, SIGMOID, SOFTMAX, activation_of, find_logits
from lightning_gradcam.attribution.reading import item

LOGITS, VECTORS, MAPS = torch.rand(2, 3), torch.rand(2, 5), torch.rand(2, 3, 4, 4)


@dataclass
class Output:
    logits: torch.Tensor
    embedding: torch.Tensor


@pytest.mark.parametrize(
    ("output", "classes", "expected"),
    [
        (LOGITS, None, LOGITS),
        ((LOGITS, VECTORS), None, LOGITS),
        ((VECTORS, LOGITS), 3, LOGITS),
        ((VECTORS, LOGITS), None, VECTORS),
        ((VECTORS, LOGITS), 7, VECTORS),
        ((VECTORS, {"logits": LOGITS}), None, LOGITS),
        (Output(LOGITS, VECTORS), None, LOGITS),
        (SimpleNamespace(logits=LOGITS, hidden=VECTORS), None, LOGITS),
        ({"embedding": VECTORS, "logits": LOGITS}, None, LOGITS),
        (({"logits": LOGITS}, VECTORS), None, LOGITS),
        ({"anything": LOGITS, "loss": torch.tensor(1.0)}, None, LOGITS),
        ({"a": VECTORS, "b": LOGITS}, 3, LOGITS),
        ((MAPS, LOGITS), None, LOGITS),
        ({"out": MAPS, "aux": MAPS + 1}, None, MAPS),
        ([MAPS, MAPS + 1], None, MAPS),
        (LOGITS[..., None, None], None, LOGITS[..., None, None]),
    ],
)
def test_logits_are_found(output, classes, expected):
    assert torch.equal(item(output, find_logits(output, 2, classes)), expected)


@pytest.mark.parametrize(
    "output",
    [
        {"a": VECTORS, "b": LOGITS},
        (MAPS, VECTORS, LOGITS),
        {"logits_per_image": LOGITS, "embedding": VECTORS},
        torch.rand(2, 7, 5),
        "text",
        [],
        {"loss": torch.rand(())},
    ],
)
def test_where_several_may_be_meant_or_none_is_there_nothing_is_found(output):
    assert find_logits(output, 2) is None


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda z: z, ""),
        (lambda z: z.relu(), ""),
        (lambda z: z.clamp(0, 1), ""),
        (lambda z: z.sigmoid(), SIGMOID),
        (lambda z: torch.sigmoid(z)[:, :, None].squeeze(2).clamp(1e-6, 1).float(), SIGMOID),
        (lambda z: nn.Softmax(1)(z).reshape(2, 3), SOFTMAX),
        (lambda z: z.softmax(1)[:, 1], LOG_ODDS),
        (lambda z: z.softmax(1).T.contiguous().T, LOG_ODDS),
        (lambda z: z.log_softmax(1), ""),
        (lambda z: z.sigmoid().narrow(1, 0, 3), SIGMOID),
        (lambda z: z.sigmoid().narrow(1, 1, 2), LOG_ODDS),
        (lambda z: z.sigmoid()[:, ::2], LOG_ODDS),
        (lambda z: z * z.sigmoid(), ""),
        (lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2, LOG_ODDS),  # an ensemble
        (lambda z: torch.stack([z.softmax(1), z.softmax(1)]).mean(0), LOG_ODDS),
        (lambda z: torch.cat([1 - z[:, :1].sigmoid(), z[:, :1].sigmoid()], 1), LOG_ODDS),
        (lambda z: z.softmax(1).unbind(1)[1], LOG_ODDS),
        (lambda z: z.log_softmax(1).exp(), LOG_ODDS),
        (lambda z: z.sigmoid() * 0.999 + 5e-4, LOG_ODDS),
        (lambda z: 7 * z.sigmoid() + 2, ""),  # no probabilities any more
        (lambda z: z.sigmoid() + z, ""),
    ],
)
def test_probabilities_are_told_by_the_operation_that_made_them(function, expected):
    assert activation_of(function(LOGITS.clone().requires_grad_())) == expected
    assert activation_of(LOGITS.softmax(1)) == ""  # no graph tells


class Ending(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.net, self.function = tiny_net().eval(), function

    def forward(self, images):
        return self.function(self.net(images))


@pytest.mark.parametrize("layer", [None, "net.5"])
@pytest.mark.parametrize(
    "function",
    [
        lambda z: z.softmax(1),
        lambda z: torch.softmax(z, 1).clamp(1e-3, 1),
        torch.sigmoid,
        lambda z: z.clone().sigmoid_(),
        nn.Sequential(nn.Softmax(1), nn.Unflatten(1, (3, 1)), nn.Flatten()),
    ],
)
def test_the_map_of_probabilities_is_that_of_the_logits_they_were_made_of(function, layer):
    torch.manual_seed(0)
    model, images = Ending(function).eval(), torch.rand(2, 3, 16, 16)
    for target in (1, "predicted", [0, 2]):
        torch.testing.assert_close(
            gradcam(model, images, layer, target),
            gradcam(model.net, images, layer and "5", target),
            rtol=1e-4,
            atol=1e-6,
        )


def test_the_map_of_a_column_of_probabilities_is_that_of_their_log_odds():
    torch.manual_seed(0)
    model, images = Ending(lambda z: z.softmax(1)[:, 1]).eval(), torch.rand(2, 3, 16, 16)

    def log_odds(output, batch):
        return output[:, 1] - output[:, [0, 2]].logsumexp(1)

    expected = gradcam(model.net, images, "5", log_odds)
    torch.testing.assert_close(gradcam(model, images, "net.5", 1), expected, rtol=1e-4, atol=1e-6)


def test_a_target_of_the_users_own_gets_what_the_model_returns():
    model, images = Ending(lambda z: z.softmax(1)).eval(), torch.rand(2, 3, 16, 16)
    seen = []
    gradcam(model, images, "net.5", lambda output, batch: seen.append(output.detach()) or output[:, 0])
    torch.testing.assert_close(seen[-1].sum(1), torch.ones(2))
    gradcam(model, images, "net.5", EmbeddingTarget())
