"""The engine against captum, and the model as it was afterwards."""

import pytest
import torch
import torch.utils.checkpoint
import torchvision
from captum.attr import LayerGradCam
from tiny import Checkpointed, Restless, mixed_model, tiny_net, untouched
from torch import nn

from lightning_gradcam import gradcam
from lightning_gradcam.attribution.capture import capture
from lightning_gradcam.attribution.functional import copied_at_once
from lightning_gradcam.attribution.stand_in import StandIn

CNNS = {
    "alexnet": "features",
    "densenet121": "features.denseblock4",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_y_400mf": "trunk_output",
    "resnet18": "layer4",
    "resnext50_32x4d": "layer3",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "features",
    "vgg11_bn": "features",
    "convnext_tiny": "features",
}


def build(name):
    options = {"init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options).eval()


@pytest.mark.parametrize("name", CNNS)
def test_signed_maps_equal_captum(name):
    model, images, label = build(name), torch.rand(2, 3, 96, 96), torch.tensor([3, 7])
    ours = gradcam(model, images, CNNS[name], target=lambda output, batch: output[[0, 1], label])
    layer = model.get_submodule(CNNS[name])
    theirs = LayerGradCam(model, layer).attribute(images, label, relu_attributions=False)[:, 0]
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * theirs.abs().max().item())


def test_map_sums_to_the_logit_less_the_bias():
    model, images = build("resnet18"), torch.rand(3, 3, 64, 64)
    signed = gradcam(model, images, "layer4", target=4)
    with torch.no_grad():
        logit = model(images)[:, 4]
    torch.testing.assert_close(signed.sum((1, 2)) + model.fc.bias[4], logit, rtol=1e-5, atol=1e-5)


def test_hand_worked_map():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1)
        model[3].weight[:] = torch.tensor([[8.0, 4.0], [0.0, 4.0]])
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    # Activations x and -2x; each of 4 cells has gradient weight / 4, that is 2 and 1 for class 0: 2x - 2x = 0.
    assert gradcam(model, images, "0", target=0).tolist() == [[[0, 0], [0, 0]]]
    # Class 1 has weights 0 and 4: 1 * -2x.
    assert gradcam(model, images, "0", target=1).tolist() == [[[-2, -4], [-6, -8]]]


