"""Levels of a noisy series: bursts do not move them, and noise that lasts makes them less sure."""

import numpy as np
import pytest
from instep_diagnosis.detectors.levels import location, long_run_noise, median

from tests.diagnosis.training import own_work


def noise_of(autocorrelation, seed, steps=100):
    x_T = np.log(own_work(steps=steps, ranks=1, noise=0.01, autocorrelation=autocorrelation, seed=seed)[:, 0])
    return long_run_noise([x_T - median(x_T)], 0.001)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_median_is_that_of_numpy(count):
    values = np.random.default_rng(count).normal(size=count)
    assert median(values) == pytest.approx(float(np.median(values)))


def test_a_burst_in_a_quarter_of_the_steps_hardly_moves_the_location():
    quiet_T = np.random.default_rng(1).normal(0.0, 0.01, 40)
    burst_T = quiet_T.copy()
    burst_T[10:20] += 0.4
    assert abs(location(burst_T, 0.01) - location(quiet_T, 0.01)) < 0.01
    assert burst_T.mean() - quiet_T.mean() == pytest.approx(0.1)


@pytest.mark.parametrize(("autocorrelation", "factor"), [(0.0, 1.0), (0.3, 1.36), (0.6, 2.0)])
def test_noise_that_lasts_is_told_about_as_large_as_it_is(autocorrelation, factor):
    """The long-run factor of a first-order process is √((1 + ρ) / (1 − ρ))."""
    found = np.median([noise_of(autocorrelation, seed) for seed in range(100)])
    assert 0.75 * factor * 0.01 <= found <= 1.5 * factor * 0.01


def test_few_steps_are_trusted_less():
    assert np.median([noise_of(0.0, seed, 8) for seed in range(200)]) > np.median(
        [noise_of(0.0, seed, 100) for seed in range(200)]
    )


def test_a_series_without_noise_has_the_floor():
    assert 0.001 <= long_run_noise([np.zeros(30)], 0.001) <= 0.0015
