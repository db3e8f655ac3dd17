"""Names to modules, and the automatic choice on every kind of torchvision CNN."""

import pytest
import torch
import torchvision
from torch import nn

from lightning_gradcam import gradcam
from lightning_gradcam.layers import check_layers, find_layer, last_map_layer


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)


@pytest.fixture(scope="module")
def resnet():
    return Wrapper(torchvision.models.resnet18(weights=None))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("model.layer4", "model.layer4"),
        ("layer4", "model.layer4"),
        ("layer4[-1]", "model.layer4.1"),
        ("model.layer4[0].conv2", "model.layer4.0.conv2"),
        ("layer4.1.bn2", "model.layer4.1.bn2"),
    ],
)
def test_finds_by_name(resnet, layer, name):
    assert find_layer(resnet, layer) == (name, resnet.get_submodule(name))


def test_counts_the_children_of_a_container_with_names():
    blocks = nn.Sequential()
    for name in ("block_0", "block_1", "block_2"):
        blocks.add_module(name, nn.Sequential(nn.ReLU()))
    model = nn.ModuleDict({"blocks": blocks})
    assert find_layer(model, "blocks[-1]") == ("blocks.block_2", blocks[2])
    assert find_layer(model, "blocks[1][0]") == ("blocks.block_1.0", blocks[1][0])


def test_finds_a_module(resnet):
    assert find_layer(resnet, resnet.model.layer3) == ("model.layer3", resnet.model.layer3)


def test_finds_inside_a_compiled_model(resnet):
    compiled = Wrapper(torch.compile(resnet.model))
    assert find_layer(compiled, "model.layer4") == ("model.layer4", resnet.model.layer4)
    assert find_layer(compiled, "layer4[-1]") == ("model.layer4.1", resnet.model.layer4[1])
    assert find_layer(torch.compile(resnet), "layer4") == ("model.layer4", resnet.model.layer4)
    layer = nn.Sequential(torch.compile(resnet.model.layer4))
    assert find_layer(layer, layer[0]) == ("0", resnet.model.layer4)


def test_unknown_name_answers_with_the_three_closest(resnet):
    message = r"`target_layer` 'model.layer5' is not a layer of Wrapper; the closest names are '.*', '.*', '[^,]*'$"
    with pytest.raises(ValueError, match=message) as error:
        find_layer(resnet, "model.layer5")
    assert "'model.layer4'" in str(error.value)
    with pytest.raises(ValueError, match=r"'layer4.-7.' is not a layer of Wrapper"):
        find_layer(resnet, "layer4[-7]")


def test_foreign_module(resnet):
    with pytest.raises(ValueError, match="`target_layer` Conv2d is not a part of Wrapper; pass a module of the model"):
        find_layer(resnet, nn.Conv2d(1, 1, 1))


def test_ambiguous_name():
    model = nn.ModuleDict({"student": nn.Sequential(nn.ReLU()), "teacher": nn.Sequential(nn.ReLU())})
    with pytest.raises(ValueError, match=r"`target_layer` '0' may mean student.0 or teacher.0; give the full name"):
        find_layer(model, "0")


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (3, TypeError, "`target_layer` must be a name, a module or a sequence of these, got 3"),
        ("", TypeError, "`target_layer` must be a name, a module or a sequence of these, got ''"),
        (["layer4", 4], TypeError, "`target_layer` must be a name, a module or a sequence of these, got 4"),
        ([], ValueError, "`target_layer` must name at least one layer"),
        (["layer4", "layer4"], ValueError, "and none twice"),
    ],
)
def test_refuses_what_names_no_layer(layers, error, message):
    with pytest.raises(error, match=message):
        check_layers(layers)


AUTOMATIC = {
    "alexnet": "features",
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_y_400mf": "trunk_output",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "classifier.2",
    "vgg11": "features",
}


@pytest.mark.parametrize("name", AUTOMATIC)
def test_automatic_choice(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    images = torch.rand(1, 3, 160, 160) if name == "inception_v3" else torch.rand(1, 3, 96, 96)
    training = [module.training for module in model.modules()]
    found, _ = last_map_layer(Wrapper(model), lambda: model(images))
    assert found == f"model.{AUTOMATIC[name]}"
    assert [module.training for module in model.modules()] == training
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(gradcam(model, images, target=1), gradcam(model, images, AUTOMATIC[name], target=1))


def test_no_map_no_guess():
    with pytest.raises(
        ValueError, match=r'no layer of Sequential that hands out a map.*name one by `target_layer="..."`'
    ):
        gradcam(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(1, 3, 4, 4))
    transformer = torchvision.models.VisionTransformer(32, 8, 1, 2, 8, 16, num_classes=2)
    with pytest.raises(ValueError, match="no layer of VisionTransformer that hands out a map"):
        gradcam(transformer, torch.rand(1, 3, 32, 32))


def test_layer_without_a_spatial_map():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    for layer, shape in (("1", r"\(1, 4, 1, 1\)"), ("2", r"\(1, 4\)")):
        with pytest.raises(ValueError, match=rf"`target_layer` '{layer}' hands out {shape}, expected a spatial map"):
            gradcam(model, torch.rand(1, 3, 8, 8), layer, 0)
