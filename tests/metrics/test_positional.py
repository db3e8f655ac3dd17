"""Positional bias: maps that lie at the same place whatever the picture."""

import math

import numpy as np
import pytest
import torch

from lightning_gradcam.metrics.positional import (
    how_often,
    number_of_samples,
    place_in_words,
    positional_bias,
    positional_bias_chance,
)


def spots(places, grid=(4, 5)):
    """Maps with a square of two strong cells each; of 20 cells two are the strongest tenth."""
    maps = np.zeros((len(places), *grid), np.float32)
    for one, (row, column) in zip(maps, places, strict=True):
        one[row, column], one[row, column + 1] = 3, 2
    return maps


def test_by_hand():
    maps = spots([(0, 0), (0, 1), (0, 0), (3, 3)])
    maps[0, 2, 2] = 1  # the third, which is not counted
    expected = np.zeros((4, 5))
    expected[0, :3], expected[3, 3:] = [0.5, 0.75, 0.25], 0.25
    for one in (maps, torch.from_numpy(maps)):
        np.testing.assert_array_equal(np.asarray(how_often(one)), expected)
        assert positional_bias(one) == 0.75


def test_a_map_may_have_fewer_positive_cells_than_a_tenth():
    maps = -np.ones((2, 4, 5), np.float32)
    maps[:, 1, 1] = 1
    assert how_often(maps).sum() == 1
    assert positional_bias(maps) == 1


def test_what_is_no_map_is_left_out():
    maps = spots([(0, 0), (2, 2), (0, 0), (0, 0)])
    maps[1], maps[2, 0, 0] = -1, np.nan
    assert positional_bias(maps) == 1
    assert math.isnan(positional_bias(-np.abs(maps[:2])))
    assert math.isnan(positional_bias_chance(-np.abs(maps[:2])))
    assert math.isnan(positional_bias(maps[:0]))
    assert np.isnan(how_often(-np.abs(maps[:2]))).all()


def test_chance_is_the_percentile_of_shifted_maps():
    maps = np.random.default_rng(3).normal(size=(16, 6, 6)).astype(np.float32)
    rng, found = np.random.default_rng(9), []
    for _ in range(2000):
        moved = [np.roll(one, rng.integers(0, 6, 2), (0, 1)) for one in maps]
        found.append(positional_bias(np.stack(moved)))
    assert positional_bias_chance(maps) == pytest.approx(np.quantile(found, 0.95), abs=1 / 16)
    assert positional_bias_chance(maps) == positional_bias_chance(torch.from_numpy(maps))


def test_one_map_is_all_there_is():
    assert positional_bias(spots([(0, 0)])) == positional_bias_chance(spots([(0, 0)])) == 1


@pytest.mark.parametrize("grid", [(30,), (4, 5), (3, 4, 5)])
def test_maps_at_one_place_are_beyond_chance_and_maps_anywhere_are_not(grid):
    rng = np.random.default_rng(0)
    maps = rng.random((24, *grid), np.float32) / 10
    still = maps.copy()
    still.reshape(24, -1)[:, 7] += 1
    assert positional_bias(still) == 1 > positional_bias_chance(still)
    assert positional_bias(maps) <= positional_bias_chance(maps) < 0.6


def test_many_maps_are_counted_in_parts():
    maps = np.random.default_rng(0).normal(size=(256, 32, 32)).astype(np.float32)
    assert 0.1 < positional_bias_chance(maps) < 0.2


def test_a_place_of_several_cells_is_named_by_their_middle():
    places = np.zeros((8, 8))
    places[5:8, 0:3] = 1
    places[2, 2] = 0.9
    assert place_in_words(places) == "lower left, (6, 1) of 8 x 8"


@pytest.mark.parametrize(
    ("grid", "cell", "words"),
    [
        ((7, 7), (0, 0), "upper left, (0, 0) of 7 x 7"),
        ((7, 7), (3, 3), "middle, (3, 3) of 7 x 7"),
        ((7, 7), (3, 6), "middle right, (3, 6) of 7 x 7"),
        ((7, 7), (6, 2), "lower middle, (6, 2) of 7 x 7"),
        ((1, 9), (0, 8), "middle right, (0, 8) of 1 x 9"),
        ((12,), (11,), "(11) of 12"),
        ((2, 3, 4), (1, 2, 3), "(1, 2, 3) of 2 x 3 x 4"),
    ],
)
def test_a_place_in_words(grid, cell, words):
    places = np.zeros(grid)
    places[cell] = 0.5
    assert place_in_words(places) == place_in_words(torch.from_numpy(places)) == words


def test_cells_that_are_tied_for_the_last_places_do_not_count_and_maps_of_nothing_else_are_left_out():
    """Of 20 cells two are a tenth: of the background's equal cells none is stronger than another."""
    maps = np.ones((4, 4, 5), np.float32)
    for one, cell in zip(maps, [(0, 0), (3, 3), (3, 3), None], strict=True):
        if cell is not None:
            one[cell] = 2
    expected = np.zeros((4, 5))
    expected[0, 0], expected[3, 3] = 1 / 3, 2 / 3
    for one in (maps, torch.from_numpy(maps), torch.from_numpy(maps).bfloat16()):
        np.testing.assert_allclose(np.asarray(how_often(one)), expected, rtol=1e-6)
        assert number_of_samples(one) == 3
    assert math.isnan(positional_bias(maps[3:]))
    assert math.isnan(positional_bias_chance(maps[3:]))
    noise = maps[3:] + 1e-7 * np.random.default_rng(0).random((1, 4, 5), np.float32)  # of rounding
    assert math.isnan(positional_bias(noise))
    whole = np.random.default_rng(0).integers(0, 3, (50, 16, 8, 8)).astype(np.float32)
    for one in whole:
        assert positional_bias(one) == pytest.approx(positional_bias(torch.from_numpy(one)), nan_ok=True)


def test_several_maps_of_a_sample_are_one_of_them():
    """Sample 0 has three maps at one place, sample 1 one there and two elsewhere: 1 and a third, of two samples."""
    maps, samples = spots([(0, 0), (0, 0), (0, 0), (0, 0), (3, 3), (2, 1)]), [0, 0, 0, 1, 1, 1]
    assert positional_bias(maps, samples) == pytest.approx((1 + 1 / 3) / 2)
    assert number_of_samples(maps, samples) == 2
    one = spots([(0, 0)] * 9)
    assert positional_bias(one, [5] * 9) == positional_bias_chance(one, [5] * 9) == 1
    assert positional_bias_chance(one) < 0.6
    some = np.random.default_rng(1).normal(size=(12, 6, 6)).astype(np.float32)
    twice, of = np.repeat(some, 2, 0), np.repeat(np.arange(12), 2)
    assert positional_bias(twice, of) == pytest.approx(positional_bias(some))
    assert positional_bias_chance(twice, of) == pytest.approx(positional_bias_chance(some))
