"""Drift by hand, by scipy, and by properties that hold for all maps."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradcam.metrics.drift import centroid_shift, chance, concentration, distribution, similarity, topk_iou

LEFT = torch.tensor([[[3.0, 0.0], [1.0, -5.0]]])
RIGHT = torch.tensor([[[1.0, 2.0], [-1.0, 1.0]]])
EMPTY = torch.tensor([[[-1.0, 0.0], [0.0, -2.0]]])
NAN = torch.tensor([[[1.0, torch.nan], [0.0, 0.0]]])
PAIRS = [similarity, centroid_shift, topk_iou]


def test_by_hand():
    # P is 3/4, 0, 1/4, 0 and Q is 1/4, 1/2, 0, 1/4.
    assert distribution(LEFT).tolist() == [[[0.75, 0], [0.25, 0]]]
    assert similarity(LEFT, RIGHT).item() == 0.25
    # Centres (row, column): (1/4, 0) and (1/4, 3/4); the diagonal is sqrt(8).
    assert centroid_shift(LEFT, RIGHT).item() == pytest.approx(0.75 / 8**0.5)
    assert topk_iou(LEFT, RIGHT).item() == 0  # one cell each
    # Half of the cells: {0, 2} and {0, 1}.
    assert topk_iou(LEFT, torch.tensor([[[2.0, 3.0], [0.0, 1.0]]]), share=0.5).item() == pytest.approx(1 / 3)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert concentration(LEFT).item() == pytest.approx(1 - entropy / np.log(4))


def test_chance_of_many_samples_is_that_of_2000_pairs_with_a_fixed_seed():
    maps = torch.rand(300, 5, 5, generator=torch.Generator().manual_seed(0)) ** 4
    found = chance(maps)
    assert len(found) == 2000
    assert found.tolist() == chance(maps).tolist()
    assert np.allclose(found, chance(maps.numpy()), atol=1e-6)
    first, second = torch.triu_indices(300, 300, 1)
    of_all = 1 - similarity(maps[first], maps[second])
    assert found.median().item() == pytest.approx(of_all.median().item(), abs=0.01)
    assert found.min() > 0  # no sample is paired with itself
    assert len(chance(maps[:63])) == 63 * 62 // 2


def test_chance_by_hand():
    three = torch.cat([LEFT, EMPTY, RIGHT, LEFT])
    assert sorted(chance(three).tolist()) == [0, 0.75, 0.75]
    assert chance(LEFT).numel() == chance(EMPTY).numel() == 0


@pytest.mark.parametrize("undefined", [EMPTY, NAN, torch.zeros(1, 2, 2), torch.full((1, 2, 2), torch.inf)])
def test_no_place_no_number(undefined):
    for measure in PAIRS:
        assert measure(undefined, LEFT).isnan().all()
        assert measure(LEFT, undefined).isnan().all()
    assert concentration(undefined).isnan().all()
    assert distribution(undefined).isnan().all()


def test_extremes():
    one = torch.zeros(1, 3, 4)
    one[0, 1, 2] = 7
    uniform = torch.full((1, 3, 4), 0.3)
    assert concentration(one).item() == 1
    assert concentration(uniform).item() == pytest.approx(0, abs=1e-6)
    assert similarity(one, uniform).item() == pytest.approx(1 / 12)


maps = st.integers(0, 2**31).map(
    lambda seed: np.random.default_rng(seed).normal(size=(3, 5, 6)).astype("float32") + 0.2
)


@settings(max_examples=60, deadline=None)
@given(maps, maps)
def test_against_scipy(a, b):
    ours, theirs = torch.from_numpy(a), torch.from_numpy(b)
    for i in range(3):
        p, q = (np.clip(array[i].astype(float), 0, None) for array in (a, b))
        p, q = p / p.sum(), q / q.sum()
        assert similarity(ours, theirs)[i].item() == pytest.approx(1 - np.abs(p - q).sum() / 2, abs=1e-5)
        shift = np.subtract(scipy.ndimage.center_of_mass(p), scipy.ndimage.center_of_mass(q))
        assert centroid_shift(ours, theirs)[i].item() == pytest.approx(np.hypot(*shift) / np.hypot(5, 6), abs=1e-5)
        expected = 1 - scipy.stats.entropy(p.ravel()) / np.log(30)
        assert concentration(ours)[i].item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(maps, maps, st.floats(1e-3, 1e3))
def test_properties(a, b, factor):
    ours, theirs = torch.from_numpy(a), torch.from_numpy(b)
    for measure in PAIRS:
        value = measure(ours, theirs)
        assert ((value >= 0) & (value <= 1)).all()
        torch.testing.assert_close(value, measure(theirs, ours))
        torch.testing.assert_close(measure(factor * ours, theirs), value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(similarity(ours, ours), torch.ones(3))
    assert topk_iou(ours, ours).tolist() == [1, 1, 1]
    assert centroid_shift(ours, ours).tolist() == [0, 0, 0]
    torch.testing.assert_close(concentration(factor * ours), concentration(ours), rtol=1e-3, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(-2, 2), st.integers(-2, 2))
def test_a_shift_by_cells_is_that_centroid_shift(seed, down, right):
    inner = torch.from_numpy(np.random.default_rng(seed).random((2, 4, 3)).astype("float32"))
    still, moved = torch.zeros(2, 9, 8), torch.zeros(2, 9, 8)
    still[:, 2:6, 2:5] = inner
    moved[:, 2 + down : 6 + down, 2 + right : 5 + right] = inner
    expected = (down**2 + right**2) ** 0.5 / (9**2 + 8**2) ** 0.5
    torch.testing.assert_close(centroid_shift(still, moved), torch.full((2,), expected), rtol=1e-4, atol=1e-6)
