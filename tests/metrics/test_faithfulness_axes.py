"""The checks of maps of signals, volumes and clips, and of images whose channels lie elsewhere."""

import pytest
import torch
from captum.attr import Occlusion
from tiny import Share
from torch import nn

from lightning_gradcam import Batch
from lightning_gradcam.metrics.faithfulness import (
    at_patches,
    deletion,
    insertion,
    occlusion,
    occlusion_correlation,
    spearman,
)

WEIGHTS = {
    "signal": [1.0, 2.0, 3.0, 4.0],
    "volume": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]],
}


class Sum(Share):
    """Two logits: the weighted sum and its negative."""

    def forward(self, images):
        total = (images[:, 0] * self.weights).flatten(1).sum(1)
        return torch.stack([total, -total], 1)


class Moved(nn.Module):
    """A model that has its channels first, for images that have them elsewhere."""

    def __init__(self, model, axis):
        super().__init__()
        self.model, self.axis = model, axis

    def forward(self, images):
        return self.model(images.movedim(self.axis, 1))


def net_of(d):
    torch.manual_seed(0)
    convolution, pooling = {2: (nn.Conv2d, nn.AdaptiveAvgPool2d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[d]
    return nn.Sequential(convolution(3, 4, 3), nn.ReLU(), pooling(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def test_by_hand_of_a_signal():
    model, batch = Sum(WEIGHTS["signal"]), Batch(torch.tensor([[[1.0, 1.0, 2.0, -1.0]]]), torch.tensor([0]))
    assert occlusion(model, batch).tolist() == [[1, 2, 6, -4]]
    assert occlusion(model, batch, patch=3, stride=2).tolist() == [[9, 4]]  # the second one is moved back by one
    assert occlusion(model, batch, patch=2, baseline=1).tolist() == [[0, 3 - 8]]
    assert at_patches(torch.tensor([[1.0, 2.0, 3.0, 6.0]]), batch, 3, 1).tolist() == [[2, pytest.approx(11 / 3)]]
    assert at_patches(torch.tensor([[0.0, 1.0]]), batch, 2).tolist() == [[0.125, 0.875]]  # 0, 1/4, 3/4, 1
    assert occlusion_correlation(model, batch, torch.tensor([[0.1, 0.2, 0.3, -0.1]]), patch=1).item() == 1
    assert spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])).item() == -1


def test_by_hand_of_a_volume():
    model, batch = Sum(WEIGHTS["volume"]), Batch(torch.ones(1, 1, 2, 2, 2), torch.tensor([0]))
    weights = torch.tensor([WEIGHTS["volume"]])
    assert torch.equal(occlusion(model, batch), weights)
    assert occlusion(model, batch, patch=2).tolist() == [[[[36]]]]
    assert torch.equal(at_patches(weights, batch, 1), weights)
    assert at_patches(weights, batch, 2).tolist() == [[[[4.5]]]]
    assert occlusion_correlation(model, batch, -weights, patch=1).item() == -1


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2), (4, 1, 1)])
def test_deletion_and_insertion_by_hand(shape):
    shares = torch.tensor([0.4, 0.1, 0.2, 0.3]).reshape(shape)
    model, batch = Share(shares.tolist()), Batch(torch.ones(1, 1, *shape), torch.tensor([0]))
    # Deleted best first, the probability is 1, 0.6, 0.3, 0.1, 0; worst first 1, 0.9, 0.7, 0.4, 0.
    for check, maps, expected in (
        (deletion, shares, 1.5 / 4),
        (deletion, 1 - shares, 2.5 / 4),
        (insertion, shares, 2.5 / 4),
        (insertion, 1 - shares, 1.5 / 4),
    ):
        torch.testing.assert_close(check(model, batch, maps[None], steps=4), torch.tensor([expected]))


