"""From rank reports to the state of a job: the one way in, for the server and for the supervisor alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as replace_field
from statistics import median

from instep_agent.wire import RankDump, RankReport, StepReport
from msgspec.structs import replace

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.evidence import JobState, NodeFact, RankState
from instep_diagnosis.flight_recorder import last_entries, last_entries_pickled

STEPS_REMEMBERED_MAX = 64
"""Steps in a job's distribution of step times: long enough for a 95th percentile, short enough to follow a change."""


def job_state(
    reports: Sequence[tuple[RankReport, float]],
    *,
    step_seconds: Sequence[float],
    dumps: Mapping[int, RankDump] | None = None,
    exits: Mapping[int, int] | None = None,
    facts: Sequence[NodeFact] = (),
    dump_ages: Mapping[int, float] | None = None,
    exit_ages: Mapping[int, float] | None = None,
    nodes: Mapping[int, str] | None = None,
    attempt: int | None = None,
) -> JobState:
    """State of the newest attempt in `reports`, each a report and its age in seconds.

    Every age inside a report grows by the report's age, so all ages count back from the moment of evaluation. `dumps`
    (rank → evidence, `dump_ages` seconds old, 0 by default) replace an older report. `exits` gives exit codes
    (negative: signals) by rank; a rank that died before its first report stands in the state with the node that
    `nodes` gives it. `attempt` restricts the state to that attempt. Raises `ValueError` when no report is of that
    attempt.
    """
    newest = _newest_attempt(reports, attempt)
    first = newest[min(newest)][0]
    states = {rank: _aged_state(*newest[rank]) for rank in newest}
    for rank, dump in (dumps or {}).items():
        if (dump.report.run, dump.report.attempt) == (first.run, first.attempt):
            states[rank] = _with_dump(states.get(rank), dump, (dump_ages or {}).get(rank, 0.0))
    for rank, code in (exits or {}).items():
        state = states.get(rank) or _never_heard(first, rank, (nodes or {}).get(rank, ""))
        states[rank] = replace_field(state, exit_code=code, exit_age_seconds=(exit_ages or {}).get(rank))
    return JobState(
        job=first.job,
        run=first.run,
        attempt=first.attempt,
        world_size=first.world_size,
        ranks=tuple(states[rank] for rank in sorted(states)),
        step_seconds=tuple(step_seconds),
        facts=tuple(facts),
    )


def with_pickled_recorders(job: JobState, dumps: Mapping[int, RankDump], ranks: Iterable[int]) -> JobState:
    """The state with what the pickled flight recorders of some ranks say, apart since such a dump takes long to read.

    A dump that cannot be read gives no entries and one sentence in the rank's `missing`.
    """
    wanted = {rank for rank in ranks if rank in dumps and dumps[rank].flight_recorder_pickle}
    states = (_with_pickle(state, dumps[state.rank]) if state.rank in wanted else state for state in job.ranks)
    return replace_field(job, ranks=tuple(states)) if wanted else job


def step_seconds(steps_by_rank: Mapping[int, Iterable[StepReport]]) -> tuple[float, ...]:
    """Recent step durations of a job in seconds, oldest first: the median over ranks of each step, benign phases
    taken out.

    >>> step = lambda wall, saved: StepReport(step=1, wall_seconds=wall, checkpoint_seconds=saved)
    >>> step_seconds({0: [step(10.5, 10.0)], 1: [step(10.5, 9.9)]})
    (0.55,)
    """
    durations: dict[int, list[float]] = {}
    for reports in steps_by_rank.values():
        for report in reports:
            benign = report.data_seconds + report.checkpoint_seconds + report.evaluation_seconds
            durations.setdefault(report.step, []).append(max(0.0, report.wall_seconds - benign))
    newest = sorted(durations)[-STEPS_REMEMBERED_MAX:]
    return tuple(round(median(durations[step]), 9) for step in newest)


def _newest_attempt(
    reports: Sequence[tuple[RankReport, float]], attempt: int | None
) -> dict[int, tuple[RankReport, float]]:
    wanted = [pair for pair in reports if attempt is None or pair[0].attempt == attempt]
    if not wanted:
        raise ValueError("No rank report of this attempt: a job's state needs at least one.")
    # Of two runs under one name the fresher one is alive; within it the highest attempt is.
    run = min(wanted, key=lambda pair: pair[1])[0].run
    number = max(report.attempt for report, _ in wanted if report.run == run)
    newest: dict[int, tuple[RankReport, float]] = {}
    for report, age in wanted:
        if (report.run, report.attempt) != (run, number):
            continue
        if report.rank not in newest or age < newest[report.rank][1]:
            newest[report.rank] = (report, age)
    return newest


def _aged_state(report: RankReport, age_seconds: float) -> RankState:
    return RankState(report=_aged(report, age_seconds), report_age_seconds=age_seconds)


def _aged(report: RankReport, seconds: float) -> RankReport:
    return replace(
        report,
        heartbeat_age_seconds=report.heartbeat_age_seconds + seconds,
        phase_age_seconds=None if report.phase_age_seconds is None else report.phase_age_seconds + seconds,
        groups=tuple(
            group
            if group.entered_age_seconds is None
            else replace(group, entered_age_seconds=group.entered_age_seconds + seconds)
            for group in report.groups
        ),
        collectives=tuple(
            replace(entry, entered_age_seconds=entry.entered_age_seconds + seconds) for entry in report.collectives
        ),
    )


def _with_dump(state: RankState | None, dump: RankDump, age_seconds: float) -> RankState:
    """The state with a dump's stacks, and with its report where that is the newer one."""
    if state is None or age_seconds <= state.report_age_seconds:
        fresh = _aged_state(_filled(dump.report, state), age_seconds)
    else:
        fresh = state
    return replace_field(
        fresh,
        stacks=dump.stacks,
        answers=dump.answers,
        is_dumped=True,
        missing=dump.missing,
        recorder=last_entries(dump.flight_recorder),
    )


def _with_pickle(state: RankState, dump: RankDump) -> RankState:
    if state.recorder or (dump.report.run, dump.report.attempt) != (state.report.run, state.report.attempt):
        return state
    try:
        return replace_field(state, recorder=last_entries_pickled(dump.flight_recorder_pickle))
    except EvidenceError as error:
        said = f"The flight recorder of rank {state.rank} cannot be read: {error}."
        return replace_field(state, missing=(*state.missing, said))


def _filled(report: RankReport, older: RankState | None) -> RankReport:
    """A dump is taken by another process than the agent: what it could not see is kept from the older report."""
    if older is None:
        return report
    known = older.report
    state = known.process_state if report.process_state == "unknown" else report.process_state
    return replace(
        report,
        process_state=state,
        groups=report.groups or known.groups,
        collectives=report.collectives or known.collectives,
        gpu=report.gpu or known.gpu,
        node=report.node or known.node,
    )


def _never_heard(first: RankReport, rank: int, node: str) -> RankState:
    report = RankReport(
        job=first.job,
        run=first.run,
        attempt=first.attempt,
        rank=rank,
        local_rank=-1,
        world_size=first.world_size,
        pid=0,
        node=node,
        phase="startup",
    )
    return RankState(report=report, report_age_seconds=0.0)