def test_samples_do_not_depend_on_their_batch():
    model, images = build("resnet18"), torch.rand(3, 3, 64, 64)
    together = gradcam(model, images, "layer4", target=1)
    alone = torch.cat([gradcam(model, image[None], "layer4", target=1) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)


def test_several_layers_in_one_pass_equal_separate_passes():
    model, images = build("resnet18"), torch.rand(2, 3, 64, 64)
    names = ["layer2", "layer4.0", "layer4"]

    def run(*layers):
        def look(model):
            found = {name: model.get_submodule(name) for name in layers}
            return capture(found, lambda: model(images), lambda output: output[:, 0])

        return StandIn(model).look(look)

    together = run(*names)
    for name in names:
        alone = run(name)
        assert torch.equal(together.activations[name], alone.activations[name])
        assert torch.equal(together.gradients[name], alone.gradients[name])


def test_fully_frozen_model():
    model, images = tiny_net().eval(), torch.rand(2, 3, 16, 16)
    expected = gradcam(model, images, "4", target=0)
    assert torch.equal(gradcam(model.requires_grad_(False), images, "4", target=0), expected)


def test_in_place_relu_after_the_layer():
    inplace, plain = tiny_net().eval(), tiny_net().eval()
    plain.load_state_dict(inplace.state_dict())
    plain[5] = nn.ReLU()
    images = torch.rand(2, 3, 16, 16)
    ours = gradcam(inplace, images, "4", target=0)
    assert torch.equal(ours, gradcam(plain, images, "4", target=0))
    assert (ours < 0).any()


class Frozen(nn.Module):
    """A backbone under ``no_grad``, with the layer inside or before it."""

    def __init__(self, context=torch.no_grad):
        super().__init__()
        self.net = tiny_net()
        self.context = context

    def forward(self, images):
        with self.context():
            features = self.net[:6](images)
        return self.net[6:](features)


def test_layer_inside_a_no_grad_block():
    model, images = Frozen().eval(), torch.rand(2, 3, 16, 16)
    assert torch.equal(gradcam(model, images, "net[4]", target=0), gradcam(model.net, images, "4", target=0))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_after_the_layer(reentrant):
    model, images = Checkpointed(tiny_net(), 6, reentrant).eval(), torch.rand(2, 3, 16, 16)
    assert torch.equal(gradcam(model, images, "net[4]", target=0), gradcam(model.net, images, "4", target=0))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_compiled_model_is_run_uncompiled():
    model, images = tiny_net().eval(), torch.rand(2, 3, 16, 16)
    expected = gradcam(model, images, "4", target=0)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(images)
    assert torch.equal(gradcam(compiled, images, "4", target=0), expected)


def test_one_channel_and_half_precision_weights():
    model = tiny_net(channels=1).eval().to(torch.bfloat16)
    signed = gradcam(model, torch.rand(1, 1, 16, 16).to(torch.bfloat16), "4", target=0)
    assert signed.dtype == torch.float32
    assert signed.shape == (1, 8, 8)
    assert signed.isfinite().all()


def test_in_inference_mode():
    model, images = tiny_net().eval(), torch.rand(2, 3, 16, 16)
    expected = gradcam(model, images, "4", target=0)
    with torch.inference_mode():
        assert torch.equal(gradcam(model, images, "4", target=0), expected)


# What is left behind


def test_leaves_no_trace():
    model = mixed_model()
    with untouched(model):
        gradcam(model, torch.rand(2, 3, 16, 16, generator=torch.Generator()), "4", target=0)


def test_restores_all_state_and_random_states():
    model, images = Restless(), torch.rand(2, 3, 16, 16)
    before = model.state()
    with untouched(model):
        gradcam(model, images, "net[4]", target=0)
    assert model.state() == before
    assert not hasattr(model, "new")
    model(images)  # the counter-check: this forward does change what is compared
    assert model.count == model.total == model.calls == 1
    assert model.seen == [1]
    assert (model.counts, list(model.recent), model.table.tolist()) == ({"forward": 1}, [2, 3], [1, 1])


def test_sparse_buffers_and_buffers_that_grow():
    class Bank(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net()
            self.register_buffer("mixing", torch.eye(3).to_sparse())
            self.register_buffer("bank", torch.ones(2))

        def forward(self, images):
            self.bank.resize_(4).fill_(3)
            return torch.sparse.mm(self.mixing, self.net(images).T).T

    model = Bank().train()
    assert (gradcam(model, torch.rand(2, 3, 16, 16)) != 0).any()
    assert model.bank.tolist() == [1, 1]
    assert all(module.training for module in model.modules())


def test_labels_and_what_no_trainer_is_there_to_say():
    model, images = tiny_net().eval(), torch.rand(4, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 1])
    expected = torch.cat(
        [gradcam(model, image[None], "5", int(one)) for image, one in zip(images, labels, strict=True)]
    )
    torch.testing.assert_close(gradcam(model, images, target="label", labels=labels), expected)
    with pytest.raises(ValueError, match="`grid` says how the output of a named layer lies"):
        gradcam(model, images, grid=(8, 8))
    with pytest.raises(ValueError, match="Sequential has layers without a shape; run it once on a batch before"):
        gradcam(nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images, "0")
    with torch.inference_mode():
        images = images + 0
    assert gradcam(model, images, "5", 1).shape == gradcam(model, images, target=1).shape == (4, 8, 8)


def test_backward_hooks_of_the_user_do_not_run():
    calls = []
    model, images = tiny_net().train(), torch.rand(2, 3, 16, 16)
    expected = gradcam(model, images, "4", target=0)
    for name in ("4", "5", "8"):
        model.get_submodule(name).register_full_backward_hook(lambda *args: calls.append(1))
        model.get_submodule(name).register_full_backward_pre_hook(lambda *args: calls.append(1))
    assert torch.equal(gradcam(model, images, "4", target=0), expected)
    assert calls == []
    model[8](torch.rand(2, 8, requires_grad=True)).sum().backward()
    assert calls == [1, 1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["forward", "target"])
@pytest.mark.parametrize("wrapper", [nn.Sequential, Frozen])
def test_leaves_no_trace_after_an_exception(error, place, wrapper):
    net = mixed_model()
    model = net if wrapper is nn.Sequential else Frozen()
    name = "4" if wrapper is nn.Sequential else "net[4]"

    def fail(*args):
        raise error("stop")

    handle = None
    if place == "forward":
        last = model[8] if wrapper is nn.Sequential else model.net[8]
        handle = last.register_forward_pre_hook(fail)
    with untouched(model), pytest.raises(error, match="stop"):
        gradcam(model, torch.rand(2, 3, 16, 16, generator=torch.Generator()), name, target=fail)
    if handle:
        handle.remove()


# What is refused


class Mapping(nn.Module):
    def forward(self, features):
        return {"features": features}


class Odd(nn.Module):
    """Uses its layer in a way that ``what`` names."""

    def __init__(self, what):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.unused = nn.Conv2d(3, 4, 3)
        self.mapping = Mapping()
        self.what = what

    def forward(self, images):
        if self.what == "inference":
            with torch.inference_mode():
                return self.layer(images).mean((2, 3))
        features = self.layer(images)
        if self.what == "twice":
            features = features + self.layer(images)
        if self.what == "detach":
            features = features.detach()
        if self.what == "mapping":
            features = self.mapping(features)["features"]
        return features.mean((2, 3))


@pytest.mark.parametrize(
    ("what", "layer", "message"),
    [
        ("", "unused", "'unused' was not reached by the forward pass; name a layer that the forward calls"),
        ("twice", "layer", "'layer' was called 2 times in one forward pass.*write `layer#2` .* or name its parent"),
        ("detach", "layer", r"does not depend on `target_layer` 'layer'.*`\.detach\(\)`.*name a layer after"),
        ("inference", "layer", "'layer' .Conv2d. runs in inference mode; replace"),
        ("mapping", "mapping", "'mapping' .Mapping. returns a dict, not a tensor; name a module inside it"),
    ],
)
def test_refuses_in_words(what, layer, message):
    model = Odd(what)
    with untouched(model), pytest.raises(ValueError, match=message):
        gradcam(model, torch.rand(2, 3, 8, 8, generator=torch.Generator()), layer, target=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_refuses_scripted_layers():
    model = nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="'0' is a scripted module, which runs no hooks"):
        gradcam(model, torch.rand(2, 3, 8, 8), "0", target=0)


def test_refuses_complex_output():
    class Fourier(nn.Module):
        def forward(self, images):
            return torch.fft.fft2(images)

    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fourier = Fourier()

        def forward(self, images):
            return self.fourier(images).abs().mean((2, 3))

    with pytest.raises(ValueError, match=r"'fourier' .Fourier. returns torch.complex64, which carries no gradient"):
        gradcam(Spectrum(), torch.rand(2, 3, 8, 8), "fourier", target=0)


def test_refuses_scores_of_another_shape():
    expected = r"`target` must give one score a sample, shape \(2,\), or several, \(2, k\), got \(3, 2\)"
    with pytest.raises(ValueError, match=expected):
        gradcam(tiny_net(), torch.rand(2, 3, 16, 16), "4", target=lambda output, batch: output.T)


def test_labels_made_in_inference_mode():
    with torch.inference_mode():
        labels = torch.tensor([0, 2])
    model, images = tiny_net().eval(), torch.rand(2, 3, 16, 16)
    expected = gradcam(model, images, "4", "label", labels=labels.clone())
    assert torch.equal(gradcam(model, images, "4", "label", labels=labels), expected)


def test_tensors_of_all_kinds_are_copied_at_once():
    given = [
        torch.tensor([True, False, True]),
        torch.rand(3, 5).T,
        torch.arange(3),
        torch.empty(0, 4),
        torch.tensor(7.5),
        torch.rand(2, 3, dtype=torch.float16),
        torch.rand(1, 5)[:, 1],  # the score of a single picture
        torch.rand(1, 5).T[:1],
    ]
    copies = copied_at_once(given)
    for one, other in zip(given, copies, strict=True):
        assert torch.equal(one, other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert len({one.untyped_storage().data_ptr() for one in copies if one.numel()}) == 1
