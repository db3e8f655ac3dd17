"""The stand-in computes what the model computes, keeps what happens to it, and follows what happens to the model."""

import gc
import random
import warnings
import weakref
from argparse import Namespace
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.prune as prune
import torchvision
import transformers
from tiny import tiny_net, untouched
from torch import nn

from lightning_gradcam import gradcam
from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.doubles import Doubles
from lightning_gradcam.attribution.stand_in import NoStandInError, StandIn
from lightning_gradcam.metrics.faithfulness import occlusion
from lightning_gradcam.metrics.randomization import randomization

Pair = namedtuple("Pair", "first second")


def images_of(side=16, samples=2):
    return torch.rand(samples, 3, side, side, generator=torch.Generator().manual_seed(0))


def run_twice(model, images=None):
    """What two looks by one stand-in give."""
    images, stand_in = images_of() if images is None else images, StandIn(model, kept=True)
    with torch.no_grad():
        return [stand_in.look(lambda model: model(images.clone())) for _ in range(2)]


# It computes what the model computes in eval mode.

HUGGING_FACE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(48, 8, 2, batch_first=True, dropout=0.5), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.rnn(images.transpose(1, 2).flatten(2))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 2, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(48, 3)

    def forward(self, images):
        return self.head(self.encoder(images.transpose(1, 2).flatten(2)).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.one, self.other = tiny_net(), nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight, self.again = self.one.weight, self.net

    def forward(self, images):
        return self.other(self.one(self.net(images))) + self.again(images)


def quantized():
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).train()
    net.qconfig = get_default_qat_qconfig("fbgemm")
    prepare_qat(net, inplace=True)
    net(images_of())
    return net


def compiled_in_place():
    net = tiny_net()
    net[4].compile(backend="eager")
    return net


MODELS = {
    "resnet": (lambda: torchvision.models.resnet18(num_classes=3), 64),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), 64),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=3), 64),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3), 64),
    "hugging face": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=3, **HUGGING_FACE)),
        32,
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), 16),
    "gru": (lambda: Recurrent(nn.GRU), 16),
    "transformer": (Transformer, 16),
    "tied weights": (Tied, 16),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten()), 16),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten()), 16),
    "old spectral norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten()), 16),
    "pruned": (lambda: nn.Sequential(prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5), nn.Flatten()), 16),
    "scripted": (lambda: torch.jit.script(tiny_net()), 16),
    "scripted part": (lambda: nn.Sequential(torch.jit.script(tiny_net()), nn.Linear(3, 3)), 16),
    "fx": (lambda: torch.fx.symbolic_trace(tiny_net()), 16),
    "quantized": (quantized, 16),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(tiny_net()), 16),
    "compiled": (lambda: torch.compile(tiny_net(), backend="eager"), 16),
    "compiled in place": (compiled_in_place, 16),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_gives_what_the_model_gives_in_eval_mode(name):
    torch.manual_seed(0)
    make, side = MODELS[name]
    model, images = make().train(), images_of(side)
    before = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    first, second = run_twice(model, images)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(
        module.training for module in model.modules() if type(module).__name__ != "FusedMovingAvgObsFakeQuantize"
    )
    for parameter in model.eval().parameters():  # a GRU rounds in another way where its weights ask for a gradient
        parameter.requires_grad_(False)
    with torch.no_grad():
        expected = model(images)
    first, second, expected = (getattr(one, "logits", one) for one in (first, second, expected))
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


# What a forward does stays with the stand-in.


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


@dataclass
class Notes:
    count: int = 0
    seen: list = field(default_factory=list)

    def step(self):
        self.count += 1


GLOBAL_NOTES = Notes()


class Config(dict):
    """A dict whose keys are attributes, as configurations often are."""

    def __getattr__(self, name):
        return self[name]


class Tallies(list):
    total = 0


def counter():
    count = 0

    def step():
        nonlocal count
        count += 1
        return count

    return step


