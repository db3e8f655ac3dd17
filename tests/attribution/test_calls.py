"""A module that one forward calls several times, read at one of its calls."""

import pytest
import torch
import torch.fx
import torchvision
from torch import nn

from lightning_gradcam import Batch, gradcam, guided_gradcam
from lightning_gradcam.attribution.choice import locate_layers
from lightning_gradcam.attribution.functional import attribute
from lightning_gradcam.attribution.layers import find_layer
from lightning_gradcam.attribution.layout import Tokens, channels_first
from lightning_gradcam.attribution.methods import cam
from lightning_gradcam.attribution.methods import gradcam as weighted
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import predicted
from lightning_gradcam.run.probe import layer_prefixes


class Shared(nn.Module):
    """The usual hand-written form: one ReLU behind every convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 8, 3)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 4)

    def forward(self, images):
        features = self.relu(self.conv1(images))
        features = self.relu(self.conv2(features))
        features = self.relu(self.conv3(features))
        return self.head(features.mean((2, 3)))

    def plain(self):
        """The same network with a ReLU for each convolution."""
        parts = [self.conv1, nn.ReLU(), self.conv2, nn.ReLU(), self.conv3, nn.ReLU()]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.head)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Shared().eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def chosen(model, images):
    """The layouts of the layer that is chosen."""

    def look(model):
        return dict(locate_layers(model, (), None, Batch(images), lambda batch: model(batch.images), predicted).layouts)

    return StandIn(model).look(look)


@pytest.mark.parametrize(("call", "layer"), [(1, "1"), (2, "3"), (3, "5")])
def test_each_call_has_the_map_of_its_own(model, images, call, layer):
    found, expected = gradcam(model, images, f"relu#{call}", 1), gradcam(model.plain(), images, layer, 1)
    assert (expected != 0).any()
    torch.testing.assert_close(found, expected)
    wrapped = nn.ModuleDict({"net": model})
    wrapped.forward = lambda images: model(images)
    assert find_layer(wrapped, f"relu#{call}") == (f"net.relu#{call}", model.relu)


def test_the_last_activation_is_chosen(model, images):
    assert chosen(model, images) == {"relu#3": channels_first}
    assert torch.equal(gradcam(model, images), gradcam(model, images, "relu#3"))
    torch.testing.assert_close(gradcam(model, images), gradcam(model.plain(), images, "5"))


def test_several_calls_in_one_pass(model, images):
    def look(model):
        names = dict.fromkeys(["relu#1", "conv3", "relu#3"])
        return attribute(model, Batch(images), names, lambda batch: model(batch.images), Question(predicted), weighted)

    seen = StandIn(model).look(look)
    for name, maps in seen.maps.items():
        assert torch.equal(maps, gradcam(model, images, name))
    assert layer_prefixes("gradcam", list(seen.maps)) == {
        "gradcam_relu_1": "relu#1",
        "gradcam_conv3": "conv3",
        "gradcam_relu_3": "relu#3",
    }


def test_cam_and_guided_pictures_of_a_call(model, images):
    features = model.plain()[:6](images)
    expected = torch.einsum("k,nkhw->nhw", model.head.weight[2], features).detach()
    torch.testing.assert_close(gradcam(model, images, "relu#3", 2, "cam"), expected)
    with pytest.raises(ValueError, match=r"goes on from `target_layer` 'relu#2' with global average pooling"):
        gradcam(model, images, "relu#2", 2, "cam")
    torch.testing.assert_close(
        guided_gradcam(model, images, "relu#3", 2), guided_gradcam(model.plain(), images, "5", 2)
    )


def test_cam_of_a_call_beside_a_forward_that_ends_the_graph(model, images):
    class Ended(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, images):
            with torch.no_grad():
                features = self.net.relu(self.net.conv1(images))
                features = self.net.relu(self.net.conv2(features))
            return self.net.head(features.mean((2, 3)))

    ended = Ended().eval()
    features = model.plain()[:4](images)
    ended.net.head = nn.Linear(6, 4)
    expected = torch.einsum("k,nkhw->nhw", ended.net.head.weight[2], features).detach()
    torch.testing.assert_close(gradcam(ended, images, "relu#2", 2, cam), expected)


def test_layouts_of_calls_on_unlike_grids():
    class Merging(nn.Module):
        """One norm for 8 x 8 tokens, for 4 x 4 of them and for the vector."""

        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.merge = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.AvgPool2d(2)
            self.head = nn.Linear(6, 3)

        def forward(self, images):
            tokens = self.norm(self.embed(images).flatten(2).mT)
            tokens = self.norm(self.merge(tokens.mT.unflatten(2, (8, 8))).flatten(2).mT)
            return self.head(self.norm(tokens.mean(1)))

    def look(model):
        names = dict.fromkeys(["norm#1", "norm#2"])
        return attribute(model, Batch(images), names, lambda batch: model(batch.images), Question(predicted), weighted)

    torch.manual_seed(0)
    model, images = Merging().eval(), torch.rand(2, 3, 32, 32)
    assert StandIn(model).look(look).layouts == {"norm#1": Tokens((8, 8)), "norm#2": Tokens((4, 4))}
    with pytest.raises(ValueError, match=r"`target_layer` 'norm#3' hands out \(2, 6\).* such as 'merge'"):
        gradcam(model, images, "norm#3")


def test_names_say_which_calls_there_are(model, images):
    with pytest.raises(
        ValueError, match=r"'relu' was called 3 times in one forward pass.* write `relu#3` for the last"
    ):
        gradcam(model, images, "relu")
    with pytest.raises(ValueError, match=r"'relu' was called 3 times"):
        gradcam(model, images, model.relu)
    with pytest.raises(
        ValueError, match=r"'relu#4' asks for call 4, and one forward pass calls that layer 3 times; .*3"
    ):
        gradcam(model, images, "relu#4")
    with pytest.raises(ValueError, match=r"'conv1#2' asks for call 2, and one forward pass calls that layer 1 time;"):
        gradcam(model, images, "conv1#2")
    with pytest.raises(ValueError, match=r"'relu#0' is not a layer of Shared"):
        gradcam(model, images, "relu#0")
    assert torch.equal(gradcam(model, images, "conv1#1", 1), gradcam(model, images, "conv1", 1))


def test_a_network_that_fx_has_traced():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    traced, images = torch.fx.symbolic_trace(model), torch.rand(2, 3, 128, 128)
    assert list(chosen(traced, images)) == ["layer4.1.relu#2"]
    torch.testing.assert_close(gradcam(traced, images), gradcam(model, images, "layer4"))


def test_an_activation_that_blocks_share_does_not_hide_them():
    class Block(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.conv, self.activation = nn.Conv2d(4, 4, 3, padding=1), activation

        def forward(self, features):
            return self.activation(self.conv(features))

    shared = nn.SiLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), Block(shared), Block(shared), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(4, 2))
    assert list(chosen(model, torch.rand(2, 3, 32, 32))) == ["2"]
