"""How a map ranks the pixels of a region, by hand and against scikit-learn and plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from lightning_gradcam.attribution.spatial import upsampled
from lightning_gradcam.metrics.numbers import worst_value
from lightning_gradcam.metrics.protocols import pxap, rank_accuracy, roc_auc

UNREADABLE = [
    torch.zeros(1, 2, 2),
    -torch.ones(1, 2, 2),
    torch.tensor([[[1.0, math.nan], [0, 0]]]),
    torch.ones(1, 2, 2),
]
UNREADABLE[3][0, 0, 0] = math.inf
seeds = st.integers(0, 2**31)


def row(digits):
    """A map or mask ``(1, 1, w)`` at image resolution, a digit a pixel."""
    return torch.tensor([[[float(digit) for digit in digits]]])


def random_maps(seed, size=(11, 13), ties=False):
    generator = np.random.default_rng(seed)
    maps = generator.integers(-1, 3, (3, 4, 3)) if ties else generator.normal(size=(3, 4, 3))
    masks = generator.random((3, *size)) > 0.7
    return torch.from_numpy(maps).float(), torch.from_numpy(masks)


def heights_of(maps, masks):
    """Heights to a billionth of the maximum, so that equals are equal here too."""
    heights = upsampled(maps.double().relu(), masks.shape[1:])
    return (heights / heights.amax((1, 2), keepdim=True)).numpy().round(9)


def test_roc_by_hand():
    # Of the six pairs of one inside (4, 1) and one outside (3, 2, 0) four are won.
    assert roc_auc(row("43210"), row("10010")).tolist() == [pytest.approx(4 / 6)]
    assert roc_auc(row("99000"), row("11000")).tolist() == [1]
    assert roc_auc(row("00099"), row("11000")).tolist() == [pytest.approx(1 / 6)]  # 0 and 0 by half
    assert roc_auc(row("30303"), row("10001")).tolist() == [pytest.approx((2 * 2 + 2 * 0.5) / 6)]


def test_roc_negative_cells_are_as_good_as_none():
    signed, clipped = torch.tensor([[[3.0, -9, 0, -1]]]), torch.tensor([[[3.0, 0, 0, 0]]])
    assert roc_auc(signed, row("0011")).item() == roc_auc(clipped, row("0011")).item() == 0.25


def test_ranks_by_hand():
    assert rank_accuracy(row("43210"), row("10010")).tolist() == [0.5]
    assert rank_accuracy(row("43210"), row("11100")).tolist() == [1]
    assert rank_accuracy(row("43210"), row("00011")).tolist() == [0]
    # Two of the three 2s have a place, one of them is inside: of three pixels 1 is in for sure, 2/3 by chance.
    assert rank_accuracy(row("52221"), row("11001")).tolist() == [pytest.approx((1 + 2 / 3) / 3)]
    assert rank_accuracy(row("30000"), row("01100")).tolist() == [pytest.approx(2 * (1 / 4) / 2)]


@pytest.mark.parametrize("constant", [torch.full((1, 1, 1), 0.3), torch.full((1, 3, 5), 0.7)])
def test_a_constant_map_has_what_chance_has(constant):
    mask = torch.zeros(1, 40, 30)
    mask[:, :8] = 1
    assert roc_auc(constant, mask).tolist() == [0.5]
    assert rank_accuracy(constant, mask).tolist() == [pytest.approx(0.2)]


def test_no_map_and_no_region_no_number():
    for maps in UNREADABLE:
        assert roc_auc(maps, torch.eye(4)[None]).isnan().all()
        assert rank_accuracy(maps, torch.eye(4)[None]).isnan().all()
    maps, full = torch.rand(1, 2, 2) + 1, torch.ones(1, 4, 4)
    assert roc_auc(maps, full).isnan().all()
    assert roc_auc(maps, 0 * full).isnan().all()
    assert rank_accuracy(maps, 0 * full).isnan().all()
    assert rank_accuracy(maps, full).tolist() == [1]
    assert roc_auc(maps[:0], full[:0]).shape == rank_accuracy(maps[:0], full[:0]).shape == (0,)


def test_what_a_monitor_gets_before_there_is_a_number():
    assert worst_value("roc_auc") == worst_value("rank_accuracy") == 0


def test_types():
    maps, mask = torch.tensor([[[3.0, 1], [0, 0]]]), torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    for function in (roc_auc, rank_accuracy):
        expected = function(maps, mask)
        assert expected.dtype == torch.float32
        for other in (1e-40 * maps, 1e38 * maps, maps.half(), maps.double().requires_grad_()):
            torch.testing.assert_close(function(other, mask.bool()), expected, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.booleans())
def test_roc_against_scikit_learn(seed, ties):
    maps, masks = random_maps(seed, ties=ties)
    for value, heights, mask in zip(roc_auc(maps, masks).tolist(), heights_of(maps, masks), masks, strict=True):
        if np.isnan(heights).any():
            assert math.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(mask.flatten(), heights.ravel()), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.booleans())
def test_ranks_against_plain_python(seed, ties):
    maps, masks = random_maps(seed, ties=ties)
    for value, heights, mask in zip(rank_accuracy(maps, masks).tolist(), heights_of(maps, masks), masks, strict=True):
        if np.isnan(heights).any():
            assert math.isnan(value)
            continue
        k, inside = int(mask.sum()), mask.numpy()
        least = sorted(heights.ravel())[-k]
        sure, tied = heights > least, heights == least
        share = (k - sure.sum()) / tied.sum()
        assert value == pytest.approx(((sure & inside).sum() + share * (tied & inside).sum()) / k)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([[1], [2], [1, 2]]), st.booleans())
def test_a_mirrored_image_has_the_same(seed, axes, ties):
    maps, masks = random_maps(seed, (23, 31), ties)
    for function in (roc_auc, rank_accuracy):
        assert torch.equal(
            function(maps.flip(axes), masks.flip(axes)).nan_to_num(-1), function(maps, masks).nan_to_num(-1)
        )


@pytest.mark.parametrize("axes", [(1,), (1, 2, 3)])
def test_signals_and_volumes(axes):
    maps, mask = torch.zeros(1, *[4] * len(axes)), torch.zeros(1, *[4] * len(axes))
    maps[(0, *[slice(2)] * len(axes))] = torch.rand([2] * len(axes)) + 1
    mask[(0, *[slice(2)] * len(axes))] = 1
    for function in (roc_auc, rank_accuracy):
        assert function(maps, mask).tolist() == [1]
        assert function(1 - maps / 4, 1 - mask).tolist() == [1]


def test_shapes_that_do_not_fit():
    for function in (roc_auc, rank_accuracy, pxap):
        with pytest.raises(ValueError, match=r"`masks` must have the shape \(n, H, W\), n = 2, got \(1, 4, 4\)"):
            function(torch.rand(2, 2, 2), torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"`ignored` must have the shape \(n, H, W\), n = 2, H = 4, W = 5, got \(2, 5"):
        pxap(torch.rand(2, 2, 2), torch.ones(2, 4, 5), torch.zeros(2, 5, 4))


def test_pxap_without_the_pixels_that_are_ignored():
    maps, masks = row("95330"), row("10100")
    assert pxap(maps, masks, row("00000")) == pxap(maps, masks) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    # Of 9 5 3 0 with the first and third inside.
    assert pxap(maps, masks, row("00010")) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Of 5 3 3 0 with the second inside: the one that is ignored is inside.
    assert pxap(maps, masks, row("10000")) == pytest.approx(1 / 3)
    assert math.isnan(pxap(maps, masks, masks))


def test_pxap_a_sample_that_is_ignored_as_a_whole_is_left_out():
    maps, masks = torch.cat([row("09"), row("90")]), torch.cat([row("10")] * 2)
    assert pxap(maps, masks, torch.cat([row("11"), row("00")])) == 1
    assert pxap(maps, masks, torch.cat([row("10"), row("00")])) == 1


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_pxap_with_ignored_pixels_against_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    maps, masks, ignored = generator.random((2, 5, 6)), generator.random((2, 5, 6)) > 0.6, generator.random((2, 5, 6))
    maps[:, 0, :2] = [0, 1]  # of the whole image, whatever is ignored
    masks[:, 0, 0], ignored[:, 0, 0] = True, 0
    counted = ignored <= 0.5
    expected = average_precision_score(masks[counted], maps[counted])
    assert pxap(*map(torch.from_numpy, (maps, masks, ignored))) == pytest.approx(expected, abs=1e-6)