class Acts(nn.Module):
    """Does something to itself in its forward."""

    def __init__(self, act, **attributes):
        super().__init__()
        self.net = tiny_net()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.net[0].weight.seen, self.net[1].running_mean.seen = [], []
        self.act = act

    def forward(self, images):
        self.act(self, images)
        return self.net(images)


def buffered(value, act):
    def make():
        model = Acts(act)
        model.register_buffer("value", value() if callable(value) else value)
        return model

    return make


def on_value(act, make, read=None):
    """A model with an attribute, what its forward does to it, and how that shows."""
    return lambda: Acts(lambda model, images: act(model.value), value=make()), read or (lambda model: model.value)


def set_first(value):
    value[0] += 1


def bump(value):
    value.count += 1


def note(value):
    value.count += 1
    value.seen.append(1)


def hooked():
    model, calls = Acts(lambda model, images: None), []
    model.net[0].register_forward_hook(lambda *_: calls.append(1))
    model.calls = lambda: list(calls)
    return model


def by_method():

    def count(model, images):
        model.bound()

    notes = Notes()
    model = Acts(count, bound=notes.step)
    model.read = lambda: notes.count
    return model


def viewed():
    model = Acts(lambda model, images: model.row.add_(1))
    model.register_buffer("table", torch.zeros(2, 2))
    model.row = model.table[0]
    return model


def in_place(model, images):
    with torch.no_grad():
        model.net[0].weight.mul_(0.5)


def by_data(model, images):
    model.net[0].weight.data = model.net[0].weight.data * 0.5


def set_flags(model, images):
    model.net[0].weight.requires_grad_(False)
    model.train()


def set_parts(model, images):
    model.new, model.net[0] = nn.Linear(2, 2), nn.Conv2d(3, 8, 3, 2, 1)
    model.register_buffer("added", torch.zeros(1))
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    model.net[4].register_forward_hook(lambda *_: None)
    del model.gone


def with_count(function):
    function.count = 0
    return function


class Lists(defaultdict):
    pass


class Names(set):
    pass


class Attributes(dict):
    def __init__(self):
        super().__init__(count=0)
        self.__dict__ = self


class SlottedList(list):
    __slots__ = ("count",)

    def __init__(self):
        super().__init__([1])
        self.count = 0


def proxied():
    model = Acts(lambda model, images: setattr(model.proxies[0], "count", model.count + 1), count=0)
    model.proxies = [weakref.proxy(model)]
    return model


def of_objects(*items):
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def aliased():
    model = Acts(lambda model, images: model.table.add_(1), table=torch.zeros(4))
    model.other = model.table.data[1:3]
    return model


def crowded():
    def act(model, images):
        F.batch_norm(images, model.mean, model.variance, training=True)

    model = Acts(act)
    model.register_buffer("queue", torch.ones(1 << 23))
    model.register_buffer("mean", torch.zeros(3))
    model.register_buffer("variance", torch.ones(3))
    return model


