"""What Prometheus is told of each live job: computed at the scrape, over ranks, so that labels stay bounded.

A rank's own values are on its agent's page; here stand the job's median, its 90th percentile and its worst rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median

from instep_agent.metric import Metric, gauge
from instep_agent.rank_record.layout import Phase
from instep_agent.wire import RankReport, StepReport

from instep_collector.boards import RankBoard
from instep_collector.registry import RunState

STEPS_RECENT = 10
STEPS_LOOKED_AT_MAX = 4096
"""Of one job, but at least one of each rank: a scrape holds up the taking of frames for as long as it computes."""
REPORT_FRESH_SECONDS = 10.0
"""A rank whose last report is older is not counted alive: its agent is silent, so nothing is known of it."""
GONE = ("gone", "zombie")
PARTS = ("data", "forward", "backward", "optimizer", "checkpoint", "evaluation")
PHASES = frozenset(phase.name for phase in Phase)

Values = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class RankPace:
    """One rank's recent steps: medians in seconds."""

    rank: int
    wall_seconds: float
    work_seconds: float
    """Without waiting for peers, data, checkpoints and evaluation."""
    wait_ratio: float


@dataclass(frozen=True, slots=True)
class JobLook:
    """One job at the moment of a scrape."""

    run: RunState
    board: RankBoard
    reports: Sequence[tuple[RankReport, float]]
    """Each rank's newest report and the seconds since it was read."""
    steps: Mapping[int, Sequence[StepReport]]
    paces: Sequence[RankPace]


