"""However a model is run, its map is that of the plain model."""

import copy

import peft
import pytest
import torch
import torch.utils.checkpoint
from tiny import Checkpointed, tiny_net
from torch import nn
from torch.nn.utils import parametrizations

from lightning_gradcam import gradcam

LAYER = "5"


@pytest.fixture
def net():
    torch.manual_seed(0)
    return tiny_net().eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def expected(net, images):
    maps = gradcam(net, images, LAYER, target=1)
    assert (maps != 0).flatten(1).any(1).all()
    return maps


def close(maps, expected, tolerance):
    torch.testing.assert_close(maps, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("layer", [LAYER, None])
@pytest.mark.parametrize("part", ["", "4", LAYER])
def test_compiled_whole_in_part_and_the_layer_itself(net, images, expected, layer, part):
    model = copy.deepcopy(net)
    if part:
        setattr(model, part, torch.compile(model.get_submodule(part), backend="eager"))
    else:
        model = torch.compile(model, backend="eager")
    with torch.no_grad():
        model(images)  # compiled before we come
    assert torch.equal(gradcam(model, images, layer, target=1), expected)


def test_batch_norm_of_several_processes(net, images, expected):
    """It trains on GPUs only; we run it as any BatchNorm, in eval mode, where processes exchange nothing."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net).train()
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert torch.equal(gradcam(model, images, LAYER, target=1), expected)
    assert model.training


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("start", [4, 6])
def test_activation_checkpointing(net, images, expected, reentrant, start):
    model = Checkpointed(net, start, reentrant).eval()
    if reentrant and start == 4:
        with pytest.raises(ValueError, match=r"or a re-entrant checkpoint around it, ends the gradient"):
            gradcam(model, images, f"net.{LAYER}", target=1)
    else:
        assert torch.equal(gradcam(model, images, f"net.{LAYER}", target=1), expected)
        if not reentrant:
            assert torch.equal(gradcam(model, images, target=1), expected)


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrized_weights(net, images, wrap):
    wrap(net[4])
    plain = nn.Sequential(*net)
    plain[4] = nn.Conv2d(8, 8, 3, 1, 1)
    plain[4].load_state_dict({"weight": net.eval()[4].weight, "bias": net[4].bias})
    for layer in (LAYER, None):
        ours = gradcam(net, images, layer, target=1)
        assert (ours != 0).any()
        close(ours, gradcam(plain, images, LAYER, target=1), 1e-5)


def test_lora(net, images, expected):
    config = peft.LoraConfig(target_modules=["4", "8"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(net), config).eval()
    with_adapters = [gradcam(adapted, images, layer, target=1) for layer in (f"base_model.model.{LAYER}", None)]
    merged = gradcam(adapted.merge_and_unload(), images, LAYER, target=1)
    for maps in with_adapters:
        close(maps, merged, 1e-5)
    assert (merged - expected).abs().max() > 0.01 * expected.abs().max()


def test_channels_last_memory(net, images, expected):
    model = net.to(memory_format=torch.channels_last)
    for layer in (LAYER, None):
        close(gradcam(model, images.to(memory_format=torch.channels_last), layer, target=1), expected, 1e-5)


def test_double(net, images, expected):
    for layer in (LAYER, None):
        close(gradcam(copy.deepcopy(net).double(), images.double(), layer, target=1), expected, 1e-5)


def test_half_precision_weights(net, images, expected):
    model = copy.deepcopy(net).bfloat16()
    for layer in (LAYER, None):
        close(gradcam(model, images.bfloat16(), layer, target=1), expected, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(net, images, expected, dtype):
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            with torch.autocast("cpu", dtype):
                return self.net(images)

    for layer in (LAYER, None):
        close(gradcam(Cast().eval(), images, layer, target=1), expected, 0.05)


@pytest.mark.parametrize("size", [(224, 224), (32, 96, 96)], ids=str)
@pytest.mark.parametrize("weight", [1.0, 1e4])
def test_float16_loses_nothing_to_the_mean_over_many_cells(size, weight):
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, images):
            with torch.autocast("cpu", torch.float16, enabled=cast):
                return self.head(self.conv(images).relu().flatten(2).mean(2)) * weight

    cast = False
    model, images = Cast().eval(), torch.rand(1, 1, *size)
    expected = gradcam(model, images, "conv", target=1)
    cast = True
    close(gradcam(model, images, "conv", target=1), expected, 3e-3)


def test_frozen(net, images, expected):
    for layer in (LAYER, None):
        assert torch.equal(gradcam(net.requires_grad_(False), images, layer, target=1), expected)


# What models take and return


@pytest.mark.parametrize("form", ["tuple", "list", "mapping", "object"])
def test_forms_of_output(net, images, expected, form):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            logits = self.net(images)
            forms = {"tuple": (logits, 1), "list": [logits], "mapping": {"logits": logits}, "object": Output(logits)}
            return forms[form]

    for layer in (LAYER, None):
        assert torch.equal(gradcam(Wrapped(), images, layer, target=1), expected)


def test_a_layer_that_returns_a_tuple(net, images, expected):
    class Block(nn.Module):
        """As transformer blocks do that hand out their attention too."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, features):
            return self.inner(features), None

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.rest = Block(net[:6]), net[6:]

        def forward(self, images):
            return self.rest(self.block(images)[0])

    assert torch.equal(gradcam(Chain(), images, "block", target=1), expected)
    assert torch.equal(gradcam(Chain(), images, target=1), expected)