KINDS = {
    "number": (lambda: Acts(lambda model, images: setattr(model, "n", model.n + 1), n=0), lambda model: model.n),
    "new attribute": (
        lambda: Acts(lambda model, images: setattr(model, "cache", images)),
        lambda model: "cache" in vars(model),
    ),
    "list": on_value(lambda value: value.append(1), list),
    "nested": on_value(lambda value: value["a"][0].append(1), lambda: {"a": [[], 1]}),
    "in a tuple": on_value(lambda value: value[0].append(1), lambda: ([], 1)),
    "in a named tuple": on_value(lambda value: value.first.append(1), lambda: Pair([], 1)),
    "set": on_value(lambda value: value.add(1), set),
    "deque": on_value(lambda value: value.append(3), lambda: deque([1, 2], 2)),
    "default dict": on_value(lambda value: value["x"].append(1), lambda: defaultdict(list)),
    "counter": on_value(lambda value: value.update("ab"), Counter),
    "ordered dict": on_value(
        lambda value: value.move_to_end("a"), lambda: OrderedDict(a=1, b=2), lambda model: list(model.value)
    ),
    "object": on_value(note, Notes, lambda model: (model.value.count, model.value.seen)),
    "object that is a global": on_value(
        note, lambda: GLOBAL_NOTES, lambda model: (model.value.count, model.value.seen)
    ),
    "object with slots": on_value(bump, Slotted, lambda model: model.value.count),
    "namespace": on_value(bump, lambda: SimpleNamespace(count=0), lambda model: model.value.count),
    "dict of the user's": on_value(lambda value: value.update(a=1), Config),
    "list of the user's": on_value(
        lambda value: (value.append(1), setattr(value, "total", 1)),
        Tallies,
        lambda model: ([*model.value], model.value.total),
    ),
    "closure": on_value(lambda value: value(), counter, lambda model: model.value.__closure__[0].cell_contents),
    "partial": on_value(lambda value: value(1), lambda: partial([].append), lambda model: model.value.func.__self__),
    "partial of a function": (
        lambda: Acts(lambda model, images: model.value(), value=partial(set_first, [0])),
        lambda model: model.value.args[0],
    ),
    "bound method": (by_method, lambda model: model.read()),
    "hook": (hooked, lambda model: model.calls()),
    "array": on_value(set_first, lambda: np.zeros(2), lambda model: model.value.tolist()),
    "large array": on_value(set_first, lambda: np.zeros(1 << 22), lambda model: model.value[:2].tolist()),
    "tensor": on_value(set_first, lambda: torch.zeros(2), lambda model: model.value.tolist()),
    "tensor in a dict": on_value(
        lambda value: value["a"].add_(1), lambda: {"a": torch.zeros(2)}, lambda model: model.value["a"].tolist()
    ),
    "large tensor": on_value(set_first, lambda: torch.zeros(1 << 23), lambda model: model.value[:2].tolist()),
    "buffer": (buffered(torch.zeros(2), lambda model, images: model.value.add_(1)), lambda model: model.value.tolist()),
    "buffer that grows": (
        buffered(torch.zeros(2), lambda model, images: model.value.resize_(4).fill_(1)),
        lambda model: model.value.tolist(),
    ),
    "buffer by its data": (
        buffered(torch.zeros(2), lambda model, images: model.value.data.add_(1)),
        lambda model: model.value.tolist(),
    ),
    "large buffer": (
        buffered(lambda: torch.zeros(1 << 23), lambda model, images: model.value[:1].copy_(images.sum())),
        lambda model: model.value[:2].tolist(),
    ),
    "view": (viewed, lambda model: model.table.tolist()),
    "parameter in place": (lambda: Acts(in_place), lambda model: model.net[0].weight.tolist()),
    "parameter by its data": (lambda: Acts(by_data), lambda model: model.net[0].weight.tolist()),
    "flags": (lambda: Acts(set_flags), lambda model: (model.training, model.net[0].weight.requires_grad)),
    "parts": (
        lambda: Acts(set_parts, gone=1),
        lambda model: [*sorted(vars(model)), *map(str, model.modules()), *model._buffers, *model._parameters],
    ),
    "default of a function": (
        lambda: Acts(lambda model, images: model.value(), value=lambda seen=[]: seen.append(1)),
        lambda model: model.value.__defaults__,
    ),
    "keyword of a function": (
        lambda: Acts(lambda model, images: model.value(), value=lambda *, seen=[]: seen.append(1)),
        lambda model: model.value.__kwdefaults__,
    ),
    "attribute of a function": (
        lambda: Acts(lambda model, images: bump(model.value), value=with_count(lambda: 0)),
        lambda model: model.value.count,
    ),
    "method of a list": (
        lambda: Acts(lambda model, images: model.value(1), value=[].append),
        lambda model: model.value.__self__,
    ),
    "arguments": on_value(bump, lambda: Namespace(count=0), lambda model: model.value.count),
    "dict of Python's": on_value(lambda value: value.update(a=1), UserDict, lambda model: model.value.data),
    "read-only mapping": (
        lambda: Acts(lambda model, images: model.value["a"].append(1), value=MappingProxyType({"a": []})),
        lambda model: model.value["a"],
    ),
    "default dict of the user's": on_value(lambda value: value["x"].append(1), lambda: Lists(list)),
    "set of the user's": on_value(lambda value: value.add(1), Names),
    "dict that is its attributes": on_value(bump, Attributes, lambda model: model.value["count"]),
    "list with slots": on_value(bump, SlottedList, lambda model: model.value.count),
    "proxy": (proxied, lambda model: model.count),
    "array of objects": (
        lambda: Acts(lambda model, images: model.value[0].append(1), value=of_objects([])),
        lambda model: model.value[0],
    ),
    "matrix": on_value(
        lambda value: value.fill(3), lambda: np.ma.masked_array([1.0, 2.0]), lambda model: model.value.tolist()
    ),
    "bytes": on_value(lambda value: value.append(1), bytearray),
    "attribute of a parameter": (
        lambda: Acts(lambda model, images: model.net[0].weight.seen.append(1), noted="weight"),
        lambda model: model.net[0].weight.seen,
    ),
    "attribute of a buffer": (
        lambda: Acts(lambda model, images: model.net[1].running_mean.seen.append(1), noted="buffer"),
        lambda model: model.net[1].running_mean.seen,
    ),
    "tensor by its alias": (aliased, lambda model: (model.table.tolist(), model.other.tolist())),
    "small state beside much": (
        crowded,
        lambda model: (model.mean.tolist(), model.variance.tolist()),
    ),
    "bits": on_value(lambda value: value.random_raw(), np.random.PCG64, lambda model: str(model.value.state)),
    "torch generator": on_value(
        lambda value: torch.rand(1, generator=value), torch.Generator, lambda model: model.value.get_state().tolist()
    ),
    "numpy generator": on_value(
        lambda value: value.random(), np.random.default_rng, lambda model: str(model.value.bit_generator.state)
    ),
    "old numpy generator": on_value(
        lambda value: value.rand(), np.random.RandomState, lambda model: str(model.value.get_state())
    ),
    "python generator": on_value(lambda value: value.random(), random.Random, lambda model: model.value.getstate()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_forward_does_stays_with_the_stand_in(kind):
    make, read = KINDS[kind]
    model = make().eval()
    before = str(read(model))
    first, second = run_twice(model)
    assert str(read(model)) == before
    assert torch.equal(first, second)  # each look begins where the model is
    model(images_of())  # the counter-check: the model's own forward does change it
    assert str(read(model)) != before


@pytest.mark.parametrize("look", [gradcam, "occlusion", "randomization"])
def test_by_whatever_a_model_is_run(look):
    model, images = Acts(lambda model, images: model.seen.append(1), seen=[]), images_of()
    with untouched(model):
        if look == "occlusion":
            occlusion(model, Batch(images), target=0)
        elif look == "randomization":
            randomization(model, Batch(images), "net.4", target=0)
        else:
            look(model, images, "net.4", target=0)
    assert model.seen == []


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(3, device="meta"),
        torch.eye(2).to_sparse(),
        np.broadcast_to(np.float32(0.3), (3,)),
        np.array([None, "a"], dtype=object),
        torch.return_types.max((torch.ones(2), torch.zeros(2))),
        frozenset([1]),
        weakref.WeakValueDictionary(),
        memoryview(b"ab"),
        iter([1]),
        open,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_compared_or_copied_is_in_nobodys_way(value):
    model = Acts(lambda model, images: None, value=value)
    assert torch.equal(*run_twice(model))
    assert model.value is value


def test_an_array_in_a_file_is_neither_read_nor_written(tmp_path):
    table = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.uint8, (1 << 24,))
    model = Acts(lambda model, images: None, table=table)
    run_twice(model)
    gradcam(model, images_of(), "net.4", target=0)
    table.flush()
    assert (tmp_path / "t.npy").stat().st_blocks * 512 < 1 << 20


def test_gradcam_warns_of_a_forward_that_writes_to_parameters():
    with pytest.warns(UserWarning, match="the forward writes to the model's parameters, also in eval mode"):
        gradcam(Acts(in_place), images_of(), "net.4", target=0)


def test_an_object_that_closes_what_it_holds_is_not_closed_twice():
    closed = []

    class Holder:
        def __del__(self):
            closed.append("holder")

    class Owner(Acts):
        def __del__(self):
            closed.append("owner")

    model = Owner(lambda model, images: None, holder=Holder())
    run_twice(model)
    gc.collect()
    assert closed == []


def test_keeps_no_model_alive():
    model = tiny_net()
    gradcam(model, images_of(), "4", target=0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_random_numbers_are_the_same_at_every_look_and_the_users_go_on():
    model = Acts(lambda model, images: images.add_(torch.rand(1) + random.random() + np.random.rand()))
    state = torch.get_rng_state()
    assert torch.equal(*run_twice(model))
    assert torch.equal(torch.get_rng_state(), state)


# What a forward reads is what the model's own forward reads.


class Reads(nn.Module):
    """Scales its scores by what it reads from its attributes."""

    def __init__(self, read, **attributes):
        super().__init__()
        self.net = tiny_net()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.read = read

    def forward(self, images):
        return self.net(images) * self.read(self)


class Sentinel:
    pass


NOTHING = Sentinel()


def swapped_view():
    model = Reads(lambda model: model.value.sum())
    model.register_buffer("value", torch.zeros(1, 4).view(4, 1))
    model.value.data = torch.arange(4.0).view(4, 1)
    return model


def with_keys(kind):
    def make():
        model = Reads(lambda model: model.gains.get(model.net[0], 1.0))
        model.gains = kind({model.net[0]: 7.0})
        return model

    return make


def with_members(kind):
    def make():
        model = Reads(lambda model: 7.0 if model.net[0] in model.members else 1.0)
        model.members = kind([model.net[0]])
        return model

    return make


class Switched(Reads):
    """Says itself what eval mode is."""

    def __init__(self):
        super().__init__(lambda model: model.noise, noise=3.0)

    def train(self, mode=True):
        super().train(mode)
        self.noise = 3.0 if mode else 1.0
        return self


class Merging(nn.Module):
    """Merges its adapter into its weights in eval mode, as LoRA may."""

    def __init__(self):
        super().__init__()
        self.net, self.merged = tiny_net(), False
        self.adapter = nn.Parameter(torch.ones(3, 8))

    def train(self, mode=True):
        super().train(mode)
        if mode is self.merged:
            self.net[8].weight.data.add_(-self.adapter if mode else self.adapter)
            self.merged = not mode
        return self

    def forward(self, images):
        features = self.net[:8](images)
        return self.net[8](features) if self.merged else self.net[8](features) + features @ self.adapter.T


class Kind(nn.Sequential):
    def __del__(self):
        pass


def deep():
    net = tiny_net()
    for _ in range(150):
        net = nn.Sequential(net)
    return net


COMPLEX = torch.tensor([1 + 2j, 3 + 4j])
READS = {
    "view of swapped data": swapped_view,
    "conjugate": lambda: Reads(lambda model: model.value.imag.sum(), value=COMPLEX.conj()),
    "imaginary part": lambda: Reads(lambda model: model.value.sum(), value=COMPLEX.imag),
    "as real numbers": lambda: Reads(lambda model: model.value[1].sum(), value=torch.view_as_real(COMPLEX)),
    "view of a part": lambda: Reads(lambda model: model.value.sum(), value=torch.arange(20.0)[10:].view(10)[2:6]),
    "part of swapped data": lambda: Reads(lambda model: model.value.sum(), value=torch.arange(20.0)[10:].data[2:6]),
    "expanded": lambda: Reads(lambda model: model.value.sum(), value=torch.ones(3, 1).expand(3, 5)[1:]),
    "transposed": lambda: Reads(lambda model: model.value[0].sum(), value=torch.arange(6.0).view(2, 3).T),
    "attribute of a tensor": lambda: Reads(lambda model: model.value.gain, value=with_gain(torch.ones(1))),
    "frozen set": with_members(frozenset),
    "weak set": with_members(weakref.WeakSet),
    "weak keys": with_keys(weakref.WeakKeyDictionary),
    "modules as keys": with_keys(dict),
    "constant of a module": lambda: Reads(lambda model: 7.0 if model.value is NOTHING else 1.0, value=NOTHING),
    "train of its own": Switched,
    "merging in eval mode": Merging,
    "its class": lambda: Wrapped(Kind(*tiny_net())),
    "deep": deep,
}


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images) * (7.0 if type(self.net) is Kind else 1.0)


def with_gain(tensor):
    tensor.gain = 7.0
    return tensor


@pytest.mark.parametrize("name", READS)
def test_reads_what_the_model_reads(name):
    torch.manual_seed(0)
    model = READS[name]().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = run_twice(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with torch.no_grad():
        expected = model.eval()(images_of())
    torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(first, second)


def test_a_look_that_fails_is_no_proof():
    def act(model, images):
        if model.fails:
            raise RuntimeError("not ready")
        model.net[0].weight.data.mul_(0.5)

    model = Acts(act, fails=True)
    weight, stand_in = model.net[0].weight.clone(), StandIn(model, kept=True)
    with pytest.raises(RuntimeError, match="not ready"):
        stand_in.look(lambda model: model(images_of()))
    model.fails = False
    stand_in.look(lambda model: 1)  # nor is one that runs nothing
    stand_in.look(lambda model: model(images_of()))
    assert torch.equal(model.net[0].weight, weight)


def test_what_a_forward_makes_of_an_error_does_not_matter():
    def act(model, images):
        with suppress(Exception):
            model.value[:1].add_(1)

    model = Acts(act, value=torch.zeros(1 << 23))
    assert StandIn(model).look(lambda model: (model(images_of()), model.value[0].item())[1]) == 1
    assert model.value[0] == 0


def test_writing_that_begins_later_is_warned_of_and_then_kept_apart():
    model = Acts(lambda model, images: in_place(model, images) if model.late else None, late=False)
    stand_in = StandIn(model, kept=True)
    stand_in.look(lambda model: model(images_of()))
    stand_in._watches = False  # as for a model whose forward takes next to no time
    model.late = True
    with pytest.warns(UserWarning, match="the forward writes to the model's parameters"):
        stand_in.look(lambda model: model(images_of()))
    weight = model.net[0].weight.clone()
    stand_in.look(lambda model: model(images_of()))
    assert torch.equal(model.net[0].weight, weight)


def test_nothing_of_a_look_is_kept_until_the_next():
    model = Acts(lambda model, images: setattr(model, "features", images * 1))
    stand_in = StandIn(model, kept=True)
    images = images_of().requires_grad_()
    gone = weakref.ref(stand_in.look(lambda model: (model(images), model.features)[1]))
    assert gone() is None


# A kept one follows the model.


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.tau, self.table, self.schedule = tiny_net(), 1.0, [1.0], {"step": 1.0}
        self.hidden = [nn.BatchNorm1d(3)]
        self.square = nn.Parameter(torch.rand(3, 3))
        self.register_buffer("buffer", torch.ones(3))

    def forward(self, images):
        scores = self.hidden[0](self.net(images)) @ self.square * self.buffer
        return (scores * self.tau * self.table[-1] * self.schedule["step"]).double()


def anneal(model):
    model.tau = 0.5


def append(model):
    model.table.append(3.0)


def reschedule(model):
    model.schedule["step"] = 7.0


def replace_schedule(model):
    model.schedule = {"step": 5.0}


def assign(model):
    model.load_state_dict(tiny_state(), assign=True)


def load(model):
    model.load_state_dict(tiny_state())


def tiny_state():
    torch.manual_seed(5)
    return Tempered().state_dict()


def swap_data(model):
    model.net[0].weight.data = torch.rand(8, 3, 3, 3)


def train_a_step(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model.train()
    model(images_of()).sum().backward()
    optimizer.step()


def replace_a_part(model):
    model.net[8] = nn.Linear(8, 3, bias=False)


def insert_a_part(model):
    model.net.insert(8, nn.Tanh())


def hook(model):
    model.net[4].register_forward_hook(lambda module, args, output: output * 2)


def pre_hook(model):
    model.net[4].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def parametrize(model):
    parametrizations.weight_norm(model.net[0])
    model.net[0].parametrizations.weight.original0.data.mul_(2)


def cut(model):
    prune.l1_unstructured(model.net[4], "weight", 0.7)


def widen(model):
    model.net[1].running_mean = torch.full((8,), 0.3)


def drop_the_bias(model):
    model.net[4].bias = None


def delegate(model):
    model.forward = lambda images: model.net(images) * 9


def swap_the_class(model):
    class Doubling(nn.Linear):
        def forward(self, input):  # noqa: A002
            return super().forward(input) * 2

    model.net[8].__class__ = Doubling


def turn(model):
    model.square.data = model.square.data.T


def retype(model):
    model.buffer.data = model.buffer.data.double() + 1e-9


def hidden_mode(model):
    model.hidden[0].eval()


CHANGES = [
    swap_the_class, turn, retype, hidden_mode,
    anneal, append, reschedule, replace_schedule, assign, load, swap_data, train_a_step, replace_a_part, insert_a_part,
    hook, pre_hook, parametrize, cut, widen, drop_the_bias, delegate,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_one_follows_the_model(change):
    torch.manual_seed(0)
    model, images = Tempered(), images_of()
    stand_in = StandIn(model, kept=True)

    def maps(model):
        return model(images)

    with torch.no_grad():
        before = stand_in.look(maps)
        with torch.enable_grad():
            change(model)
        after, fresh = stand_in.look(maps), StandIn(model).look(maps)
        model.eval()
        assert torch.equal(after, fresh)
        assert torch.equal(after, model(images))
    assert not torch.equal(after, before)


def test_half_precision_between_two_looks():
    model, images = tiny_net(), images_of()
    stand_in = StandIn(model, kept=True)
    with torch.no_grad():
        stand_in.look(lambda model: model(images))
        model.to(torch.float64)
        assert stand_in.look(lambda model: model(images.double())).dtype == torch.float64


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_part_follows_too():
    part = torch.jit.script(nn.Linear(3, 3))
    model = nn.Sequential(tiny_net(), part)
    stand_in = StandIn(model, kept=True)
    with torch.no_grad():
        stand_in.look(lambda model: model(images_of()))
        part.weight.mul_(3)
        model.eval()
        assert torch.equal(stand_in.look(lambda model: model(images_of())), model(images_of()))


@pytest.mark.parametrize(
    ("change", "kept"), [(lambda model: None, True), (anneal, True), (train_a_step, True), (hook, False)]
)
def test_is_made_anew_only_where_it_must_be(change, kept, monkeypatch):
    model, made = Tempered(), []
    monkeypatch.setattr(
        "lightning_gradcam.attribution.stand_in.Doubles", lambda *args: made.append(1) or Doubles(*args)
    )
    stand_in = StandIn(model, kept=True)
    for _ in range(3):
        stand_in.look(lambda model: model(images_of()))
        change(model)
        change = lambda model: None  # noqa: E731
    assert len(made) == (1 if kept else 2)


def test_large_state_is_shared_until_a_forward_writes_to_it():
    model = Acts(lambda model, images: model.bank[:1].add_(1) if model.writes else None, writes=False)
    model.register_buffer("bank", torch.zeros(1 << 23))
    stand_in = StandIn(model, kept=True)
    stand_in.look(lambda double: double(images_of()))
    assert stand_in.look(lambda double: double.bank.data_ptr()) == model.bank.data_ptr()
    model.writes = True
    assert stand_in.look(lambda double: (double(images_of()), double.bank[0].item())[1]) == 1
    assert stand_in.look(lambda double: double.bank.data_ptr()) != model.bank.data_ptr()
    assert model.bank[0] == 0


def test_parameters_share_their_memory():
    model = tiny_net()
    shared = StandIn(model).look(lambda double: [one.data_ptr() for one in double.parameters()])
    assert shared == [one.data_ptr() for one in model.parameters()]


# What leads past it is told.

GLOBAL = nn.Linear(3, 3)


class ByGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.head = tiny_net(), GLOBAL

    def forward(self, images):
        return GLOBAL(self.net(images))


class ByClass(nn.Module):
    shared: nn.Module

    def __init__(self):
        super().__init__()
        self.net = tiny_net()
        ByClass.shared = self.net

    def forward(self, images):
        return type(self).shared(images)


class ByProxy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = tiny_net()
        self.proxies = [weakref.proxy(self.net)]

    def forward(self, images):
        return self.proxies[0](images)


@pytest.mark.parametrize("kind", [ByGlobal, ByClass])
def test_what_leads_past_it_is_told(kind):
    model = kind()
    with untouched(model), pytest.raises(NoStandInError, match="of the model by a way that leads past its stand-in"):
        gradcam(model, images_of(), "net.4", target=0)


class ByReference(nn.Module):
    """A part that refers back to the whole, as some libraries' do."""

    def __init__(self):
        super().__init__()
        self.net = tiny_net()
        self.net[4].owner = weakref.ref(self)
        self.net[4].root = [self]

    def forward(self, images):
        assert self.net[4].owner() is self
        assert self.net[4].root[0] is self
        return self.net(images)


def test_ways_that_it_knows():
    assert gradcam(ByProxy(), images_of(), "net.4", target=0).shape == (2, 8, 8)
    model = ByReference()
    assert gradcam(model, images_of(), "net.4", target=0).shape == (2, 8, 8)
    head = model.net[8]

    def target(output, batch):
        return head(torch.ones(len(output), 8))[:, 0] * output[:, 0]

    class Target:
        def __init__(self):
            self.head = head

        def __call__(self, output, batch):
            return self.head(torch.ones(len(output), 8))[:, 0] * output[:, 0]

    expected = gradcam(model, images_of(), "net.4", target=target)
    assert torch.equal(gradcam(model, images_of(), "net.4", target=Target()), expected)
    assert torch.equal(gradcam(model, images_of(), "net.4", target=partial(target)), expected)


def test_a_list_that_a_target_fills_is_the_users():
    seen = []
    gradcam(tiny_net(), images_of(), "4", target=lambda output, batch: seen.append(1) or output[:, 0])
    assert seen == [1]


def test_nothing_is_left_in_the_process():
    from torch.nn.modules import module

    hooks = dict(module._global_forward_pre_hooks), dict(module._global_forward_hooks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradcam(tiny_net(), images_of(), target=0)
    assert (dict(module._global_forward_pre_hooks), dict(module._global_forward_hooks)) == hooks
    assert gc.isenabled()


def test_the_same_by_hand():
    """Grad-CAM of the model in eval mode, by a hook on the model itself."""
    torch.manual_seed(0)
    model, images, kept = tiny_net().train(), images_of(), []
    ours = gradcam(model, images, "4", target=1)
    model.eval()
    model[4].register_forward_hook(lambda module, args, output: kept.append(output.clone()) or kept[0].clone())
    (gradient,) = torch.autograd.grad(model(images)[:, 1].sum(), kept)
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)
    torch.testing.assert_close(ours, F.relu(expected) - F.relu(-expected), rtol=0, atol=1e-7)
