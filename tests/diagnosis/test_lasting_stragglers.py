"""Whether a rank that was found slow is slow still, from its newest steps alone."""

import pytest
from instep_agent.wire import StepReport
from instep_diagnosis.detectors.lasting import NEWEST_STEPS, is_still_slow
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.verdict import Cause


def job(ranks=4, count=40, **slow_by_field):
    """Rank 1 takes longer in the named field; everything else is even."""

    def report(rank, step):
        extra = slow_by_field if rank == 1 else {}
        base = {"wall_seconds": 1.0, "wait_seconds": 0.2, "data_seconds": 0.0, "starved_seconds": 0.0}
        return StepReport(step=step, **{name: value + extra.get(name, 0.0) for name, value in base.items()})

    steps = {rank: tuple(report(rank, step) for step in range(count)) for rank in range(ranks)}
    return JobSteps(job="j", run="r", attempt=0, steps=steps, nodes={})


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_rank_that_works_longer_is_slow_still(ranks):
    assert is_still_slow(job(ranks, wall_seconds=0.24), 1, Cause.SLOW_COMPUTE, 1.3)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_rank_as_fast_as_its_peers_is_not(ranks):
    assert not is_still_slow(job(ranks), 1, Cause.SLOW_COMPUTE, 1.3)


def test_less_than_half_of_the_slowdown_is_over():
    assert not is_still_slow(job(wall_seconds=0.08), 1, Cause.SLOW_COMPUTE, 1.3)


def test_waiting_for_data_counts_where_that_was_the_cause():
    late = job(wall_seconds=0.3, data_seconds=0.3)
    assert is_still_slow(late, 1, Cause.DATA, 1.3)
    assert not is_still_slow(late, 1, Cause.SLOW_COMPUTE, 1.3)


def test_waiting_for_a_core_counts_where_that_was_the_cause():
    starved = job(wall_seconds=0.3, starved_seconds=0.3)
    assert is_still_slow(starved, 1, Cause.STARVED, 1.3)
    assert not is_still_slow(starved, 1, Cause.SLOW_COMPUTE, 1.3)


def test_what_was_not_observed_keeps_nothing_open():
    assert not is_still_slow(job(count=2, wall_seconds=0.3), 1, Cause.SLOW_COMPUTE, 1.3)
    assert not is_still_slow(job(wall_seconds=0.3), 9, Cause.SLOW_COMPUTE, 1.3)
    assert not is_still_slow(job(ranks=1), 0, Cause.SLOW_COMPUTE, 1.3)
    assert not is_still_slow(job(wall_seconds=0.3), 1, Cause.SLOW_COMPUTE, 0.0)


def test_old_slow_steps_do_not_count():
    fast, slow = job(count=NEWEST_STEPS), job(count=60, wall_seconds=0.3)
    newest = {r: tuple(StepReport(step=s.step + 60, wall_seconds=1.0) for s in row) for r, row in fast.steps.items()}
    steps = {rank: slow.steps[rank] + newest[rank] for rank in slow.steps}
    whole = JobSteps(job="j", run="r", attempt=0, steps=steps, nodes={})
    assert not is_still_slow(whole, 1, Cause.SLOW_COMPUTE, 1.3)