def test_occlusion_of_a_volume_equals_captum():
    model, batch = net_of(3), Batch(torch.rand(2, 3, 4, 6, 6), torch.tensor([2, 0]))
    found = occlusion(model, batch, patch=2, baseline=[0.2, 0.5, 0.1])
    blank = torch.tensor([0.2, 0.5, 0.1])[:, None, None, None].expand(1, 3, 4, 6, 6)
    window = {"sliding_window_shapes": (3, 2, 2, 2), "strides": (3, 2, 2, 2)}
    theirs = Occlusion(model).attribute(batch.images, target=batch.labels, baselines=blank, **window)
    assert found.shape == (2, 2, 3, 3)
    torch.testing.assert_close(found, theirs[:, 0, ::2, ::2, ::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "patch"), [((9,), 4), ((5, 8, 7), 3), ((2, 8, 8), 4)])
def test_means_of_patches_against_numpy(size, patch):
    batch, maps = Batch(torch.rand(2, 1, *size)), torch.rand(2, *size)
    sides = [min(patch, side) for side in size]  # few slices are taken whole
    expected = maps
    for axis, side in enumerate(sides, 1):
        expected = expected.unfold(axis, side, 1)
    expected = expected.flatten(len(size) + 1).mean(-1)
    torch.testing.assert_close(at_patches(maps, batch, patch, 1), expected)


def test_few_frames_or_slices_do_not_make_the_patches_many():
    for shape in ((1, 3, 4, 32, 40), (1, 3, 32, 40, 4)):
        size = torch.Size(shape[2:])
        found = at_patches(torch.rand(1, *size), Batch(torch.rand(shape)))
        assert sorted(found.shape) == [1, 1, 8, 10]


@pytest.mark.parametrize(
    ("d", "size", "options", "axis"),
    [(2, (12, 12), {}, 3), (3, (4, 8, 8), {"time_axis": 1}, 2), (3, (4, 8, 8), {"time_axis": 2}, 1)],
    ids=["channels last", "frames first", "frames second"],
)
def test_channels_that_lie_elsewhere(d, size, options, axis):
    model, images, labels = net_of(d), torch.rand(2, 3, *size), torch.tensor([1, 2])
    first, moved = Batch(images, labels), Batch(images.movedim(1, axis), labels, **options)
    assert moved.channel_axis == axis
    maps, other = torch.randn(2, *[2] * d), Moved(model, axis)
    for check in (
        lambda model, batch: occlusion(model, batch, patch=4, baseline=[0.1, 0.2, 0.3]),
        lambda model, batch: occlusion_correlation(model, batch, maps, "predicted", patch=4),
        lambda model, batch: deletion(model, batch, maps, steps=3, baseline=[0.1, 0.2, 0.3]),
        lambda model, batch: insertion(model, batch, maps, steps=3, baseline=lambda images: images / 2),
    ):
        torch.testing.assert_close(check(other, moved), check(model, first), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_one_more_axis_of_one_cell_changes_nothing(d):
    weights, maps = torch.randn(*[4] * (d - 1)), torch.randn(2, *[3] * (d - 1))
    images, labels = torch.rand(2, 1, *[4] * (d - 1)), torch.tensor([0, 1])
    flat, thin = Batch(images, labels), Batch(images[:, :, None], labels)
    model, other = Sum(weights.tolist()), Sum(weights[None].tolist())
    for check in (deletion, insertion, occlusion_correlation):
        torch.testing.assert_close(check(other, thin, maps[:, None]), check(model, flat, maps))


def test_refuses_maps_of_other_axes_in_words():
    model, batch = net_of(3), Batch(torch.rand(2, 3, 4, 6, 6), torch.tensor([2, 0]))
    for check in (deletion, insertion, occlusion_correlation):
        with pytest.raises(ValueError, match=r"`maps` must be a tensor \(2, d, h, w\), one map .* got \(2, 4, 4\)"):
            check(model, batch, torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match="`patch` must be a whole number, from 1 to 6, got 7"):
        occlusion(model, batch, patch=7)
