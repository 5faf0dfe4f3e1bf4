"""A few per cent in a quiet job, and slowness that comes and goes: found, and nothing where noise does the same."""

import numpy as np
import pytest
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.settings import StragglerSettings

from tests.diagnosis.training import job_steps, own_work

WINDOW = 64
WITHOUT = StragglerSettings(rise_steps_min=10**6, hits_min=10**6)
"""The test for lasting and large slowdowns alone."""


def blamed(own_TR, settings=None):
    return [verdict.suspects[0].rank for verdict in detect_stragglers(job_steps(own_TR), settings)]


def delay_steps(seed, *, noise, ratio, ranks):
    """Steps from the onset to the first finding, which must be the right one."""
    own_TR = own_work(steps=140, noise=noise, seed=2000 + seed, ranks=ranks)
    own_TR[80:, seed % ranks] *= ratio
    for newest in range(65, len(own_TR)):
        if found := blamed(own_TR[newest - WINDOW : newest]):
            assert newest > 80, f"seed {seed}"
            assert found == [seed % ranks], f"seed {seed}"
            return newest - 80
    return 1000


@pytest.mark.parametrize(("noise", "ratio"), [(0.003, 1.02), (0.003, 1.03), (0.01, 1.03)])
def test_a_few_per_cent_are_found_within_twenty_steps_in_a_quiet_job(noise, ratio):
    delays = [delay_steps(seed, noise=noise, ratio=ratio, ranks=16) for seed in range(16)]
    assert sum(delay <= 20 for delay in delays) >= 0.97 * len(delays)


@pytest.mark.parametrize(("noise", "ratio"), [(0.002, 1.02), (0.004, 1.03)])
def test_of_two_quiet_ranks_the_one_that_became_a_few_per_cent_slower_is_found(noise, ratio):
    delays = [delay_steps(seed, noise=noise, ratio=ratio, ranks=2) for seed in range(16)]
    assert sum(delay <= 20 for delay in delays) >= 0.97 * len(delays)


def test_two_per_cent_show_where_a_tenth_of_each_step_does_not_become_slower():
    own_TR = own_work(steps=100, ranks=4, noise=0.002)
    assert blamed(own_TR) == []
    own_TR[80:, 3] += 0.9 * 0.02 * own_TR[80:, 3]
    assert blamed(own_TR) == [3]


@pytest.mark.parametrize(("noise", "autocorrelation"), [(0.002, 0.0), (0.004, 0.3), (0.01, 0.3)])
def test_two_healthy_quiet_ranks_raise_nothing_in_thousands_of_steps(noise, autocorrelation):
    own_TR = own_work(steps=4000, ranks=2, noise=noise, autocorrelation=autocorrelation, seed=5)
    for newest in range(WINDOW, len(own_TR), 8):
        assert blamed(own_TR[newest - WINDOW : newest]) == [], newest


@pytest.mark.parametrize(("every", "ratio"), [(5, 1.3), (3, 1.2), (8, 2.0)])
def test_a_rank_that_is_slow_now_and_then_is_named(every, ratio):
    own_TR = own_work(steps=WINDOW, ranks=8, noise=0.01)
    assert blamed(own_TR) == []
    own_TR[::every, 3] *= ratio
    assert blamed(own_TR) == [3]


def test_slow_steps_that_fall_on_everybody_name_nobody():
    own_TR = own_work(steps=WINDOW, ranks=8, noise=0.01)
    own_TR[np.random.default_rng(1).random(own_TR.shape) < 0.15] *= 1.3
    assert blamed(own_TR) == []


@pytest.mark.parametrize(("noise", "autocorrelation"), [(0.003, 0.0), (0.003, 0.5), (0.01, 0.5), (0.05, 0.3)])
def test_a_healthy_quiet_job_raises_nothing_in_thousands_of_steps(noise, autocorrelation):
    own_TR = own_work(steps=2000, ranks=8, noise=noise, autocorrelation=autocorrelation, seed=3)
    for newest in range(WINDOW, len(own_TR), 8):
        assert blamed(own_TR[newest - WINDOW : newest]) == [], newest


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_that_come_and_go_for_ten_steps_raise_nothing_more(seed):
    """Ranks that crowd on few cores: now and then one of them is 15 to 30 % slower for about ten steps."""
    dice = np.random.default_rng(seed)
    own_TR = own_work(steps=2000, noise=0.15, autocorrelation=0.3, seed=seed)
    for start in range(50, 1980, 100):
        own_TR[start : start + int(dice.integers(8, 13)), dice.integers(4)] *= dice.uniform(1.15, 1.3)
    for newest in range(WINDOW, len(own_TR), 4):
        window_TR = own_TR[newest - WINDOW : newest]
        assert blamed(window_TR) == blamed(window_TR, WITHOUT), newest


def test_a_thousand_ranks_are_looked_at_together():
    own_TR = own_work(steps=WINDOW, ranks=1024, noise=0.003)
    assert blamed(own_TR) == []
    own_TR[40:, 700] *= 1.03
    assert blamed(own_TR) == [700]


def test_of_two_ranks_a_rise_within_the_noise_of_a_step_names_nobody():
    """A single peer's lasting noise makes one, too: once in 140 simulated job-hours."""
    own_TR = own_work(steps=120, ranks=2, noise=0.008)
    own_TR[70:, 1] *= 1.025
    assert blamed(own_TR) == []
    own_TR[70:, 1] *= 1.02
    assert blamed(own_TR) == [1]


def test_long_steps_that_fall_on_one_of_the_ranks_by_chance_name_nobody():
    """Of five hundred, some fall on one of four ranks six times in turn."""
    dice = np.random.default_rng(6)
    own_TR = own_work(steps=6000, ranks=4, noise=0.008, seed=6)
    own_TR[::12][np.arange(500), dice.integers(4, size=500)] *= 5.0
    for newest in range(WINDOW, len(own_TR), 12):
        assert blamed(own_TR[max(0, newest - 128) : newest]) == [], newest


@pytest.mark.parametrize("silence", [60, 80])
def test_one_long_step_long_after_a_slowdown_is_not_its_return(silence):
    """So it was recorded: 10 % for 28 steps, and a hundred steps later one long step of two ranks."""
    own_TR = own_work(steps=128, noise=0.003)
    rows = np.arange(4, 24)
    own_TR[rows, 1] *= np.where(rows % 3 == 0, 1.07, 1.13)
    own_TR[rows[-1] + silence, 1:3] *= 1.5
    newest = rows[-1] + silence + 1
    ongoing = [v for v in detect_stragglers(job_steps(own_TR[:newest])) if v.is_ongoing]
    assert ongoing == []


@pytest.mark.parametrize("seed", range(12))
def test_a_fault_that_comes_and_goes_may_be_silent_for_a_while(seed):
    own_TR = own_work(steps=100, noise=0.006, seed=seed)
    rng = np.random.default_rng(seed)
    acts = np.flatnonzero(rng.random(28) < 0.3)
    own_TR[72, 1] *= 1.4
    own_TR[72 + acts, 1] *= 1.4
    names = [v.suspects[0].rank for v in detect_stragglers(job_steps(own_TR)) if v.is_ongoing]
    assert names == [1]
