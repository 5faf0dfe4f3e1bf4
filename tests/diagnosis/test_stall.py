"""When a job counts as stalled, and above all when it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_diagnosis.detectors.stall import HangSettings, StallReason, detect_stall, stall_patience_seconds
from instep_diagnosis.verdict import Certainty

from tests.diagnosis.scenarios import Scenario, group

SETTINGS = HangSettings()
BENIGN = ["startup", "compile", "data", "checkpoint", "evaluation", "finished", "teardown"]

PHASES = [*BENIGN, "forward", "backward", "optimizer", "user", "between", "unknown", "wait"]


def stall(scenario, settings=SETTINGS):
    return detect_stall(scenario.job(), settings)


def test_a_healthy_job_is_not_stalled():
    assert stall(Scenario()) is None


def test_a_stopped_process_is_found_as_soon_as_its_peers_wait():
    found = stall(Scenario().waits(0, 1, 3, seconds=0.6).sits(2, phase="forward", process="stopped", seconds=0.7))
    assert found.certainty is Certainty.CONFIRMED
    assert found.reason is StallReason.FROZEN
    assert found.suspects == (2,)
    assert found.waiting == (0, 1, 3)


def test_a_process_stopped_for_a_moment_by_a_stack_sampler_is_not_a_stall():
    job = Scenario().waits(0, 1, 3, seconds=0.1).sits(2, phase="forward", process="stopped", seconds=0.1)
    assert stall(job) is None


@pytest.mark.parametrize("process", ["zombie", "gone", "uninterruptible"])
def test_a_process_that_cannot_go_on_is_found_at_once(process):
    found = stall(Scenario().waits(0, 1, 3, seconds=1.1).sits(2, phase="forward", process=process, seconds=1.1))
    assert (found.certainty, found.suspects) == (Certainty.CONFIRMED, (2,))


def test_a_process_in_the_kernel_while_it_saves_is_not_a_stall():
    job = Scenario().waits(0, 1, 3, seconds=30.0)
    assert stall(job.sits(2, phase="checkpoint", process="uninterruptible", seconds=30.0)) is None


@pytest.mark.parametrize("phase", ["forward", "backward", "optimizer", "user", "wait", "between"])
def test_peers_that_wait_far_beyond_the_step_times_confirm_a_stall(phase):
    found = stall(Scenario().waits(0, 1, 3, seconds=2.5).sits(2, phase=phase, process="running", seconds=2.5))
    assert (found.certainty, found.reason, found.suspects) == (Certainty.CONFIRMED, StallReason.WORKING, (2,))


def test_the_process_state_is_not_needed():
    job = Scenario().waits(0, 1, 3, seconds=2.5).sits(2, phase="forward", seconds=2.5).withhold_process_state()
    assert stall(job).suspects == (2,)


def test_a_slow_step_is_no_stall():
    assert stall(Scenario().waits(0, 1, 3, seconds=1.5).sits(2, phase="forward", seconds=1.5)) is None


def test_patience_follows_the_jobs_own_steps():
    slow = Scenario().steps_of(*(3.0,) * 20).waits(0, 1, 3, seconds=20.0).sits(2, phase="forward", seconds=20.0)
    assert stall(slow) is None
    assert stall_patience_seconds(slow.job(), SETTINGS) == 24.0
    jagged = Scenario().steps_of(*(0.2,) * 30, *(5.0,) * 10).waits(0, 1, 3, seconds=10.0)
    assert stall(jagged.sits(2, phase="forward", seconds=10.0)) is None


def test_a_few_outliers_do_not_make_it_patient():
    job = Scenario().steps_of(*(0.2,) * 60, 30.0, 30.0).job()
    assert stall_patience_seconds(job, SETTINGS) == 2.0


def test_a_process_that_may_only_lack_a_core_gets_more_patience():
    def found(process):
        return stall(Scenario().waits(0, 1, 3, seconds=2.2).sits(2, phase="forward", process=process, seconds=2.2))

    assert found("running") is None
    assert found("sleeping").suspects == (2,)


def test_a_rank_that_still_gives_signs_of_life_is_not_stuck():
    job = Scenario().waits(0, 1, 3, seconds=6.0).sits(2, phase="forward", process="running", seconds=0.4)
    assert stall(job) is None


@pytest.mark.parametrize("phase", BENIGN)
def test_benign_phases_raise_nothing(phase):
    job = Scenario().waits(0, 1, 3, seconds=600.0, op="barrier").sits(2, phase=phase, seconds=600.0)
    assert stall(job) is None


@pytest.mark.parametrize("phase", BENIGN)
def test_a_benign_phase_without_end_is_a_suspect_at_most(phase):
    job = Scenario().waits(0, 1, 3, seconds=1900.0).sits(2, phase=phase, seconds=1900.0)
    found = stall(job)
    assert (found.certainty, found.reason, found.suspects) == (Certainty.SUSPECT, StallReason.BENIGN_PHASE, (2,))


@pytest.mark.parametrize("phase", ["unknown", "between"])
def test_a_rank_outside_every_known_phase_is_a_suspect_until_patience_ends(phase):
    job = Scenario().waits(0, 1, 3, seconds=10.0).sits(2, phase=phase, seconds=10.0, is_annotated=False)
    assert stall(job).certainty is Certainty.SUSPECT
    job.waits(0, 1, 3, seconds=61.0).sits(2, phase=phase, seconds=61.0)
    assert stall(job).certainty is Certainty.CONFIRMED


def test_a_pause_in_which_nobody_waits_is_no_stall():
    job = Scenario()
    for rank in range(4):
        job.sits(rank, phase="evaluation" if rank % 2 else "between", process="running", seconds=500.0)
    assert stall(job) is None


def test_a_first_step_that_takes_long_is_no_stall():
    job = Scenario().steps_of().waits(0, 1, 3, seconds=90.0).sits(2, phase="forward", process="running", seconds=90.0)
    assert stall(job) is None


def test_a_process_stopped_before_the_first_steps_is_found():
    job = Scenario().steps_of().waits(0, 1, 3, seconds=2.5).sits(2, phase="startup", process="stopped", seconds=2.5)
    assert stall(job).suspects == (2,)


def test_a_rank_whose_reports_are_late_is_unknown_and_accused_of_nothing():
    job = Scenario().waits(0, 1, 3, seconds=8.0).sits(2, phase="forward", seconds=0.1).last_heard(2, 10.0)
    found = stall(job)
    assert (found.certainty, found.reason) == (Certainty.SUSPECT, StallReason.UNKNOWN_RANK)
    assert (found.suspects, found.unknown) == ((), (2,))


def test_a_rank_never_heard_of_is_unknown():
    found = stall(Scenario().waits(0, 1, 3, seconds=8.0).never_heard(2))
    assert (found.certainty, found.suspects, found.unknown) == (Certainty.SUSPECT, (), (2,))


def test_a_stopped_agent_raises_nothing_while_the_job_trains():
    job = Scenario().last_heard(2, 20.0).last_heard(3, 20.0)
    assert stall(job) is None


def test_every_report_late_raises_nothing():
    job = Scenario().waits(0, 1, 3, seconds=8.0).sits(2, phase="forward", process="stopped")
    for rank in range(4):
        job.last_heard(rank, 20.0)
    assert stall(job) is None


def test_the_age_of_a_report_is_no_wait():
    job = Scenario().waits(0, 1, 3, seconds=0.3).sits(2, phase="forward", seconds=0.3)
    for rank in range(4):
        job.last_heard(rank, 2.9)
    assert stall(job) is None


def test_what_is_not_observed_is_not_not_entered():
    found = stall(Scenario().waits(0, 1, 3, seconds=8.0).sits(2, phase="forward").in_groups(2))
    assert found.certainty is Certainty.SUSPECT
    assert found.suspects == ()


def test_a_collective_that_all_entered_and_none_completed_is_a_stall_without_suspects():
    found = stall(Scenario().waits(0, 1, 2, 3, seconds=3.0))
    assert (found.certainty, found.reason, found.suspects) == (Certainty.CONFIRMED, StallReason.SYMMETRIC, ())


def test_a_collective_that_all_entered_a_moment_ago_is_none():
    assert stall(Scenario().waits(0, 1, 2, 3, seconds=0.5)) is None


def test_launched_and_not_known_to_be_complete_is_no_wait_outside_a_blocking_phase():
    job = Scenario()
    for rank in range(4):
        open_ended = group(511, returned=511, age=60.0)
        job.sits(rank, phase="between", process="running", seconds=60.0).in_groups(rank, open_ended)
    assert stall(job) is None


def test_a_stopped_process_is_found_even_when_nobody_is_seen_to_wait():
    found = stall(Scenario().sits(2, phase="forward", process="stopped", seconds=3.0))
    assert found.suspects == (2,)


def test_a_process_stopped_inside_the_collective_that_holds_all_is_found_as_fast_as_one_outside():
    job = Scenario().waits(0, 1, 2, 3, seconds=0.9).sits(2, phase="backward", process="stopped", seconds=0.9)
    found = stall(job)
    assert (found.reason, found.suspects, found.waiting) == (StallReason.FROZEN, (2,), (0, 1, 3))


def test_its_healthy_twin_inside_the_same_collective_is_not():
    job = Scenario().waits(0, 1, 2, 3, seconds=0.9).sits(2, phase="backward", process="sleeping", seconds=0.9)
    assert stall(job) is None


@pytest.mark.parametrize("phase", BENIGN)
def test_a_completion_noticed_late_is_no_stall_while_all_are_in_a_benign_phase(phase):
    job = Scenario().waits(0, 1, 2, 3, seconds=60.0)
    for rank in range(4):
        job.sits(rank, phase=phase, seconds=60.0)
    assert stall(job) is None


def test_a_completion_noticed_late_is_a_suspicion_while_the_phase_is_unknown():
    job = Scenario().waits(0, 1, 2, 3, seconds=10.0)
    for rank in range(4):
        job.sits(rank, phase="between", seconds=10.0, is_annotated=False)
    assert stall(job).certainty is Certainty.SUSPECT


@given(
    st.lists(
        st.tuples(st.integers(505, 511), st.booleans(), st.floats(0, 1.9), st.floats(0, 3), st.sampled_from(PHASES)),
        min_size=4,
        max_size=4,
    )
)
def test_no_mixture_of_places_waits_and_late_reports_below_the_patience_is_a_stall(places):
    job = Scenario()
    for rank, (seq, is_open, seconds, late, phase) in enumerate(places):
        job.sits(rank, phase=phase, seconds=seconds).in_groups(rank, group(seq, done=seq - is_open, age=seconds))
        job.last_heard(rank, late)
    assert stall(job) is None


@given(st.permutations(range(4)))
def test_the_order_of_reports_does_not_matter(order):
    job = Scenario().waits(0, 1, 3).sits(2, phase="forward", process="stopped")
    shuffled = Scenario(reports={rank: job.reports[rank] for rank in order})
    assert stall(shuffled) == stall(job)


@given(st.permutations(range(4)))
def test_renumbered_ranks_give_the_renumbered_answer(names):
    culprit = names[2]
    job = Scenario().waits(*(rank for rank in range(4) if rank != culprit))
    assert stall(job.sits(culprit, phase="forward", process="stopped")).suspects == (culprit,)
