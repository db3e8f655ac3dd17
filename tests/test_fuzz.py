"""Whatever comes in, it works or is refused in our words, and nothing is left on the model."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_gradcam import Batch, Display, Drift, GradCAMCallback, gradcam
from lightning_gradcam.attribution.methods import METHODS
from lightning_gradcam.attribution.reading import default_batch

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(-2, 2), st.text(max_size=4), st.lists(st.integers(-1, 9))
)
OUTPUTS = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits, None),
    "mapping": lambda logits: {"logits": logits},
    "flat": lambda logits: logits[:, 0],
    "one logit": lambda logits: logits[:, :1],
    "pixels": lambda logits: logits[:, :, None, None],
    "nothing": lambda logits: None,
    "empty": lambda logits: [],
}


class Net(nn.Module):
    def __init__(self, channels, width, stride, output, pool):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, 1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.pool = pool
        self.head = nn.Linear(width, 3)
        self.output = output

    def forward(self, images):
        features = self.act(self.norm(self.conv(images.to(self.conv.weight.dtype))))
        return OUTPUTS[self.output](self.head(features.mean((2, 3)) if self.pool else features[:, :, 0, 0]))


def labels(number):
    whole = st.lists(st.integers(-1, 3), min_size=number, max_size=number).map(torch.tensor)
    hot = st.integers(1, 4).map(lambda classes: torch.eye(number, classes))
    return st.one_of(st.none(), whole, whole.map(lambda one: one[:, None]), whole.map(torch.Tensor.float), hot)


@st.composite
def cases(draw):
    n, c, h, w = (draw(st.integers(1, most)) for most in (3, 4, 20, 20))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.uint8]))
    images = (torch.rand(n, c, h, w) * 255).to(dtype) if dtype == torch.uint8 else torch.rand(n, c, h, w).to(dtype)
    if draw(st.integers(0, 9)) == 0:
        images = images * torch.nan if images.is_floating_point() else images
    model = Net(
        c,
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(["tensor"] * 8 + list(OUTPUTS))),
        draw(st.booleans()),
    )
    layer = draw(st.sampled_from([None, "conv", "act", "norm"] * 3 + ["head", "nowhere", "conv.weight", ""]))
    target = draw(
        st.sampled_from(["label", "predicted", "predicted", 0, 0] * 3 + [2, 7, -1, "class", None, lambda *_: 3])
    )
    return model, images, layer, target, draw(st.sampled_from([*METHODS, *METHODS, "camera"])), draw(labels(n))


def check_a_map(case):
    model, images, layer, target, method, of_images = case
    model.train()
    model.head.requires_grad_(False)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        state = torch.get_rng_state()
    refusal = "`"
    try:
        maps = gradcam(model, images, layer, target, method, labels=of_images)
        assert maps.ndim == 3
        assert len(maps) == len(images)
        assert maps.dtype == torch.float32
    except (ValueError, TypeError) as error:
        refusal = str(error)
    assert any(word in refusal for word in ("`", "no logits", "label")), refusal
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True] * 4 + [False] * 2
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    return refusal != "`"


GOOD = {
    "target_layer": ["layer4", ["a", "b"], None],
    "samples": [1, 16, [0, 5]],
    "target": ["label", "predicted", 3],
    "method": list(METHODS),
    "every_n_epochs": [1, 2],
    "prefix": ["gradcam", "a_b-c.d"],
    "on_error": ["warn", "raise"],
    "grid": [None, (3, 4)],
    "drift": [Drift(), Drift(reference=3), Drift(alert_above=0.5)],
    "display": [Display(), Display(scale="run")],
}
ARGUMENTS = {
    name: st.sampled_from([st.sampled_from(good)] * 15 + [ANYTHING]).flatmap(lambda chosen: chosen)
    for name, good in GOOD.items()
}


def check_the_constructor(arguments):
    refusal = "`"
    try:
        GradCAMCallback(**arguments)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    assert "`" in refusal
    return refusal != "`"


NESTED = st.recursive(
    st.one_of(ANYTHING, st.sampled_from([torch.rand(2, 3, 4, 4), torch.rand(2), torch.arange(2), torch.rand(2, 2, 2)])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["image", "images", "label", "labels", "x"]), inner, max_size=3),
    ),
    max_leaves=5,
)


NEARLY = st.tuples(
    st.sampled_from([torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(3, 4, 4), torch.rand(0, 3, 4, 4)]),
    st.sampled_from([torch.arange(2), torch.arange(2)[:, None], torch.eye(2), None, torch.arange(3), "one"]),
    st.sampled_from([tuple, list, lambda pair: dict(zip(("image", "label"), pair, strict=True))]),
).map(lambda drawn: drawn[2](drawn[:2]))


def check_a_batch(batch):
    refusal = "`"
    try:
        assert isinstance(default_batch(batch), Batch)
    except ValueError as error:
        refusal = str(error)
    assert "`" in refusal
    return refusal != "`"


KINDS = {
    "map": (check_a_map, cases()),
    "constructor": (check_the_constructor, st.fixed_dictionaries({}, optional=ARGUMENTS)),
    "batch": (check_a_batch, NESTED | NEARLY),
}


def fuzz(kind, examples, record):
    """Try so many examples, and write into the test report how many there were and how many were refused."""
    check, strategy = KINDS[kind]
    outcomes = []
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    many = settings(max_examples=examples, deadline=None, suppress_health_check=quiet)
    many(given(strategy)(lambda example: outcomes.append(check(example))))()
    assert len(outcomes) >= examples
    assert 0 < sum(outcomes) < len(outcomes)
    record("examples", len(outcomes))
    record("refused", sum(outcomes))


@pytest.mark.filterwarnings("ignore:the .* cells of .* tell little about places:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_some(kind, record_property):
    fuzz(kind, 60, record_property)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:the .* cells of .* tell little about places:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind, record_property):
    fuzz(kind, 1000, record_property)
