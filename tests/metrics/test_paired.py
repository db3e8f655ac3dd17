"""Paired differences: values by hand, scipy's, and how often chance alone is taken for a difference."""

import numpy as np
import pytest
from scipy import stats

from lightning_gradcam.metrics.paired import deal_p, holm, mean_interval, number_interval, sign_flip_p


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
        (differences,), np.mean, permutation_type="samples", n_resamples=40_000, alternative="two-sided", random_state=1
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
    expected = stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    assert mean_interval(differences) == pytest.approx(tuple(expected.confidence_interval), abs=2e-3)
    assert mean_interval(differences[:31]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_dealt_runs_by_hand():
    # Of six ways to deal 1 2 | 5 6 two are as far apart: 1 2 and 5 6 on the first side.
    assert deal_p(np.array([1.0, 2.0]), np.array([5.0, 6.0])) == 2 / 6
    # Of three ways to deal 1 | 2 3: means 1.5 apart, 0, and 1.5.
    assert deal_p(np.array([1.0]), np.array([2.0, 3.0])) == 2 / 3
    assert deal_p(np.full(5, 0.3), np.full(5, 0.3)) == 1
    assert deal_p(np.full(5, 0.1, np.float32), np.full(5, 0.3, np.float32)) == 2 / 252


def apart(one, other, axis):
    return np.abs(one.mean(axis) - other.mean(axis))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 7), (8, 8)])
def test_all_deals_are_those_of_scipy(n, m):
    rng = np.random.default_rng(n + m)
    one, other = rng.normal(0.7, 1, n), rng.normal(0, 1, m)
    expected = stats.permutation_test((one, other), apart, n_resamples=np.inf, alternative="greater", vectorized=True)
    assert deal_p(one, other) == pytest.approx(expected.pvalue)


def test_drawn_deals_come_near_to_those_of_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.7, 1, 11), rng.normal(0, 1, 12)
    expected = stats.permutation_test(
        (one, other), apart, n_resamples=40_000, alternative="greater", vectorized=True, random_state=1
    )
    assert deal_p(one, other) == pytest.approx(expected.pvalue, abs=0.012)
    assert deal_p(np.arange(12.0), np.arange(100.0, 112)) == 1 / 10_000


def test_chance_alone_seldom_tells_sides_apart():
    rng = np.random.default_rng(0)
    p = [deal_p(*rng.normal(0, 0.1, (2, 5))) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.parametrize("of_mean", [True, False])
@pytest.mark.parametrize("n", [32, 51])
def test_the_interval_of_a_number_is_that_of_scipy(n, of_mean):
    values = np.random.default_rng(n).beta(2, 5, n)
    statistic = np.mean if of_mean else np.median
    expected = stats.bootstrap((values,), statistic, n_resamples=20_000, method="percentile", random_state=1)
    assert number_interval(values, of_mean) == pytest.approx(
        tuple(expected.confidence_interval), abs=0.02
    )  # of a median they jump from value to value
    assert number_interval(values[:31], of_mean) is None
