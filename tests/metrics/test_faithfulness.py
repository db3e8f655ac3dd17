"""The checks of maps against captum, scipy and models small enough to work out by hand."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from captum.attr import Occlusion
from scipy.stats import spearmanr
from tiny import Restless, mixed_model, tiny_net, untouched
from torch import Tensor, nn

from lightning_gradcam import Batch, TopTarget, gradcam, guided_backprop
from lightning_gradcam.metrics.drift import similarity
from lightning_gradcam.metrics.faithfulness import (
    at_patches,
    deletion,
    insertion,
    occlusion,
    occlusion_correlation,
    spearman,
)
from lightning_gradcam.metrics.randomization import randomization

NAN = float("nan")


def random_batch(n=2, size=16):
    return Batch(torch.rand(n, 3, size, size), torch.arange(n) % 3)


class Linear(nn.Module):
    """Two logits: the weighted sum of the pixels and its negative."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, images):
        total = (images[:, 0] * self.weights).sum((1, 2))
        return torch.stack([total, -total], 1)


class Share(Linear):
    """The probability of class 0 is the weighted sum of the pixels."""

    def forward(self, images):
        likely = (images[:, 0] * self.weights).sum((1, 2)).clamp(0, 1)
        return torch.stack([likely, 1 - likely], 1).log()


SHARES = [[0.4, 0.1], [0.2, 0.3]]
ONES = torch.ones(1, 1, 2, 2)

# Occlusion


@pytest.mark.parametrize(("patch", "stride"), [(4, 4), (4, 2), (8, 4), (16, 16)])
def test_occlusion_equals_captum(patch, stride):
    model, batch = tiny_net().eval(), random_batch(3)
    model[0].weight.data.mul_(30)
    found = occlusion(model, batch, patch=patch, stride=stride, baseline=[0.2, 0.5, 0.1])
    blank = torch.tensor([0.2, 0.5, 0.1])[:, None, None].expand(3, 16, 16)[None]
    window = {"sliding_window_shapes": (3, patch, patch), "strides": (3, stride, stride)}
    theirs = Occlusion(model).attribute(batch.images, target=batch.labels, baselines=blank, **window)
    # Captum gives a pixel the mean of the patches that cover it.
    total, times = torch.zeros(3, 16, 16), torch.zeros(16, 16)
    for i in range(found.shape[1]):
        for j in range(found.shape[2]):
            place = (..., slice(i * stride, i * stride + patch), slice(j * stride, j * stride + patch))
            total[place] += found[:, i, j, None, None]
            times[place] += 1
    assert found.abs().max() > 0.01
    torch.testing.assert_close((total / times)[:, None].expand_as(theirs), theirs, rtol=0, atol=1e-6)


