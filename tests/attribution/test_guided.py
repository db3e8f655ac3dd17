"""Guided Backpropagation and Guided Grad-CAM against captum, and by hand."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import GuidedBackprop, GuidedGradCam
from tiny import Checkpointed, tiny_net
from torch import nn

from lightning_gradcam import TopTarget, gradcam, guided_backprop, guided_gradcam
from lightning_gradcam.attribution.guided import GuidedReLUs

# captum warns that it sets hooks, and that it needs gradients at the inputs.
pytestmark = pytest.mark.filterwarnings("ignore:(Setting backward hooks|Input Tensor):UserWarning")


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32)


def plain_relus(module):
    """captum cannot take in-place ReLUs, or one that is called twice."""
    for child in module.modules():
        if isinstance(child, nn.ReLU):
            child.inplace = False
    return module


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "squeezenet1_1"])
def test_equals_captum(name, images):
    model = plain_relus(getattr(torchvision.models, name)(weights=None, num_classes=5)).eval()
    images = F.interpolate(images, (64, 64))
    layer = model.features[-3]
    expected = GuidedBackprop(model).attribute(images, 2).detach()
    assert expected.abs().max() > 0
    torch.testing.assert_close(guided_backprop(model, images, 2), expected)
    expected = GuidedGradCam(model, layer).attribute(images, 2, interpolate_mode="bilinear").detach()
    torch.testing.assert_close(guided_gradcam(model, images, layer, 2), expected)


def relu_module(x):
    return nn.ReLU()(x)


def in_place(function):
    return lambda x: function(x.clone())


@pytest.mark.parametrize(
    "relu",
    [
        relu_module,
        F.relu,
        torch.relu,
        torch.Tensor.relu,
        in_place(nn.ReLU(inplace=True)),
        in_place(torch.relu_),
        in_place(F.relu_),
        in_place(torch.Tensor.relu_),
        in_place(lambda x: (x.relu_(), x)[1]),  # the tensor that was changed is used, not what was returned
        in_place(lambda x: F.relu(x, inplace=True)),
    ],
)
def test_by_hand(relu):
    x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    with GuidedReLUs() as relus:
        y = relu(x)
        (y * torch.tensor([5.0, 7.0, -11.0])).sum().backward()
    assert relus.calls == 1
    assert y.tolist() == [0, 2, 3]
    assert x.grad.tolist() == [0, 7, 0]  # off; on; on, with a negative gradient
    x.grad = None
    (relu(x) * torch.tensor([5.0, 7.0, -11.0])).sum().backward()
    assert x.grad.tolist() == [0, 7, -11]


@pytest.mark.parametrize("relu6", [nn.ReLU6(), F.relu6, in_place(nn.ReLU6(inplace=True))])
def test_relu6_is_a_relu_below_its_ceiling(relu6):
    x = torch.tensor([-1.0, 2.0, 3.0, 7.0], requires_grad=True)
    with GuidedReLUs() as relus:
        (relu6(x) * torch.tensor([5.0, 7.0, -11.0, 13.0])).sum().backward()
    assert relus.calls == 1
    assert x.grad.tolist() == [0, 7, 0, 0]


@pytest.mark.parametrize("other", [F.gelu, F.silu, F.leaky_relu, F.hardtanh, nn.Hardtanh(-2, 2), F.elu, torch.sigmoid])
def test_other_activations_pass_gradients_as_always(other):
    x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    weights = torch.tensor([5.0, 7.0, -11.0])
    with GuidedReLUs() as relus:
        (other(x) * weights).sum().backward()
    guided, x.grad = x.grad, None
    assert relus.calls == 0
    (other(x) * weights).sum().backward()
    assert torch.equal(guided, x.grad)


def test_gradients_of_two_readers_are_summed_first():
    x = torch.tensor([1.0], requires_grad=True)
    with GuidedReLUs():
        y = F.relu(x)
        (3 * y - 2 * y).sum().backward()
    assert x.grad.tolist() == [1]


def test_a_functional_and_an_in_place_network_give_the_same(images):
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def net(relu):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = first, second

            def forward(self, images):
                return relu(self.second(relu(self.first(images)))).mean((2, 3))

        return Net().eval()

    found = [guided_backprop(net(relu), images, 1) for relu in (nn.ReLU(), F.relu, torch.relu_, nn.ReLU(True))]
    assert found[0].abs().max() > 0
    for one in found[1:]:
        assert torch.equal(one, found[0])


def test_several_scores(images):
    model = tiny_net().eval()
    several = guided_gradcam(model, images, "4", [2, 0])
    assert several.shape == (3, 2, 3, 32, 32)
    for column, index in enumerate((2, 0)):
        torch.testing.assert_close(several[:, column], guided_gradcam(model, images, "4", index))
    assert guided_backprop(model, images, TopTarget(1)).shape == (3, 1, 3, 32, 32)


def test_guided_gradcam_is_the_product(images):
    model = tiny_net().eval()
    maps = F.interpolate(gradcam(model, images, "4", 1).relu()[:, None], (32, 32), mode="bilinear")
    torch.testing.assert_close(guided_gradcam(model, images, "4", 1), maps * guided_backprop(model, images, 1))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_checkpointed(images, reentrant):
    model = Checkpointed(tiny_net(), 0, reentrant).eval()
    if reentrant:
        with pytest.raises(ValueError, match=r"re-entrant checkpoint .* use_reentrant=False"):
            guided_backprop(model, images, 1)
    else:
        torch.testing.assert_close(guided_backprop(model, images, 1), guided_backprop(model.net, images, 1))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_is_left_as_it_was(images, compiled):
    model = tiny_net().train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
    state = torch.random.get_rng_state()
    given = images.clone()
    guided_backprop(torch.compile(model) if compiled else model, given, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(given, images)
    assert not given.requires_grad
    y = F.relu(torch.tensor([1.0], requires_grad=True))
    assert torch.autograd.grad(-y, y)[0] == -1


class Smooth(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, 4, 3), activation

    def forward(self, images):
        return self.activation(self.conv(images)).mean((2, 3))


def test_refusals(images):
    with pytest.raises(ValueError, match="made for ReLUs, and the forward of Smooth calls none"):
        guided_backprop(Smooth(nn.GELU()), images)
    with pytest.raises(ValueError, match="no gradient at the images"):
        guided_backprop(Smooth(lambda x: F.relu(x.detach())), images)


def test_images_without_gradients_are_refused(images):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net()

        def forward(self, images):
            return self.net(images / 255)

    with pytest.raises(ValueError, match=r"gradient at the images, and torch.uint8 has none; give floating-point"):
        guided_backprop(Scaled().eval(), (255 * images).byte())
