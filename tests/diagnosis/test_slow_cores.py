"""A neighbour takes the half of a core: who runs there is slower for a while and has done nothing."""

import numpy as np
import pytest
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.settings import StragglerSettings
from instep_diagnosis.verdict import Cause

from tests.diagnosis.training import job_steps, own_work

STEPS, ONSET, SLOW = 100, 70, 1
YARDSTICK_SECONDS = 1.5e-6


def slowed(work_ratio, core_ratio, *, ranks=4, seconds=0.1, cpu_share=1.0, starved_share=0.0, seed=1):
    """One rank takes longer from a step on; its core too, by what the second says."""
    own_TR = own_work(steps=STEPS, ranks=ranks, seconds=seconds, noise=0.02, seed=seed)
    yardstick_TR = YARDSTICK_SECONDS * own_work(steps=STEPS, ranks=ranks, seconds=1.0, noise=0.1, seed=seed + 1)
    own_TR[ONSET:, SLOW] *= work_ratio
    yardstick_TR[ONSET:, SLOW] *= core_ratio
    return job_steps(own_TR, cpu_TR=cpu_share * own_TR, starved_TR=starved_share * own_TR, yardstick_TR=yardstick_TR)


def named(job, settings=None):
    return [verdict.suspects[0].rank for verdict in detect_stragglers(job, settings) if verdict.is_ongoing]


@pytest.mark.parametrize("ranks", [2, 4, 16])
@pytest.mark.parametrize("starved_share", [0.0, 0.5])
@pytest.mark.parametrize("ratio", [1.2, 1.3, 1.6])
def test_more_work_is_a_ranks_own_and_a_slow_core_is_not(ratio, starved_share, ranks):
    kwargs = {"ranks": ranks, "starved_share": starved_share}
    assert named(slowed(ratio, 1.0, **kwargs)) == [SLOW]
    assert named(slowed(ratio, ratio, **kwargs)) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_core_names_nobody_at_any_step(seed):
    job = slowed(1.6, 1.6, ranks=2, starved_share=0.3, seed=seed)
    for newest in range(ONSET, STEPS):
        steps = {rank: rows[:newest] for rank, rows in job.steps.items()}
        assert named(type(job)(job.job, job.run, job.attempt, steps, job.nodes)) == []


def test_single_slow_steps_on_a_slow_core_name_nobody():
    own_TR = own_work(steps=STEPS, noise=0.01)
    yardstick_TR = np.full_like(own_TR, YARDSTICK_SECONDS)
    own_TR[ONSET::3, SLOW] *= 1.6
    assert named(job_steps(own_TR, yardstick_TR=yardstick_TR)) == [SLOW]
    yardstick_TR[ONSET::3, SLOW] *= 1.6
    assert named(job_steps(own_TR, yardstick_TR=yardstick_TR)) == []


def test_a_core_that_is_slow_in_every_other_step_names_nobody():
    """So it was recorded: a rank at 1.6 times its work in every other step for twenty, on a crowded machine."""
    own_TR = own_work(steps=STEPS, ranks=2, noise=0.01)
    yardstick_TR = np.full_like(own_TR, YARDSTICK_SECONDS)
    own_TR[ONSET:, SLOW] *= np.where(np.arange(ONSET, STEPS) % 2, 1.1, 1.6)
    kwargs = {"starved_TR": 0.5 * own_TR, "yardstick_TR": yardstick_TR}
    assert named(job_steps(own_TR, **kwargs)) == [SLOW]
    yardstick_TR[ONSET:, SLOW] *= np.where(np.arange(ONSET, STEPS) % 2, 1.0, 1.6)
    assert named(job_steps(own_TR, **kwargs)) == []


@pytest.mark.parametrize("every", [2, 4])
def test_a_rank_that_is_slow_on_a_sound_core_too_is_named(every):
    own_TR = own_work(steps=STEPS, ranks=2, noise=0.01)
    yardstick_TR = np.full_like(own_TR, YARDSTICK_SECONDS)
    own_TR[ONSET:, SLOW] *= 1.5
    own_TR[ONSET::every, SLOW] *= 1.6
    yardstick_TR[ONSET::every, SLOW] *= 1.6
    assert named(job_steps(own_TR, starved_TR=0.5 * own_TR, yardstick_TR=yardstick_TR)) == [SLOW]


def test_a_core_that_stays_slow_is_told_and_is_its_nodes():
    (verdict,) = detect_stragglers(slowed(1.6, 1.6, seconds=2.0))
    assert verdict.cause is Cause.SLOW_COMPUTE
    said = verdict.evidence[2]
    assert said.fields["core_ratio"] == pytest.approx(1.6, rel=0.1)
    assert said.text.endswith("times as long on the core of rank 1.")
    assert named(slowed(1.6, 1.6, seconds=2.0), StragglerSettings(slow_core_seconds_min=600.0)) == []


def test_a_slow_core_explains_little_where_ranks_wait_for_their_gpus():
    assert named(slowed(1.2, 1.6, cpu_share=0.05)) == [SLOW]


def test_without_a_yardstick_nothing_is_explained():
    own_TR = own_work(steps=STEPS)
    own_TR[ONSET:, SLOW] *= 1.3
    (verdict,) = detect_stragglers(job_steps(own_TR))
    assert verdict.suspects[0].rank == SLOW
    assert "core_ratio" not in {key for evidence in verdict.evidence for key in evidence.fields}
