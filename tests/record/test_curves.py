"""The curves of the page: lines and bands by hand."""

import numpy as np
import pytest
from records import BOTH, LEFT, RIGHT, data_of, write, write_maps
from scipy import stats

from lightning_gradcam import compare
from lightning_gradcam.record.page import page


def drawn(*runs, **options):
    """The line and the band of each curve and side, and what the bands are."""
    data = data_of(page(compare(*runs, **options)))
    return {one["title"]: (one["lines"], one["bands"]) for one in data["curves"]}, data["bands"]


def shares(*values):
    """Maps with so much of each on the left half."""
    return np.array([[[share, 1 - share]] * 2 for share in values], np.float32)


def test_quartiles_over_samples_by_hand():
    left = {"left": np.array([[0, 0, 4, 8]] * 5)}
    photos = np.zeros((5, 8, 8), np.uint8)
    moments = np.stack([shares(0, 0.1, 0.2, 0.4, 0.8), shares(1, 1, 1, 1, 1) * 0 - 1])
    write_maps("run", moments, photos, left)
    found, bands = drawn("run")
    ((line,), (band,)) = found["Share of the map on left"]
    assert line == [pytest.approx(0.3), None]  # the mean; then all maps are empty
    assert band == [[pytest.approx(0.1), None], [pytest.approx(0.4), None]]
    assert bands == "Bands: the middle half of the samples, by quartiles."


def test_an_interval_of_many_samples():
    rng = np.random.default_rng(0)
    photos, values = np.zeros((40, 8, 8), np.uint8), rng.random((2, 40)).round(3)
    write_maps("run", np.stack([shares(*row) for row in values]), photos, {"left": np.array([[0, 0, 4, 8]] * 40)})
    found, bands = drawn("run")
    assert bands.startswith("Bands: the 95 % interval of the number")
    drift = np.abs(values[1] - values[0])
    for title, at, sample, statistic in (
        ("Share of the map on left", 0, values[0], np.mean),
        ("Drift since the moment before", 1, drift, np.median),
    ):
        _, ((low, high),) = found[title]
        expected = stats.bootstrap((sample,), statistic, n_resamples=9_999, method="percentile", random_state=0)
        assert (low[at], high[at]) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)


def test_samples_that_numbers_are_not_of_are_in_no_band():
    write("one", [[LEFT, RIGHT]], right=[[1, 0]])
    write("two", [[LEFT, RIGHT]])
    found, _ = drawn("one", "two")
    assert found["Share of the map on left"] == ([[1], [1]], [[[1], [1]], [[1], [1]]])
    found, _ = drawn("one", "two", samples="all")
    assert found["Share of the map on left"][1][0] == [[0.25], [0.75]]


def test_the_range_over_runs():
    runs = [write("one", [[LEFT, LEFT]]), write("two", [[BOTH, BOTH]]), write("three", [[BOTH, LEFT]])]
    found, bands = drawn({"a": runs, "b": [write("four", [[LEFT, RIGHT]])]})
    lines, band = found["Share of the map on left"]
    assert lines == [[0.75], [0.5]]
    assert band == [[[0.5], [1]], [[None], [None]]]  # of one run there is no range
    assert bands == "Lines: means over runs. Bands: from the least to the most of the runs."
