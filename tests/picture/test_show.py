"""`show`: maps over images as one picture."""

import numpy as np
import pytest
import torch

from lightning_gradcam import gradcam, show

SIDE, GUTTER = 160, 4  # of a tile, and between tiles, in pixels
TURBO_END = np.array([0x7A, 0x04, 0x03]) / 255


def pixel(picture, tile, row, column):
    """The colour in [0, 1] of a pixel of a tile in the first row."""
    return np.array(picture.getpixel((GUTTER + tile * (SIDE + GUTTER) + column, GUTTER + row))) / 255


def test_maps_lie_over_their_photos():
    images = torch.stack([torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.8)])
    maps = torch.zeros(2, 2, 2)
    maps[0, 1, 0] = 5.0
    picture = show(images, maps)
    assert picture.mode == "RGB"
    middle = SIDE - 10, 10  # within the strongest cell's outer half, where interpolation ends
    assert pixel(picture, 0, *middle) == pytest.approx(0.25 * 0.2 + 0.75 * TURBO_END, abs=0.01)
    assert pixel(picture, 0, 10, SIDE - 10) == pytest.approx([0.2] * 3, abs=0.01)  # no evidence: the photo
    assert pixel(picture, 1, 10, 10) == pytest.approx([0.8] * 3, abs=0.01)  # an empty map


def test_arrays_and_other_types():
    images, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 2, 2)
    expected = show(images, maps)
    assert np.array_equal(show(images.numpy(), maps.double().numpy()), expected)
    assert np.array_equal(show(images.requires_grad_(), maps.requires_grad_()), expected)
    assert show(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), maps.bfloat16()).size == expected.size


def test_normalization_is_undone():
    images = (torch.full((1, 3, 8, 8), 0.4) - 0.5) / 0.25
    picture = show(images, torch.zeros(1, 2, 2), mean=0.5, std=[0.25, 0.25, 0.25])
    assert pixel(picture, 0, 10, 10) == pytest.approx([0.4] * 3, abs=0.01)


def test_a_scale_that_is_guessed_is_said():
    with pytest.warns(UserWarning, match=r"`show`: no normalization is known.*; give `mean` and `std`"):
        show(torch.randn(2, 3, 8, 8), torch.randn(2, 2, 2))


def test_several_scores_stand_in_a_row_each():
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    picture = show(images, torch.zeros(6, 2, 2))
    assert picture.width == 3 * (SIDE + GUTTER) + GUTTER
    assert all(pixel(picture, tile, 10, 10) == pytest.approx([0] * 3) for tile in range(3))


@pytest.mark.parametrize("shape", [(2, 1, 50), (2, 3, 20, 30), (2, 1, 8, 20, 20)], ids=["signals", "images", "volumes"])
def test_what_gradcam_returns(shape):
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[len(shape) - 3]
    model = torch.nn.Sequential(conv(shape[1], 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(2), Mean()).eval()
    images = torch.rand(shape)
    picture = show(images, gradcam(model, images, "1", target=2), mean=0.0, std=1.0)
    assert min(picture.size) > 50


class Mean(torch.nn.Module):
    def forward(self, values):
        return values.mean(2)


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        ((3, 8, 8), (2, 2)),
        ((2, 3, 8, 8), (2, 2)),
        ((2, 3, 8, 8), (3, 2, 2)),
        ((2, 3, 8, 8), (2, 2, 2, 2)),
        ((2, 3, 8), (2, 2, 2)),
        ((2, 3), (2, 2)),
        ((0, 3, 8, 8), (0, 2, 2)),
        ((2, 3, 8, 8), (0, 2, 2)),
    ],
)
def test_shapes_that_do_not_fit(images, maps):
    with pytest.raises(ValueError, match=r"`images` must have the shape \(n, c, .*\) and `maps` \(n, .*\), got|got \("):
        show(torch.zeros(images), torch.zeros(maps))


def test_mean_without_std():
    with pytest.raises(ValueError, match="`show` needs `mean` and `std` together, got one of them"):
        show(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 2), mean=0.5)
