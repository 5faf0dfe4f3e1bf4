"""The plain methods do what they are known for, so that what stands beside them means something."""

import numpy as np
import pytest
from instep_diagnosis.simulation.baselines import BASELINES, greyhound_verifier, minder_distance, three_sigma


def work(*, slow=None, ratio=1.0, steps=40, ranks=6, onset=20):
    own_TR = np.exp(0.01 * np.random.default_rng(1).standard_normal((steps, ranks)))
    if slow is not None:
        own_TR[onset:, slow] *= ratio
    return own_TR


@pytest.mark.parametrize("method", [minder_distance, greyhound_verifier])
def test_a_rank_that_is_half_slower_is_named(method):
    assert method(work(slow=2, ratio=1.5)) == {2}


def test_three_sigma_names_a_jump_at_once_and_has_forgotten_it_later():
    assert 2 in three_sigma(work(slow=2, ratio=1.5)[:21])
    assert 2 not in three_sigma(work(slow=2, ratio=1.5))


def test_the_verifier_passes_over_less_than_a_tenth():
    assert greyhound_verifier(work(slow=2, ratio=1.05)) == set()


def test_the_distance_never_names_the_fastest():
    assert minder_distance(work(slow=2, ratio=0.5)) == set()


@pytest.mark.parametrize("name", BASELINES)
def test_few_steps_name_nobody(name):
    assert BASELINES[name](work()[:3]) == set()