def test_occlusion_by_hand():
    model = Linear([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    batch = Batch(torch.tensor([[[[1.0, 1.0, 2.0], [0.0, 1.0, -1.0]]]]), torch.tensor([0]))
    pixels = torch.tensor([[[1.0, 2, 6], [0, 5, -6]]])
    assert torch.equal(occlusion(model, batch, patch=1), pixels)
    assert torch.equal(occlusion(model, batch, target=1, patch=1), -pixels)
    # With 1 in their place the pixels lose w (x - 1); a patch of 2 that steps by 2 is moved back to columns 1 and 2.
    assert occlusion(model, batch, patch=2, baseline=1).tolist() == [[[-4, 3 - 12]]]
    # By default an eighth of the shorter side, at least one pixel, moved by as much.
    assert torch.equal(occlusion(model, batch), pixels)
    assert occlusion(tiny_net(), random_batch(1, 20)).shape == (1, 7, 7)


def test_the_predicted_class_is_that_of_the_untouched_image():
    model = Linear([[1.0, -3.0]])
    batch = Batch(torch.tensor([[[[1.0, 1.0]]], [[[4.0, 1.0]]]]))
    # Class 1 leads by 2 in the first image. Without its second pixel class 0 would, which is not what is asked.
    assert occlusion(model, batch, "predicted", patch=1).tolist() == [[[-1, 3]], [[4, -3]]]
    one_logit = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    one_logit[1].weight.data[:] = model.weights.data
    assert occlusion(one_logit, batch, "predicted", patch=1, at_once=1).tolist() == [[[-1, 3]], [[4, -3]]]


def test_baseline_as_a_function():
    model, batch = Linear(SHARES), Batch(ONES, torch.tensor([0]))
    halved = occlusion(model, batch, patch=1, baseline=lambda images: images.mul_(0.5))
    torch.testing.assert_close(halved[0], torch.tensor(SHARES) / 2)
    assert batch.images.tolist() == [[[[1, 1], [1, 1]]]]


def test_some_samples_at_a_time_and_a_forward_of_the_users_own():
    net = tiny_net().eval()
    images, other = torch.rand(2, 3, 3, 16, 16)
    batch = Batch(images, torch.tensor([2, 0, 1]), inputs={"other": other})

    def forward(model, batch):
        batch.images.add_(batch.inputs["other"])
        return {"logits": model(batch.images)}

    def target(output, batch):
        return output["logits"].gather(1, batch.labels[:, None])[:, 0]

    maps, before = torch.rand(3, 4, 4), images.clone()
    for check in (
        partial(occlusion, patch=8, forward_fn=forward),
        partial(occlusion_correlation, maps=maps, forward_fn=forward),
        partial(deletion, maps=maps, steps=3, forward_fn=forward),
        partial(insertion, maps=maps, steps=3, forward_fn=forward),
    ):
        for asked in ("label", "predicted", 1, target):
            together, two = check(net, batch, target=asked), check(net, batch, target=asked, at_once=2)
            torch.testing.assert_close(two, together, rtol=1e-4, atol=1e-6)
    assert torch.equal(images, before)
    everything = randomization(net, batch, "5", "predicted", forward_fn=forward)
    parts = randomization(net, batch, "5", "predicted", forward_fn=forward, at_once=2)
    torch.testing.assert_close(parts, everything, rtol=0, atol=0.01)


# Rank correlation


def test_spearman_equals_scipy_with_ties():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 6, (20, 5, 7), generator=generator).float()
    others = torch.cat([torch.rand(10, 5, 7, generator=generator), maps[10:].sqrt() - torch.rand(10, 5, 7).round()])
    expected = [spearmanr(one.flatten(), two.flatten()).statistic for one, two in zip(maps, others, strict=True)]
    torch.testing.assert_close(spearman(maps, others), torch.tensor(expected, dtype=torch.float32))


def test_spearman_by_hand():
    maps = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]], [[1.0, 1.0, 2.0]]])
    others = torch.tensor([[[-5.0, 0.0, 100.0]], [[3.0, 2.0, 1.0]], [[1.0, 2.0, 2.0]]])
    assert spearman(maps, others).tolist() == [1, -1, 0.5]
    broken = torch.tensor([[[7.0, 7.0, 7.0]], [[1.0, NAN, 2.0]], [[1.0, float("inf"), 2.0]]])
    assert spearman(maps, broken).isnan().all()
    assert spearman(broken, maps).isnan().all()
    with pytest.raises(ValueError, match=r"same shape, got \(3, 1, 3\) and \(3, 3\); bring both to one grid"):
        spearman(maps, maps[:, 0])


def test_correlation_of_the_truth_is_one():
    model, batch = Linear(torch.randn(8, 8).tolist()), Batch(torch.rand(3, 1, 8, 8), torch.zeros(3))
    truth = batch.images[:, 0] * model.weights.detach()
    for patch, stride in ((1, 1), (2, 1), (3, 2)):
        for maps, expected in ((truth, 1), (-truth, -1)):
            found = occlusion_correlation(model, batch, maps, patch=patch, stride=stride)
            torch.testing.assert_close(found, torch.full((3,), float(expected)))
    assert (occlusion_correlation(model, batch, torch.rand(3, 8, 8), patch=1).abs() < 0.5).all()


