"""How often the straggler test is wrong, and how fast it is right, on seeded simulated jobs."""

import numpy as np
import pytest
from instep_diagnosis.detectors.straggler import detect_stragglers

from tests.diagnosis.training import job_steps, own_work

WINDOW = 64


@pytest.mark.parametrize("seed", range(4))
def test_four_noisy_healthy_ranks_raise_nothing_in_thousands_of_steps(seed):
    own_TR = own_work(steps=4000, noise=0.15, autocorrelation=0.3, seed=seed)
    for newest in range(8, len(own_TR), 4):
        window_TR = own_TR[max(0, newest - WINDOW) : newest]
        assert detect_stragglers(job_steps(window_TR)) == [], f"seed {seed}, step {newest}"


@pytest.mark.parametrize("seed", range(4))
def test_steps_of_which_no_work_is_left_raise_nothing(seed):
    """Where ranks crowd on few cores, a step's waits can exceed its time: now and then a peer seems to work not at
    all."""
    own_TR = own_work(steps=3000, ranks=2, noise=0.2, seed=seed)
    own_TR[np.random.default_rng(seed).random(own_TR.shape) < 0.01] = 0.0
    for newest in range(8, len(own_TR), 2):
        window_TR = own_TR[max(0, newest - WINDOW) : newest]
        assert detect_stragglers(job_steps(window_TR)) == [], f"seed {seed}, step {newest}"


def delay_steps(seed, *, noise, ratio):
    """Steps from the onset to the first finding, which must be the right one."""
    own_TR = own_work(steps=140, noise=noise, seed=1000 + seed)
    own_TR[40:, seed % 4] *= ratio
    for newest in range(41, len(own_TR)):
        found = detect_stragglers(job_steps(own_TR[max(0, newest - WINDOW) : newest]))
        if found:
            assert [v.suspects[0].rank for v in found] == [seed % 4], f"seed {seed}"
            return newest - 40
    return 1000


@pytest.mark.parametrize(
    ("noise", "ratio", "median_max", "worst_max"),
    [(0.01, 1.3, 5, 6), (0.01, 1.05, 15, 30), (0.10, 1.3, 11, 20), (0.15, 1.3, 18, 40)],
)
def test_slow_ranks_are_found_within_their_bound(noise, ratio, median_max, worst_max):
    delays = [delay_steps(seed, noise=noise, ratio=ratio) for seed in range(20)]
    assert np.median(delays) <= median_max
    assert max(delays) <= worst_max
