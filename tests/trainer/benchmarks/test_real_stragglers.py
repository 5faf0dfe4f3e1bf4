"""What the real jobs with slow ranks do, and the truth about them; one is run."""

from dataclasses import replace

import numpy as np
import pytest
from instep_trainer.benchmarks.diagnosis.paced_rank import unit_seconds
from instep_trainer.benchmarks.diagnosis.real_stragglers import (
    EPISODES,
    RATIOS,
    WORK_SECONDS,
    judge_episode,
    run_job,
    straggler_job,
)

SEEDS = range(40)


def even(seed, steps, ranks):
    return np.ones((steps, ranks))


def jobs(kind, work=None):
    found = [straggler_job(seed, kind, even) for seed in SEEDS]
    return [job for job in found if work is None or job.work == work]


def test_a_seed_makes_one_job():
    first, again = (straggler_job(3, "paced", even) for _ in range(2))
    assert (first.plan, first.episodes) == (again.plan, again.episodes)
    assert straggler_job(4, "paced", even).plan != first.plan


def test_steps_may_be_of_any_length():
    usual, short = (straggler_job(3, "paced", even, seconds) for seconds in (None, 0.04))
    scale = WORK_SECONDS["paced"] / 0.04
    assert np.allclose(usual.plan.work_seconds_TR, scale * np.array(short.plan.work_seconds_TR))
    assert (usual.work_seconds, short.work_seconds) == (WORK_SECONDS["paced"], 0.04)


@pytest.mark.parametrize("kind", ["paced", "cpu"])
def test_every_other_episode_is_healthy_and_the_others_slow_one_rank_by_what_is_said(kind):
    for job in jobs(kind):
        if job.work == "sequences":
            continue
        work_TR = np.array(job.plan.work_seconds_TR) / WORK_SECONDS[kind]
        assert len(job.episodes) == EPISODES
        for number, episode in enumerate(job.episodes):
            assert bool(episode.slow_steps) == bool(number % 2)
            slow_TR = work_TR[list(episode.slow_steps)]
            assert np.allclose(slow_TR[:, episode.rank], episode.ratio)
            work_TR[list(episode.slow_steps), episode.rank] = 1.0
        assert np.allclose(work_TR, 1.0)


def test_a_fault_that_comes_and_goes_begins_with_a_slow_step():
    found = [e for job in jobs("paced") for e in job.episodes if e.fault == "now-and-then"]
    assert found
    for episode in found:
        assert episode.slow_steps[0] == episode.first
        assert len(episode.slow_steps) < 28


def test_work_by_tokens_is_reported_with_them_and_in_proportion():
    for job in jobs("paced", "sequences"):
        tokens_TR = np.array(job.plan.tokens_TR)
        assert tokens_TR.shape == np.array(job.plan.work_seconds_TR).shape
        healthy = job.plan.work_seconds_TR[:60]
        assert np.corrcoef(tokens_TR[:60].ravel(), np.ravel(healthy))[0, 1] > 0.99


def test_all_ranks_of_a_computing_job_have_the_same_units_of_work():
    """A unit is timed once, by whoever makes the plan: ranks that time it each by itself have unlike work."""
    for job in jobs("cpu")[:3]:
        assert job.plan.unit_seconds > 0.0
        assert set(np.ravel(job.plan.work_seconds_TR)) <= {WORK_SECONDS["cpu"] * r for r in (1.0, *RATIOS["cpu"])}
    assert unit_seconds() > 0.0


def test_steps_of_a_real_job_are_judged_by_all_methods_at_every_episode():
    whole = next(job for job in jobs("paced", "even") if len(job.plan.programs) == 2)
    job = replace(whole, plan=replace(whole.plan, work_seconds_TR=[[0.004, 0.004]] * whole.plan.steps))
    steps = run_job(job)
    assert not isinstance(steps, str)
    case = judge_episode(job, job.episodes[0], steps)
    assert set(case["answers"]) == {"instep", "3-sigma", "Minder-style distance", "Greyhound-style 10 %"}
    assert (case["kind"], case["truth"], case["work"]) == ("straggler-paced", [], "even")
    assert (case["findable"], case["owner_right"]) == (None, None)
    assert case["healthy_steps"] > 0
    assert case["healthy_seconds"] >= 0.004 * case["healthy_steps"]