def test_maps_over_patches():
    batch = Batch(torch.rand(1, 1, 4, 5))
    maps = torch.arange(20.0).reshape(1, 4, 5)
    assert at_patches(maps, batch, 2).tolist() == [[[3, 5, 6], [13, 15, 16]]]  # the last ones start in column 3
    # A map of two cells over four pixels is 0, 1/4, 3/4, 1 there, as `interpolate` draws it.
    assert at_patches(torch.tensor([[[0.0, 1.0]]]), Batch(torch.rand(1, 1, 4, 4)), 4).tolist() == [[[0.5]]]
    halves = at_patches(torch.tensor([[[0.0, 1.0]]]), Batch(torch.rand(1, 1, 2, 4)), 2)
    assert halves.tolist() == [[[0.125, 0.875]]]


def test_correlation_without_an_answer_is_nan():
    model, batch = Linear(torch.randn(8, 8).tolist()), Batch(torch.rand(3, 1, 8, 8), torch.zeros(3))
    maps = torch.rand(3, 3, 3)
    maps[0], maps[1, 0, 0] = 0.3, NAN
    assert occlusion_correlation(model, batch, maps).isnan().tolist() == [True, True, False]
    blind = Linear([[0.0] * 8] * 8)
    assert occlusion_correlation(blind, batch, torch.rand(3, 3, 3)).isnan().all()


# Deletion and insertion


@pytest.mark.parametrize("target", ["label", "predicted", 0])
def test_deletion_and_insertion_by_hand(target):
    model, batch = Share(SHARES), Batch(ONES, torch.tensor([0]))
    best, worst = torch.tensor([SHARES]), 1 - torch.tensor([SHARES])
    # Deleted best first, the probability is 1, 0.6, 0.3, 0.1, 0; worst first 1, 0.9, 0.7, 0.4, 0.
    for check, maps, expected in (
        (deletion, best, 1.5 / 4),
        (deletion, worst, 2.5 / 4),
        (insertion, best, 2.5 / 4),
        (insertion, worst, 1.5 / 4),
    ):
        torch.testing.assert_close(check(model, batch, maps, target, steps=4), torch.tensor([expected]))
    # In three steps 0, 1, 3 and 4 pixels are gone.
    expected = torch.tensor([0.25 * 0.8 + 0.5 * 0.35 + 0.25 * 0.05])
    torch.testing.assert_close(deletion(model, batch, best, target, steps=3), expected)
    # In one step all are, whatever the order.
    torch.testing.assert_close(deletion(model, batch, worst, target, steps=1), torch.tensor([0.5]))
    # With a quarter of each pixel left the curve ends there.
    found = deletion(model, batch, best, target, steps=4, baseline=0.25)
    torch.testing.assert_close(found, torch.tensor([0.25 + 0.75 * 1.5 / 4]))


def test_pixels_of_the_same_value_go_in_reading_order():
    model, batch = Share(SHARES), Batch(ONES, torch.tensor([0]))
    maps = torch.tensor([[[0.0, 0.0], [1.0, -1.0]]])  # 0.2, 0.4, 0.1, 0.3
    torch.testing.assert_close(
        deletion(model, batch, maps, steps=4), torch.tensor([(0.5 + 0.8 + 0.4 + 0.3) / 4]), rtol=0, atol=1e-6
    )


def test_what_is_called_the_probability():
    pixels = torch.tensor([[[[2.0, -1.0]]]])
    maps = torch.tensor([[[2.0, 1.0]]])

    def area(model, target, labels, function):
        found = deletion(model, Batch(pixels, labels), maps, target, steps=2)
        curve = function(torch.tensor([1.0, -1.0, 0.0]))  # the sum of the pixels that are left
        torch.testing.assert_close(found, (curve[:1] + 2 * curve[1:2] + curve[2:]) / 4)

    sums = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    nn.init.ones_(sums[1].weight)
    area(sums, "label", torch.tensor([1]), torch.sigmoid)
    area(sums, "label", torch.tensor([[0]]), lambda total: torch.sigmoid(-total))
    area(sums, "predicted", None, torch.sigmoid)
    area(sums, 0, None, lambda total: torch.sigmoid(-total))
    area(sums, lambda output, batch: 3 * output[:, 0], None, lambda total: 3 * total)
    both = Linear([[1.0, 1.0]])
    area(both, 1, None, lambda total: torch.sigmoid(-2 * total))
    area(both, 1, torch.tensor([255]), lambda total: torch.sigmoid(-2 * total))  # a label that is not asked about
    several = torch.tensor([[1.0, 1.0]])
    area(both, "label", several, torch.ones_like)  # of one class as of its opposite
    area(both, "predicted", several, torch.sigmoid)
    area(both, "label", several - torch.tensor([[0.0, 1.0]]), lambda total: torch.sigmoid(2 * total))  # one of two


