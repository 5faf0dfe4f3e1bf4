"""What could be found at best: a slow rank above all that chance did elsewhere in the job."""

import pytest
from instep_diagnosis.simulation.ceiling import could_be_found

from tests.diagnosis.training import job_steps, own_work

SLOW = range(100, 128)


def job(ratio, noise=0.01, seed=1):
    own_TR = own_work(steps=150, ranks=4, noise=noise, seed=seed)
    own_TR[list(SLOW), 2] *= ratio
    return job_steps(own_TR)


@pytest.mark.parametrize(("ratio", "found"), [(1.05, True), (1.001, False), (0.9, False)])
def test_what_stands_out_of_the_noise_can_be_found_and_what_does_not_cannot(ratio, found):
    assert could_be_found(job(ratio), 2, SLOW, SLOW) is found


def test_a_louder_job_hides_more():
    assert could_be_found(job(1.05, noise=0.1), 2, SLOW, SLOW) is False


def test_single_long_steps_hide_nothing():
    own_TR = own_work(steps=150, ranks=4)
    own_TR[100:128, 2] *= 1.05
    own_TR[::15, 1] *= 3.0
    assert could_be_found(job_steps(own_TR), 2, SLOW, SLOW) is True


def test_slow_steps_of_other_episodes_are_no_chance():
    own_TR = own_work(steps=150, ranks=4)
    own_TR[20:48, 1] *= 1.5
    own_TR[100:128, 2] *= 1.05
    assert could_be_found(job_steps(own_TR), 2, SLOW, [*range(20, 48), *SLOW]) is True
    assert could_be_found(job_steps(own_TR), 2, SLOW, SLOW) is False


def test_without_a_slow_step_there_is_nothing_to_find():
    assert could_be_found(job(1.0), 2, [], []) is None
