"""From what the registry holds to what the detectors take, and to their answers: the only module that calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from instep_agent.wire import RankDump, RankReport
from instep_diagnosis import jobs
from instep_diagnosis.detectors.crash import judge_crash
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import Stall, detect_stall
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.evidence import JobState, JobSteps, NodeFact
from instep_diagnosis.settings import CrashSettings, HangSettings, StragglerSettings
from instep_diagnosis.verdict import Verdict

from instep_collector.boards import RankBoard
from instep_collector.registry import RunState

RECORDERS_READ_MAX = 4
"""Pickled flight recorders of suspects that are read for one verdict, and as many of ranks that wait."""


def state(run: RunState, board: RankBoard, now: float, facts: Sequence[NodeFact]) -> JobState:
    """Return an attempt as the detectors see it at `now`; a rank that ended before its first report is in it too."""
    causes = board.causes()
    reports = board.ranks_now(now) or [(_placeholder(run, board), 0.0)]
    return jobs.job_state(
        reports,
        step_seconds=jobs.step_seconds(board.steps),
        dumps={rank: dump for rank, (dump, _) in board.dumps.items()},
        dump_ages={rank: now - at for rank, (_, at) in board.dumps.items()},
        exits={rank: exit_.report.exit_code for rank, exit_ in causes.items()},
        exit_ages={rank: now - exit_.at for rank, exit_ in causes.items()},
        nodes={rank: exit_.report.node for rank, exit_ in causes.items()},
        attempt=board.attempt,
        facts=facts,
    )


def job_steps(run: RunState, board: RankBoard) -> JobSteps:
    """Return an attempt's finished steps for the straggler detector."""
    return JobSteps(
        job=run.job,
        run=run.run,
        attempt=board.attempt,
        steps={rank: tuple(steps) for rank, steps in sorted(board.steps.items()) if steps},
        nodes={rank: report.node for rank, (report, _) in sorted(board.reports.items())},
    )


def stall(job: JobState, settings: HangSettings) -> Stall | None:
    """Return whether and why the job makes no progress."""
    return detect_stall(job, settings)


def localise(
    job: JobState, found: Stall, settings: HangSettings, dumps: Mapping[int, RankDump]
) -> tuple[JobState, Verdict]:
    """Return who is to blame for a stall, and the state that tells so: pickled flight recorders are read only of the
    suspects and of some that wait for them."""
    verdict = localise_hang(job, found, settings)
    suspects = [suspect.rank for suspect in verdict.suspects if suspect.rank is not None]
    waiting = [rank for rank in verdict.waiting_ranks if rank not in suspects]
    wanted = (*suspects[:RECORDERS_READ_MAX], *waiting[:RECORDERS_READ_MAX]) if suspects else ()
    witnessed = jobs.with_pickled_recorders(job, dumps, wanted)
    return witnessed, verdict if witnessed is job else localise_hang(witnessed, found, settings)


def crash(job: JobState, settings: CrashSettings) -> Verdict | None:
    """Return why a rank ended; None while none has failed."""
    return judge_crash(job, settings)


def stragglers(steps: JobSteps, settings: StragglerSettings) -> list[Verdict]:
    """Return the slow ranks."""
    return detect_stragglers(steps, settings)


def _placeholder(run: RunState, board: RankBoard) -> RankReport:
    """A rank of an attempt that no frame has spoken of yet: the first one that ended."""
    failure = board.first_failure()
    rank = failure.report.rank if failure else 0
    return RankReport(
        job=run.job,
        run=run.run,
        attempt=board.attempt,
        rank=rank,
        local_rank=-1,
        world_size=run.world_size,
        pid=0,
        node=failure.report.node if failure else "",
        phase="startup",
    )
