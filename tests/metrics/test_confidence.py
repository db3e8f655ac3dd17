"""Average drop and increase by hand, against torchcam, and for images of any axes."""

import math
from functools import partial

import pytest
import torch
import torchcam.methods
from tiny import Restless, Share, tiny_net, untouched
from torch import nn
from torchcam.metrics import ClassificationMetric

from lightning_gradcam import Batch, gradcam
from lightning_gradcam.metrics.confidence import average_drop, average_increase

EMPTY, NOT_FINITE = torch.zeros(1, 2, 2), torch.tensor([[[1.0, math.nan], [0, 0]]])


MODEL = Share([[0.4, 0.3], [0.3, -0.2]])  # 0.8 for an image of ones
BATCH = Batch(torch.ones(1, 1, 2, 2), torch.tensor([0]))
both = [average_drop, average_increase]


def of(cells, **options):
    return [function(MODEL, BATCH, torch.tensor([cells]), **options) for function in both]


def test_by_hand():
    assert of([[2.0, 0], [0, 0]]) == [pytest.approx((0.8 - 0.4) / 0.8), 0]
    assert of([[2.0, 1], [0, -5]]) == [pytest.approx((0.8 - 0.4 - 0.15) / 0.8), 0]  # the negative side is not shown
    assert of([[1.0, 1], [1, 0]]) == [0, 1]  # without what speaks against it 1.0
    assert of([[3.0, 3], [3, 3]]) == [0, 0]  # the image itself
    assert of([[1.0, 1], [1, 0]], target=1) == [1, 0]  # from 0.2 to 0
    assert of([[0.0, 0], [0, 1]], baseline=1.0) == [0, 0]


def test_the_baseline_shows_where_the_map_does_not():
    # 0.5 * 0.4 + 0.5 * 0.3 beside half of the baseline there, and the baseline alone in the other row.
    (drop, _) = of([[1.0, 1], [0, 0]], baseline=0.5)
    assert drop == pytest.approx((0.8 - (0.7 + 0.5 * 0.1)) / 0.8)


def test_samples_without_a_map_and_without_a_probability_are_left_out():
    maps = torch.cat([EMPTY, NOT_FINITE, torch.tensor([[[1.0, 0], [0, 0]], [[1.0, 1], [1, 0]], [[0, 1.0], [0, 0]]])])
    images = torch.ones(5, 1, 2, 2)
    images[4] = 0  # a probability of 0
    batch = Batch(images, torch.zeros(5).long())
    assert average_drop(MODEL, batch, maps) == pytest.approx(0.25)  # of 0.5 and 0
    assert average_increase(MODEL, batch, maps) == pytest.approx(1 / 3)
    assert math.isnan(average_drop(MODEL, BATCH, EMPTY))
    assert math.isnan(average_increase(MODEL, BATCH, EMPTY))


def test_a_model_that_gives_nan_is_not_hidden():
    model = Share([[math.nan, 0.3], [0.3, -0.2]])
    for function in both:
        assert math.isnan(function(model, BATCH, torch.ones(1, 2, 2)))


@pytest.mark.parametrize("negative", [False, True])
def test_equals_torchcam(negative):
    """The layer has the size of the image and maps some cells without evidence, so that both scale them alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(6, 3)).eval()
    model[4].weight.data.mul_(-20 if negative else 20)
    batch = Batch(torch.randn(8, 3, 9, 9), torch.arange(8) % 3)
    with torchcam.methods.GradCAM(model, "1") as extractor:
        metric = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):  # a list of labels is new in 0.5
            metric.update(image[None], label)
    expected = metric.summary()
    # Torchcam's maps are of what its metric looks at, the probability.
    maps = gradcam(model, batch.images, "1", target=lambda output, _: output.softmax(1)[range(8), batch.labels])
    assert (maps.amin((1, 2)) <= 0).all()
    assert (maps.amax((1, 2)) > 0).all()
    assert 0.05 < expected["avg_drop"] < 0.95
    assert average_drop(model, batch, maps) == pytest.approx(expected["avg_drop"], abs=1e-5)
    assert average_increase(model, batch, maps) == pytest.approx(expected["conf_increase"])
    assert average_drop(model, batch, maps, at_once=3) == pytest.approx(expected["avg_drop"], abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "time_axis"), [((1, 1, 4), None), ((1, 4, 1), 1), ((1, 1, 2, 2, 2), 2), ((1, 2, 1, 2, 2), 1)]
)
def test_signals_volumes_and_clips(shape, time_axis):
    images = torch.ones(shape)
    size = Batch(images, time_axis=time_axis).size
    weights = torch.full(size, 0.8 / math.prod(size))
    model = Share(weights.tolist())
    moved = nn.Sequential(Moved(Batch(images, time_axis=time_axis).channel_axis), model)
    maps = torch.zeros(1, *size)
    maps[:, 0] = 7.0  # the first quarter of the signal, the first half of the others
    batch = Batch(images, torch.tensor([0]), time_axis=time_axis)
    assert average_drop(moved, batch, maps) == pytest.approx(1 - 1 / size[0])


class Moved(nn.Module):
    """The channels brought behind the samples."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, images):
        return images.movedim(self.axis, 1)


def test_images_with_channels_last_and_of_bytes():
    model = nn.Sequential(Moved(3), tiny_net()).eval()
    images, maps, labels = torch.rand(2, 3, 16, 16), torch.rand(2, 4, 4), torch.tensor([0, 2])
    found = average_drop(model, Batch(images.movedim(1, 3).contiguous(), labels), maps)
    assert found == pytest.approx(average_drop(model[1], Batch(images, labels), maps))

    class Bytes(nn.Module):
        def forward(self, images):
            assert images.dtype == torch.uint8
            return Share([[0.4, 0.3], [0.3, -0.2]])(images / 100)

    batch = Batch(torch.full((1, 1, 2, 2), 100, dtype=torch.uint8), torch.tensor([0]))
    assert average_drop(Bytes(), batch, torch.tensor([[[2.0, 0], [0, 0]]])) == pytest.approx(0.5)


def test_a_function_as_target():
    maps = torch.tensor([[[1.0, 0], [0, 0]]])
    assert average_drop(MODEL, BATCH, maps, lambda output, batch: output[:, 0].exp()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"`target` must give scores of at least 0, .* got -0.2231; let the function"):
        average_drop(MODEL, BATCH, maps, lambda output, batch: output[:, 0])
    assert average_increase(MODEL, BATCH, maps, lambda output, batch: -output[:, 0]) == 1


def test_what_does_not_fit_is_refused():
    for function in both:
        with pytest.raises(ValueError, match=r"`maps` must be a tensor \(1, h, w\), one map for each sample, got \(2,"):
            function(MODEL, BATCH, torch.ones(2, 2, 2))
        with pytest.raises(TypeError, match="`batch` must be a `Batch`, got Tensor"):
            function(MODEL, BATCH.images, torch.ones(1, 2, 2))
        with pytest.raises(ValueError, match="`target` must give one score a sample here, got 2"):
            function(MODEL, BATCH, torch.ones(1, 2, 2), [0, 1])


def test_the_model_stays_as_it_was():
    model, batch, maps = Restless(), Batch(torch.rand(2, 3, 16, 16), torch.tensor([0, 1])), torch.rand(2, 4, 4)
    with untouched(model):
        for function in both:
            function(model, batch, maps)