def test_maps_without_an_order_are_nan():
    model, batch = Share(SHARES), Batch(ONES.expand(6, -1, -1, -1), torch.zeros(6))
    maps = torch.rand(6, 2, 2)
    maps[0], maps[1], maps[2] = 0, -maps[1], 5
    maps[3, 0, 0], maps[4, 0, 0] = NAN, float("inf")
    for check in (deletion, insertion):
        assert check(model, batch, maps, steps=2).isnan().tolist() == [True] * 5 + [False]


def test_a_map_of_the_layer_tells_more_than_its_opposite():
    model = nn.Sequential(nn.Conv2d(1, 2, 2, 2, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data[:] = torch.tensor([1.0, -1.0])[:, None, None, None]
    batch = Batch(torch.rand(4, 1, 8, 8), torch.zeros(4))
    maps = gradcam(model, batch.images, "0", 0)
    assert (deletion(model, batch, maps) < deletion(model, batch, maps.amax() - maps)).all()
    assert (insertion(model, batch, maps) > insertion(model, batch, maps.amax() - maps)).all()
    assert (occlusion_correlation(model, batch, maps, patch=2) > 0.8).all()


# Randomisation


def test_cascade_by_hand():
    model, batch = tiny_net().eval(), random_batch(3)
    found = randomization(model, batch, "5", seed=7)
    assert list(found) == ["8", "4", "1", "0"]
    first = gradcam(model, batch.images, "5", labels=batch.labels, target="label")
    random, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    for name, values in found.items():
        for own in random[int(name)].parameters():
            noise = torch.randn(own.shape, generator=generator)
            own.data = own.data.mean() + own.data.std(correction=0) * noise
        maps = gradcam(random, batch.images, "5", labels=batch.labels, target="label")
        expected = [spearmanr(one.flatten(), two.flatten()).statistic for one, two in zip(maps, first, strict=True)]
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-3)
    assert (found["0"].abs() < 0.9).all()


def test_a_map_that_ignores_the_model_stays_as_it_is():
    model, batch = tiny_net(), random_batch(2)
    edges = batch.images.mean(1).diff(dim=2, prepend=torch.zeros(2, 16, 1)).abs()[:, ::2, ::2]
    found = randomization(model, batch, "5", method=lambda activations, gradients: edges, compare=similarity)
    torch.testing.assert_close(found, {name: torch.ones(2) for name in ("8", "4", "1", "0")})
    found = randomization(model, batch, "5", method=lambda activations, gradients: edges)
    torch.testing.assert_close(found, {name: torch.ones(2) for name in ("8", "4", "1", "0")})
    # A map of the activations alone depends on the layers before, not on the head.
    found = randomization(model, batch, "5", method=lambda activations, gradients: activations.sum(1))
    torch.testing.assert_close(found["8"], torch.ones(2))
    assert (found["0"] < 0.99).all()


def test_cascade_is_repeatable_and_of_the_seed():
    model, batch = Restless(), random_batch(2)
    first = randomization(model, batch, "net[4]")
    torch.rand(3)
    assert torch.equal(first["net.0"], randomization(model, batch, "net[4]")["net.0"])
    assert not torch.equal(first["net.0"], randomization(model, batch, "net[4]", seed=1)["net.0"])


class Odd(nn.Module):
    """Weights of its own, made from others, shared, frozen, called by a parent, called twice and never called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)  # registered first and called last
        self.shift = nn.Parameter(torch.rand(8, 1, 1))
        self.stem = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 4, 4))
        self.mix, self.mix_too = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, bias=False)
        self.mix_too.weight = self.mix.weight
        self.again = self.mix
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Sequential(nn.Linear(3, 3))
        self.stem.requires_grad_(False)

    def forward(self, images):
        features = self.again(self.mix(self.stem(images) + self.shift)).relu()
        tokens = self.mix_too(features).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_cascade_of_an_odd_model():
    model, batch = Odd(), random_batch(2)
    order = ["head", "attention.out_proj", "attention", "mix_too", "mix", "stem", ""]
    with untouched(model):
        found = randomization(model, batch, "mix_too")
    assert list(found) == order
    # The shared weight is random from `mix_too` on; of `mix` only the bias is left. Each step tells.
    steps = list(found.values())
    assert all(not torch.equal(one, two) for one, two in pairwise(steps))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_cascade_with_weight_norm_as_a_hook():
    model = tiny_net()
    nn.utils.weight_norm(model[4])
    batch = random_batch(2)
    model(batch.images).sum().backward()
    with untouched(model):
        found = randomization(model, batch, "5")
    assert not torch.equal(found["4"], found["8"])


def test_cascade_of_a_compiled_model_and_of_bfloat16():
    model, batch = tiny_net().eval(), random_batch(2)
    compiled = torch.compile(model, backend="eager")
    expected, found = randomization(model, batch, "5"), randomization(compiled, batch, "5")
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected)
    half = random_batch(2).apply(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)
    for values in randomization(model.bfloat16(), half, "5").values():
        assert values.dtype == torch.float32
        assert values.isfinite().all()


# What is left behind, and what is refused

CHECKS = {
    "occlusion": lambda model, batch, maps, **options: occlusion(model, batch, patch=8, **options),
    "correlation": lambda model, batch, maps, **options: occlusion_correlation(model, batch, maps, patch=8, **options),
    "deletion": lambda model, batch, maps, **options: deletion(model, batch, maps, steps=2, **options),
    "insertion": lambda model, batch, maps, **options: insertion(model, batch, maps, steps=2, **options),
    "randomization": lambda model, batch, maps, **options: randomization(model, batch, None, **options),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("target", ["label", "predicted"])
def test_leaves_no_trace(check, target):
    for model in (mixed_model(), Restless().train()):
        batch, maps = random_batch(2), torch.rand(2, 4, 4)
        before = batch.images.clone()
        loss = model(torch.rand(2, 3, 16, 16)).sum()  # its graph is still to be gone through
        model.zero_grad()
        state = model.state() if isinstance(model, Restless) else None
        with untouched(model):
            check(model, batch, maps, target=target)
        assert torch.equal(batch.images, before)
        assert state is None or model.state() == state
        assert torch.is_grad_enabled()
        loss.backward()


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_runs_whatever_the_default_device_and_in_inference_mode(check):
    model, batch, maps = tiny_net(), random_batch(2), torch.rand(2, 4, 4)
    options = {} if check is CHECKS["randomization"] else {"baseline": [0.1, 0.2, 0.3]}
    expected = check(model, batch, maps, **options)
    with torch.device("meta"):
        torch.testing.assert_close(check(model, batch, maps, **options), expected)
    with torch.inference_mode():
        torch.testing.assert_close(check(model, batch.apply(Tensor.clone), maps, **options), expected)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_leaves_no_trace_after_an_exception(check):
    calls = []

    def fail(output, batch):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("stop")
        return output[:, 0]

    model, batch, maps = mixed_model(), random_batch(2), torch.rand(2, 4, 4)
    with untouched(model), pytest.raises(RuntimeError, match="stop"):
        check(model, batch, maps, target=fail)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_refuses_in_words(check):
    model, batch, maps = tiny_net(), random_batch(2), torch.rand(2, 4, 4)
    with pytest.raises(TypeError, match=r"`batch` must be a `Batch`, got Tensor; write `Batch\(images, labels\)`"):
        check(model, batch.images, maps)
    with pytest.raises(ValueError, match=r"`target` must be one of .*, got 'best'"):
        check(model, batch, maps, target="best")
    with pytest.raises(ValueError, match=r'`target="label"` needs labels and the batch has none'):
        check(model, Batch(batch.images), maps)
    with pytest.raises(ValueError, match="`target` 3 is outside the model's 3 classes, 0 to 2"):
        check(model, batch, maps, target=3)
    with pytest.raises(ValueError, match="`at_once` must be a whole number, at least 1, got 0"):
        check(model, batch, maps, at_once=0)
    with pytest.raises(ValueError, match="Sequential has layers without a shape; run it once on a batch before"):
        check(nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), batch, maps)
    with pytest.raises(ValueError, match="label 5 is outside the model's 3 classes"):
        check(model, Batch(batch.images, torch.tensor([5, 0])), maps)


@pytest.mark.parametrize("check", [occlusion_correlation, deletion, insertion])
@pytest.mark.parametrize(
    ("maps", "got"),
    [(torch.rand(2, 1, 4, 4), r"\(2, 1, 4, 4\)"), (torch.rand(3, 4, 4), r"\(3, 4, 4\)"), (None, "None")],
)
def test_refuses_maps_in_words(check, maps, got):
    with pytest.raises(ValueError, match=rf"`maps` must be a tensor \(2, h, w\), one map for each sample, got {got}"):
        check(tiny_net(), random_batch(2), maps)


def test_refuses_numbers_in_words():
    model, batch, maps = tiny_net(), random_batch(2), torch.rand(2, 4, 4)
    for patch in (0, 17, 2.0, True):
        with pytest.raises(ValueError, match=rf"`patch` must be a whole number, from 1 to 16, got {patch}"):
            occlusion(model, batch, patch=patch)
    with pytest.raises(ValueError, match="`stride` must be a whole number, from 1 to 4, got 5"):
        at_patches(maps, batch, 4, 5)
    with pytest.raises(ValueError, match="`steps` must be a whole number, at least 1, got 0"):
        deletion(model, batch, maps, steps=0)
    for baseline in ("grey", [0.1, 0.2], torch.zeros(3, 1), NAN, None):
        with pytest.raises(ValueError, match=r"`baseline` must be a number, one per channel, that is 3, or a function"):
            insertion(model, batch, maps, baseline=baseline)
    with pytest.raises(ValueError, match=r"`baseline` must give images \(2, 3, 16, 16\), got \(2, 16, 16\)"):
        deletion(model, batch, maps, baseline=lambda images: images[:, 0])
    with pytest.raises(ValueError, match="`method` must be one of"):
        randomization(model, batch, method="camera")
    with pytest.raises(ValueError, match=r"no logits .* pass a function"):
        deletion(nn.Conv2d(3, 4, 3), batch, maps)


def test_several_scores_a_sample_are_refused():
    model, batch = tiny_net().eval(), Batch(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    maps = gradcam(model, batch.images, "4", 0)
    for check in (
        lambda: occlusion(model, batch, [0, 1]),
        lambda: deletion(model, batch, maps, TopTarget(2)),
        lambda: randomization(model, batch, "4", [0, 1]),
    ):
        with pytest.raises(ValueError, match="`target` must give one score a sample here, got 2"):
            check()


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.Sigmoid()])
@pytest.mark.parametrize("target", ["label", "predicted", 1])
def test_a_net_that_ends_in_probabilities_is_asked_as_one_that_ends_in_logits(ending, target):
    torch.manual_seed(0)
    plain = tiny_net().eval()
    model, batch = nn.Sequential(plain, ending), Batch(torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2]))
    found, expected = (occlusion(one, batch, target, patch=8) for one in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if isinstance(ending, nn.Softmax):
        maps = torch.rand(3, 4, 4)
        found, expected = (deletion(one, batch, maps, target, steps=4) for one in (model, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found, expected = (guided_backprop(one, batch.images, target, batch.labels) for one in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
