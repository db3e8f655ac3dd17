"""What the tables of docs/reading.md are made with."""

import importlib

import numpy as np
import pytest
import torch
from tiny import ROOT


@pytest.fixture(scope="module")
def reading():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("reading")


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([1, 3, 2, 3, 1, 9], [1, 3, 2, 3, 1]),  # three epochs no better than the 3; the 9 is never reached
        ([1, 2, 1, 1, 3, 1, 1], [1, 2, 1, 1, 3, 1, 1]),
        ([np.nan, np.nan, 1, 0, 0, 0, 2], [np.nan, np.nan, 1, 0, 0, 0]),
    ],
)
def test_training_stops_once_enough_epochs_were_no_better(reading, values, seen):
    np.testing.assert_array_equal(reading.until_stopped(np.array(values)), seen)


def test_a_digit_is_moved_to_the_middle_with_all_of_its_picture(reading):
    picture = torch.zeros(3, 48, 48)
    picture[:, 20:40, 0:20] = torch.rand(3, 20, 20)
    moved = reading.in_the_middle({"image": picture[None], "digit": torch.tensor([[0, 20, 20, 40]])})
    assert moved[0, :, 14:34, 14:34].equal(picture[:, 20:40, 0:20])
    assert moved.count_nonzero() == picture.count_nonzero()


def test_a_range_stands_where_it_shows(reading):
    assert reading.with_range([0.1, 0.2, 0.6]) == "0.30 (0.10 to 0.60)"
    assert reading.with_range([0.501, 0.502]) == "0.50"
    assert reading.with_range([-0.001]) == "0.00"
    assert reading.with_range([np.nan, np.nan]) == ""
