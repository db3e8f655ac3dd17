"""Numbers of numpy arrays, which need no torch, are those of tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradcam.attribution.regions import box_masks, cut_region, outline_boxes, region_masks
from lightning_gradcam.attribution.spatial import averaged, cells_in_rows
from lightning_gradcam.metrics import drift, evidence, localization
from lightning_gradcam.metrics.numbers import aggregate, describe

GRIDS = [(1,), (5,), (4, 6), (7, 7), (3, 4, 2)]
SIZES = {1: (23,), 2: (20, 31), 3: (9, 8, 11)}


def maps_of(grid, seed=0, n=6):
    """Random maps, of which one is empty, one all zero, one constant, one not finite and one infinite."""
    maps = np.random.default_rng(seed).normal(size=(n, *grid)).astype(np.float32)
    maps[1], maps[2], maps[3] = -np.abs(maps[1]), 0, 1
    maps[4].flat[0], maps[5].flat[-1] = np.nan, np.inf
    return maps


def masks_of(size, seed=0, n=6):
    masks = (np.random.default_rng(seed).random((n, *size)) > 0.6).astype(np.float32)
    masks[0] = 0
    return masks


def assert_alike(function, *arrays, **options):
    """What a function makes of arrays is an array, what it makes of tensors a tensor, and their values are equal."""
    with np.errstate(all="ignore"):
        found = function(*arrays, **options)
    expected = function(*map(torch.from_numpy, arrays), **options)
    assert isinstance(found, np.ndarray)
    assert isinstance(expected, torch.Tensor)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ["distribution", "chance", "concentration"])
def test_drift_of_one(name, grid):
    assert_alike(getattr(drift, name), maps_of(grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ["similarity", "agreement", "centroid_shift", "topk_iou"])
def test_drift_of_two(name, grid):
    assert_alike(getattr(drift, name), maps_of(grid), maps_of(grid, 1)[::-1].copy())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_agreement_on_other_grids(grid):
    assert_alike(drift.agreement, maps_of(grid), maps_of([side + 2 for side in grid], 1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ["strength", "empty"])
def test_evidence(name, grid):
    assert_alike(getattr(evidence, name), maps_of(grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_maps_cannot_be_read(grid):
    maps = maps_of(grid)
    assert evidence.unreadable(maps) == evidence.unreadable(torch.from_numpy(maps))
    assert evidence.explain_empty_maps(maps) == evidence.explain_empty_maps(torch.from_numpy(maps))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ["mass", "lift"])
def test_localization(name, grid):
    assert_alike(getattr(localization, name), maps_of(grid), masks_of(SIZES[len(grid)]))


def test_no_maps_at_all():
    nothing = np.zeros((0, 3, 4), np.float32)
    for function in (drift.distribution, drift.chance, drift.concentration, evidence.empty):
        assert_alike(function, nothing)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_all_numbers_of_an_observation_and_of_several(grid):
    regions = {"object": masks_of(SIZES[len(grid)], 2), "tag": masks_of(SIZES[len(grid)], 3)}
    one, two = maps_of(grid), maps_of(grid, 1)
    with np.errstate(all="ignore"):
        found = describe(np.concatenate([one, two]), True, regions)
    for maps, values in ((one, slice(6)), (two, slice(6, None))):
        tensors = {name: torch.from_numpy(mask) for name, mask in regions.items()}
        expected = describe(torch.from_numpy(maps), True, tensors)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key][values], value.numpy(), rtol=1e-6, atol=1e-6)
        at = {key: value[values] for key, value in found.items() if key != "strength"}
        numbers = aggregate({key: value for key, value in expected.items() if key != "strength"})
        assert aggregate(at) == pytest.approx(numbers, rel=1e-6, nan_ok=True)
        # Each is what the functions say of a moment alone, on masks at the images' size.
        for name, mask in regions.items():
            with np.errstate(all="ignore"):
                assert_same = np.testing.assert_allclose
                assert_same(found[f"mass_{name}"][values], localization.mass(maps, mask), rtol=1e-6)
                assert_same(found[f"lift_{name}"][values], localization.lift(maps, mask), rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 17), st.integers(1, 9)), min_size=1, max_size=3), st.integers(0, 99))
def test_averages_are_those_of_torch(sides, seed):
    size, grid = zip(*sides, strict=True)
    values = np.random.default_rng(seed).normal(size=(2, *size)).astype(np.float32)
    pool = (torch.nn.AdaptiveAvgPool1d, torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool3d)[len(size) - 1](grid)
    expected = pool(torch.from_numpy(values)[:, None])[:, 0]
    np.testing.assert_allclose(averaged(values, grid), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_regions(d):
    size, rng = SIZES[d], np.random.default_rng(d)
    starts, masks = rng.integers(0, 6, (5, d)), masks_of(size, n=5)
    boxes = np.concatenate([starts, starts + rng.integers(0, 5, (5, d))], 1)
    assert_alike(box_masks, boxes, size=size)
    assert_alike(box_masks, np.stack([boxes, boxes[::-1]], 1), size=size)
    for region in (boxes, np.stack([boxes, boxes[::-1]], 1), masks):
        assert_alike(region_masks, region, size=size)
        assert_alike(outline_boxes, region, size=size)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_regions(axis):
    boxes = np.array([[0, 1, 2, 3, 4, 5], [2, 2, 2, 6, 6, 6], [0, 0, 0, 0, 0, 0]])
    masks, places = masks_of(SIZES[3], n=3), np.array([2, 3, 1])
    for region in (boxes, boxes[:, None].repeat(2, 1), masks):
        found = cut_region(region, SIZES[3], axis, places)
        expected = cut_region(*map(torch.from_numpy, (region,)), SIZES[3], axis, torch.from_numpy(places))
        np.testing.assert_array_equal(found, expected.numpy())
    for row, (mask, place) in enumerate(zip(masks, places, strict=True)):
        np.testing.assert_array_equal(cut_region(masks, SIZES[3], axis, places)[row], mask.take(place, axis))


def test_cells_in_rows():
    np.testing.assert_array_equal(cells_in_rows(np.arange(8).reshape(2, 2, 2)), [[0, 1, 2, 3], [4, 5, 6, 7]])
