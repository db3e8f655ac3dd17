"""Guided Backpropagation and Guided Grad-CAM against captum, by hand, and in a run."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import GuidedBackprop, GuidedGradCam
from pytorch_lightning import Callback
from test_callback import Recorder
from tiny import TinyModule, loader, tiny_net, trainer
from torch import nn

from lightning_gradcam import Drift, GradCAMCallback, TopTarget, gradcam, guided_backprop, guided_gradcam
from lightning_gradcam.guided import GuidedReLUs

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
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net()

        def forward(self, images):
            return torch.utils.checkpoint.checkpoint(self.net, images, use_reentrant=reentrant)

    model = Checkpointed().eval()
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


# In a run


@pytest.fixture
def drawn(monkeypatch):
    """The keys of the pictures that were handed out, with their steps."""
    found = []
    monkeypatch.setattr(
        "lightning_gradcam.callback.find_sinks",
        lambda *_: [lambda key, picture, step: found.append((key, step, picture))],
    )
    return found


def guided_steps(drawn, key="guided_gradcam"):
    return [step for name, step, _ in drawn if name == f"gradcam/{key}"]


@pytest.mark.parametrize(
    ("guided", "observed"),
    # Of observations 0 to 12; three steps an epoch, logged at the epoch's last one.
    [(True, [0, 10, 12]), (5, [0, 5, 10, 12]), (1, list(range(13))), (False, [])],
)
def test_chosen_observations(drawn, guided, observed):
    callback = GradCAMCallback(samples=2, guided=guided, drift=Drift(noise_floor=False))
    trainer(callback, max_epochs=12).fit(TinyModule(), loader(), loader())
    expected = [max(0, 3 * i - 1) for i in observed]
    assert guided_steps(drawn) == guided_steps(drawn, "guided_backprop") == expected


def test_the_last_of_several_validations_of_the_last_epoch(drawn):
    callback = GradCAMCallback(samples=2, guided=True)
    options = {"max_epochs": 2, "val_check_interval": 1 / 3, "num_sanity_val_steps": 0}
    trainer(callback, **options).fit(TinyModule(), loader(), loader())
    assert guided_steps(drawn) == [0, 5]
    assert callback._history.count == 7


class Stop(Callback):
    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 3


def test_the_last_observation_where_nobody_knew_that_it_was(drawn):
    logger = Recorder()
    run = trainer(GradCAMCallback(samples=2, guided=True), Stop(), max_epochs=9, logger=logger)
    run.fit(TinyModule(), loader(), loader())
    assert run.current_epoch == 4
    assert guided_steps(drawn) == [0, 11]
    assert logger.steps("gradcam/guided_seconds") == [11]


def test_pictures_are_of_the_gradients_at_that_time(drawn, monkeypatch):
    given = []

    def grid(photos, maps, *args, gradients=None, **options):
        given.append((maps, gradients))

    monkeypatch.setattr("lightning_gradcam.callback.grid", grid)
    module = TinyModule()
    callback = GradCAMCallback("net.4", samples=3, guided=True)
    trainer(callback, max_epochs=1).fit(module, loader(), loader())
    batch = callback._probe.batch
    expected = guided_backprop(module, batch.images, "label", labels=batch.labels)
    (_, first), (maps, second) = given[-2:]
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, guided_gradcam(module, batch.images, "net.4", "label", labels=batch.labels))
    assert maps.shape == (3, 8, 8)


def test_a_network_without_relus_is_refused_before_training():
    module = TinyModule()
    module.net[2] = module.net[5] = nn.GELU()
    with pytest.raises(ValueError, match="calls none: others, such as GELU and SiLU"):
        trainer(GradCAMCallback(samples=2, guided=True)).fit(module, loader(), loader())
    with pytest.raises(ValueError, match="`guided` must be True, False or a number of observations, got -1"):
        GradCAMCallback(guided=-1)


def test_a_failure_later_loses_neither_maps_nor_run(drawn, monkeypatch):
    class Broken(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            monkeypatch.setattr("lightning_gradcam.callback.guided_gradients", lambda *_: 1 / 0)

    callback = GradCAMCallback(samples=2, guided=1)
    with pytest.warns(UserWarning, match="the guided picture in epoch 0, step 3, failed"):
        trainer(callback, Broken(), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert guided_steps(drawn) == [0]
    assert [step for key, step, _ in drawn if key == "gradcam/grid"] == [0, 2]


def test_outside_fit_there_are_none(drawn):
    module = TinyModule()
    module.net[2] = module.net[5] = nn.GELU()  # so nothing is refused either
    run = trainer(GradCAMCallback(samples=2, guided=True))
    run.validate(module, loader())
    run.test(module, loader())
    assert {key for key, *_ in drawn} == {"gradcam/grid"}


def test_where_the_last_observation_fails_no_older_one_takes_its_place(drawn):
    trained = []

    class Note(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trained.append(1)

    def target(output, batch):
        if trained:
            raise RuntimeError("boom")
        return output[:, 0]

    callback = GradCAMCallback("net.4", samples=2, target=target, guided=50)
    with pytest.warns(UserWarning, match="the observation in epoch 0, step 3, failed.*boom"):
        trainer(callback, Note(), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert guided_steps(drawn) == [0]


def test_images_without_gradients_are_refused(images):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net()

        def forward(self, images):
            return self.net(images / 255)

    with pytest.raises(ValueError, match=r"gradient at the images, and torch.uint8 has none; give floating-point"):
        guided_backprop(Scaled().eval(), (255 * images).byte())


def test_short_memory_is_met_in_chunks(drawn, monkeypatch):
    from lightning_gradcam.guided import guided_gradients as own

    sizes = []

    def narrow(model, batch, forward, target, at_once):
        sizes.append(at_once)
        if at_once is None or at_once > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(model, batch, forward, target, at_once)

    monkeypatch.setattr("lightning_gradcam.callback.guided_gradients", narrow)
    trainer(GradCAMCallback(samples=8, guided=True), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert sizes[:3] == [None, 4, 2]
    assert guided_steps(drawn) == [0, 2]
