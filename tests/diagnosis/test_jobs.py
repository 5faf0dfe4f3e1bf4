"""From rank reports to the state of a job."""

import pytest
from instep_agent.wire import RankDump, StepReport
from instep_diagnosis.jobs import STEPS_REMEMBERED_MAX, job_state, step_seconds
from msgspec.structs import replace

from tests.diagnosis.scenarios import group, report


def test_ages_grow_by_the_age_of_the_report():
    job = job_state([(report(0, groups=(group(511, age=1.0),)), 2.0)], step_seconds=())
    (state,) = job.ranks
    assert state.report.heartbeat_age_seconds == pytest.approx(2.05)
    assert state.groups[0].entered_age_seconds == pytest.approx(3.0)
    assert state.report_age_seconds == 2.0


def test_only_the_newest_attempt_counts():
    job = job_state([(report(0), 9.0), (report(1), 9.0), (report(0, attempt=2), 0.5)], step_seconds=())
    assert (job.attempt, [state.rank for state in job.ranks]) == (2, [0])


def test_the_run_that_lives_counts():
    old = report(0, run="run-0", attempt=7)
    assert job_state([(old, 60.0), (report(0), 0.5)], step_seconds=()).run == "run-1"


def test_the_newest_report_of_a_rank_counts():
    job = job_state([(report(0, step=39), 2.0), (report(0, step=40), 1.0)], step_seconds=())
    assert job.ranks[0].report.step == 40


def test_a_dump_replaces_an_older_report_and_keeps_what_it_could_not_see():
    older = report(0, step=40, process_state="stopped")
    dump = RankDump(report=report(0, step=41, process_state="unknown", groups=()), answers=False)
    (state,) = job_state([(older, 1.0)], dumps={0: dump}, step_seconds=()).ranks
    assert (state.report.step, state.report.process_state) == (41, "stopped")
    assert state.groups[0].key == older.groups[0].key
    assert (state.is_dumped, state.answers) == (True, False)


def test_an_older_dump_gives_stacks_only_and_one_of_another_attempt_nothing():
    dump = RankDump(report=report(0, step=30), answers=True)
    (state,) = job_state([(report(0), 0.1)], dumps={0: dump}, dump_ages={0: 9.0}, step_seconds=()).ranks
    assert (state.report.step, state.is_dumped) == (40, True)
    stale = RankDump(report=replace(report(0), attempt=9))
    (state,) = job_state([(report(0), 0.1)], dumps={0: stale}, step_seconds=()).ranks
    assert not state.is_dumped


def test_a_rank_that_died_unheard_stands_in_the_state():
    job = job_state([(report(0), 0.1)], exits={3: -9}, nodes={3: "node-b"}, step_seconds=())
    assert [(s.rank, s.report.node, s.exit_code) for s in job.ranks] == [(0, "node-a", None), (3, "node-b", -9)]


def test_no_report_is_an_error():
    with pytest.raises(ValueError, match="needs at least one"):
        job_state([], step_seconds=())


def test_step_times_are_medians_over_ranks_without_benign_phases():
    def rows(wall, **benign):
        return [StepReport(step=n, wall_seconds=wall, **benign) for n in range(100)]

    times = step_seconds({0: rows(10.2, evaluation_seconds=10.0), 1: rows(0.2), 2: rows(0.3), 3: rows(0.1)})
    assert len(times) == STEPS_REMEMBERED_MAX
    assert times[-1] == pytest.approx(0.2)
