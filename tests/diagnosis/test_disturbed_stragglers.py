"""Two ranks, crowded cores and neighbours: what they do to a rank is not held against it."""

import numpy as np
import pytest
from instep_diagnosis.detectors.straggler import detect_stragglers, disturbance_of
from instep_diagnosis.detectors.work import step_arrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.settings import StragglerSettings
from instep_diagnosis.verdict import Cause

from tests.diagnosis.training import job_steps, own_work

STEPS = 100


def named(job):
    return [verdict.suspects[0].rank for verdict in detect_stragglers(job) if verdict.is_ongoing]


def crowded(own_TR, share=0.3):
    """The job on cores that others want too: its ranks wait for them for this share of their work."""
    return job_steps(own_TR, starved_TR=share * own_TR)


def two_ranks(ratio, *, onset=60, noise=0.02, seed=1):
    own_TR = own_work(steps=STEPS, ranks=2, noise=noise, seed=seed)
    own_TR[onset:, 1] *= ratio
    return own_TR


def test_of_two_ranks_the_one_that_became_slower_is_named_and_not_the_one_whose_peer_became_faster():
    assert named(job_steps(two_ranks(1.2))) == [1]
    faster_TR = two_ranks(1.0)
    faster_TR[60:, 0] /= 1.2
    assert named(job_steps(faster_TR)) == []


@pytest.mark.parametrize("steps", [12, 40, STEPS])
def test_of_two_ranks_that_were_never_alike_none_is_named(steps):
    """Computing ranks were seen to differ by a third for as long as their job lasted, by the core they had."""
    assert named(job_steps(two_ranks(1.35, onset=0)[:steps])) == []


@pytest.mark.parametrize("ratio", [1.06, 1.08, 1.1])
def test_ranks_that_compute_on_crowded_cores_may_come_apart(ratio):
    assert named(job_steps(two_ranks(ratio))) == [1]
    assert named(crowded(two_ranks(ratio))) == []


@pytest.mark.parametrize("ratio", [1.2, 1.5])
def test_a_large_slowdown_is_named_on_crowded_cores_too(ratio):
    assert named(crowded(two_ranks(ratio))) == [1]


def test_when_neighbours_slow_both_ranks_the_one_that_suffers_more_is_not_named():
    own_TR = two_ranks(1.5)
    assert named(crowded(own_TR)) == [1]
    own_TR[60:, 0] *= 1.25
    assert named(crowded(own_TR)) == []
    assert named(job_steps(own_TR)) == [1]


@pytest.mark.parametrize("seed", range(5))
def test_a_burst_of_eight_steps_on_crowded_cores_names_nobody(seed):
    own_TR = two_ranks(1.0, seed=seed)
    own_TR[80:88, 1] *= 1.5
    for newest in range(80, STEPS):
        assert named(crowded(own_TR[:newest])) == []


def test_waiting_work_is_not_disturbed_by_neighbours_and_computing_is():
    own_TR = own_work(steps=STEPS)

    def disturbance(**parts):
        arrays = step_arrays(job_steps(own_TR, **parts), window_steps=STEPS)
        return disturbance_of(arrays, StragglerSettings())

    assert disturbance() == 0.0
    assert disturbance(starved_TR=0.3 * own_TR) == 1.0
    assert disturbance(starved_TR=0.01 * own_TR) == pytest.approx(0.5, rel=0.01)
    assert disturbance(starved_TR=0.3 * own_TR, cpu_TR=0.1 * own_TR) == pytest.approx(0.1)


def test_of_two_ranks_on_one_node_none_is_called_starved():
    own_TR = own_work(steps=STEPS, ranks=2)
    starved_TR = np.zeros_like(own_TR)
    starved_TR[60:, 1] = 0.1
    job = job_steps(own_TR, starved_TR=starved_TR)
    (apart,) = detect_stragglers(job)
    assert apart.cause is Cause.STARVED
    together = JobSteps(job.job, job.run, job.attempt, job.steps, dict.fromkeys(job.nodes, "node-a"))
    assert detect_stragglers(together) == []


def test_where_all_wait_for_cores_now_and_then_one_that_waits_longer_for_a_while_is_not_starved():
    own_TR = own_work(steps=STEPS)
    usual_TR = 0.1 * (np.random.default_rng(4).random(own_TR.shape) < 0.3)
    usual_TR[70:, 2] = 0.1
    assert named(job_steps(own_TR, starved_TR=usual_TR)) == []
    alone_TR = np.zeros_like(own_TR)
    alone_TR[70:, 2] = 0.1
    assert named(job_steps(own_TR, starved_TR=alone_TR)) == [2]


@pytest.mark.parametrize("seed", range(8))
def test_a_slowdown_that_is_over_is_not_called_slow_again(seed):
    """Its steps stay in the window for long, and chance must not revive them."""
    own_TR = own_work(steps=160, noise=0.012, seed=seed)
    own_TR[50:78, 2] *= 1.05
    for newest in range(94, 160):
        assert named(job_steps(own_TR[max(0, newest - 128) : newest])) == []