def look(run: RunState, now: float) -> JobLook:
    """Give a job's ranks and recent steps at a moment of the server's monotonic clock."""
    board = run.current()
    recent = max(1, min(STEPS_RECENT, STEPS_LOOKED_AT_MAX // max(1, len(board.steps))))
    steps = {rank: tuple(islice(reversed(kept), recent)) for rank, kept in board.steps.items() if kept}
    paces = tuple(_pace(rank, recent) for rank, recent in sorted(steps.items()))
    return JobLook(run, board, board.ranks_now(now), steps, paces)


def _pace(rank: int, steps: Sequence[StepReport]) -> RankPace:
    wall = sum(step.wall_seconds for step in steps)
    wait = sum(step.wait_seconds for step in steps)
    return RankPace(
        rank=rank,
        wall_seconds=median(step.wall_seconds for step in steps),
        work_seconds=median(_work(step) for step in steps),
        wait_ratio=min(1.0, wait / wall) if wall > 0 else 0.0,
    )


def _work(step: StepReport) -> float:
    away = step.wait_seconds + step.data_seconds + step.checkpoint_seconds + step.evaluation_seconds
    return max(0.0, step.wall_seconds - away)


def over_ranks(values: Iterable[float]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield the median, the 90th percentile (nearest rank) and the largest; nothing for no values.

    >>> list(over_ranks([1.0, 2.0, 9.0]))
    [(('median',), 2.0), (('p90',), 9.0), (('max',), 9.0)]
    """
    ordered = sorted(values)
    if ordered:
        yield ("median",), median(ordered)
        yield ("p90",), ordered[math.ceil(0.9 * len(ordered)) - 1]
        yield ("max",), ordered[-1]


@dataclass(frozen=True, slots=True)
class JobMetric:
    """One metric of each live job: what it is, its labels beside `job`, and how it is read."""

    metric: Metric
    labels: tuple[str, ...]
    read: Callable[[JobLook], Values]


def _one(value: float | None) -> Values:
    return () if value is None else (((), float(value)),)


def _step_seconds(job: JobLook) -> Values:
    recent = [step.wall_seconds for steps in job.steps.values() for step in steps]
    return _one(median(recent) if recent else None)


def _alive(job: JobLook) -> Values:
    alive = (age <= REPORT_FRESH_SECONDS and report.process_state not in GONE for report, age in job.reports)
    return _one(sum(alive))


def _phases(job: JobLook) -> Values:
    """Count by the phases that we know: a label's value is never what a stranger sent."""
    said = Counter(report.phase if report.phase in PHASES else "unknown" for report, _ in job.reports)
    return (((phase.name,), said[phase.name]) for phase in Phase)


def _parts(job: JobLook) -> Values:
    steps = [step for steps in job.steps.values() for step in steps]
    if steps:
        known = {part: fmean(getattr(step, f"{part}_seconds") for step in steps) for part in PARTS}
        yield from (((part,), seconds) for part, seconds in known.items())
        yield ("other",), max(0.0, fmean(step.wall_seconds for step in steps) - sum(known.values()))


def _slowest(job: JobLook) -> RankPace | None:
    return max(job.paces, key=lambda pace: pace.work_seconds, default=None)


def _slowest_rank(job: JobLook) -> Values:
    slowest = _slowest(job)
    return _one(slowest.rank if slowest else None)


def _slowest_ratio(job: JobLook) -> Values:
    slowest = _slowest(job)
    typical = median(pace.work_seconds for pace in job.paces) if job.paces else 0.0
    return _one(slowest.work_seconds / typical if slowest and typical > 0 else None)


def _heartbeat_age(job: JobLook) -> Values:
    return _one(max((report.heartbeat_age_seconds + age for report, age in job.reports), default=None))


def _kept(job: JobLook) -> Values:
    return _one(job.board.kept[0] if job.board.kept else None)


def _resume_seconds(job: JobLook) -> Values:
    opened, kept = job.board.opened_realtime, job.board.kept
    return _one(max(0.0, kept[1] - opened) if kept and opened is not None else None)


JOB_METRICS = (
    JobMetric(gauge("instep_job_step", "Steps that every rank has finished."), (), lambda job: _one(job.board.step())),
    JobMetric(gauge("instep_job_step_seconds", "Median wall time of recent steps."), (), _step_seconds),
    JobMetric(gauge("instep_job_attempt", "The running attempt."), (), lambda job: _one(job.run.attempt)),
    JobMetric(
        gauge("instep_job_rank_step_seconds", "Wall time of recent steps, each rank's median, over ranks."),
        ("of_ranks",),
        lambda job: over_ranks(pace.wall_seconds for pace in job.paces),
    ),
    JobMetric(
        gauge(
            "instep_job_rank_work_seconds",
            "Time of recent steps without waiting for peers, data, checkpoints and evaluation, over ranks.",
        ),
        ("of_ranks",),
        lambda job: over_ranks(pace.work_seconds for pace in job.paces),
    ),
    JobMetric(
        gauge("instep_job_rank_wait_ratio", "Share of recent steps spent waiting in collectives, over ranks."),
        ("of_ranks",),
        lambda job: over_ranks(pace.wait_ratio for pace in job.paces),
    ),
    JobMetric(
        gauge("instep_job_step_part_seconds", "Mean time of a recent step in each part, over all ranks."),
        ("part",),
        _parts,
    ),
    JobMetric(gauge("instep_job_slowest_rank", "The rank with the most work time."), (), _slowest_rank),
    JobMetric(
        gauge("instep_job_slowest_rank_ratio", "Work time of the slowest rank over the median rank's."),
        (),
        _slowest_ratio,
    ),
    JobMetric(gauge("instep_job_ranks_expected", "World size."), (), lambda job: _one(job.run.world_size)),
    JobMetric(gauge("instep_job_ranks_alive", "Ranks freshly reported with a living process."), (), _alive),
    JobMetric(gauge("instep_job_phase_ranks", "Ranks by the phase they are in."), ("phase",), _phases),
    JobMetric(
        gauge("instep_job_heartbeat_age_seconds_max", "Since the last sign of life of the most silent rank."),
        (),
        _heartbeat_age,
    ),
    JobMetric(gauge("instep_job_restarts", "Restarts used by the run."), (), lambda job: _one(job.run.restarts_used)),
    JobMetric(
        gauge("instep_job_restarts_max", "Restarts the run may use."), (), lambda job: _one(job.run.max_restarts)
    ),
    JobMetric(
        gauge("instep_job_kept_step_first", "First step that every rank kept in the running attempt."), (), _kept
    ),
    JobMetric(
        gauge("instep_job_resume_seconds", "From the opening of the running attempt to its first kept step."),
        (),
        _resume_seconds,
    ),
)
"""Every metric of a job."""
