"""Paired differences: values by hand, scipy's, and how often chance alone is taken for a difference."""

import numpy as np
import pytest
from scipy import stats

from lightning_gradcam.metrics.paired import holm, mean_interval, sign_flip_p


def test_by_hand():
    # Of eight ways to set the signs of 1, 2, 3 two are as far from 0 as 6: 1 2 3 and -1 -2 -3.
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8
    # -1 2 3: 4. As far are 1 2 3, -1 2 3 and their opposites.
    assert sign_flip_p(np.array([-1.0, 2.0, 3.0])) == 4 / 8
    assert sign_flip_p(np.array([0.5])) == 1
    assert sign_flip_p(np.zeros(4)) == 1


@pytest.mark.parametrize("n", [5, 11, 12])
def test_all_signs_are_those_of_scipy(n):
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_p(differences) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("n", [13, 60])
def test_drawn_signs_come_near_to_those_of_scipy(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=40_000, alternative="two-sided", rng=1
    )
    assert sign_flip_p(differences) == pytest.approx(expected.pvalue, abs=0.012)
    assert sign_flip_p(differences) == sign_flip_p(differences)


def test_a_difference_of_all_samples_has_the_smallest_p():
    assert sign_flip_p(np.full(16, 0.18)) == pytest.approx(0.0001, abs=2e-4)
    assert sign_flip_p(np.linspace(0.1, 0.3, 40)) == 1 / 10_000
    assert sign_flip_p(np.array([0.1] * 3 + [0.3] * 3, np.float32)) == 2 / 64


def test_chance_alone_is_seldom_taken_for_a_difference():
    rng = np.random.default_rng(0)
    for n in (8, 16):
        p = [sign_flip_p(rng.normal(0, 0.1, n)) for _ in range(400)]
        assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_the_interval_is_that_of_scipy():
    differences = np.random.default_rng(0).normal(0.2, 0.1, 50)
    expected = stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert mean_interval(differences) == pytest.approx(tuple(expected.confidence_interval), abs=2e-3)
    assert mean_interval(differences[:31]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
