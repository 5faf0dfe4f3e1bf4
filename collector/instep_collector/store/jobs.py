"""Queries about runs, attempts and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from instep_collector.control import AttemptOpened, RankExited
from instep_collector.store.models import Attempt, Job, Rank


def keep_attempt(session: Session, job: str, run: str, attempt: int, body: AttemptOpened, *, at: float) -> None:
    """Keep an opened attempt with its ranks; a second time changes nothing."""
    row = session.get(Job, run)
    if row is None:
        row = Job(
            run=run,
            job=job,
            state="running",
            attempt=attempt,
            world_size=0,
            max_restarts=0,
            restarts_used=0,
            standby=[],
            started_at=at,
            ended_at=None,
        )
        session.add(row)
    if session.get(Attempt, (run, attempt)) is not None:
        return
    if attempt >= row.attempt:
        row.state, row.ended_at, row.attempt, row.world_size = "running", None, attempt, body.world_size
        row.max_restarts, row.restarts_used, row.standby = body.max_restarts, body.restarts_used, list(body.standby)
    session.flush()
    session.add(
        Attempt(
            run=run,
            attempt=attempt,
            members=msgspec.to_builtins(body.members),
            resume_step=body.resume_step,
            cause_order=body.cause_order,
            opened_at=at,
            ended_at=None,
            outcome="",
        )
    )
    placed = {rank: member.node for member in body.members for rank in member.ranks}
    session.add_all(
        Rank(run=run, attempt=attempt, rank=rank, node=node, exit_code=None, exited_at=None)
        for rank, node in placed.items()
    )


def keep_exit(session: Session, run: str, attempt: int, body: RankExited, *, at: float) -> None:
    """Keep the first report of a rank's end."""
    session.execute(
        update(Rank)
        .where(Rank.run == run, Rank.attempt == attempt, Rank.rank == body.rank, Rank.exit_code.is_(None))
        .values(exit_code=body.exit_code, exited_at=at)
    )


def end_attempt(session: Session, run: str, attempt: int, outcome: str, *, at: float) -> None:
    """Keep that all ranks of an attempt are gone."""
    session.execute(
        update(Attempt)
        .where(Attempt.run == run, Attempt.attempt == attempt, Attempt.ended_at.is_(None))
        .values(ended_at=at, outcome=outcome)
    )


def end_run(session: Session, run: str, outcome: str, *, at: float) -> None:
    """Keep that a run is over."""
    session.execute(
        update(Job)
        .where(Job.run == run, Job.ended_at.is_(None))
        .values(state="finished" if outcome == "finished" else "failed", ended_at=at)
    )


def running(session: Session) -> Sequence[tuple[Job, Attempt]]:
    """Return runs that were not reported as over, each with its latest attempt."""
    rows = session.execute(
        select(Job, Attempt)
        .join(Attempt, (Attempt.run == Job.run) & (Attempt.attempt == Job.attempt))
        .where(Job.ended_at.is_(None))
    )
    return [(job, attempt) for job, attempt in rows]


def recent(session: Session, limit: int = 200) -> Sequence[Job]:
    """Return runs, newest first."""
    return session.scalars(select(Job).order_by(Job.started_at.desc()).limit(limit)).all()


def prune(session: Session, *, before: float) -> None:
    """Forget runs that ended before a moment."""
    session.execute(delete(Job).where(Job.ended_at < before))


def attempts(session: Session, run: str) -> Sequence[Attempt]:
    """Return a run's attempts, oldest first."""
    return session.scalars(select(Attempt).where(Attempt.run == run).order_by(Attempt.attempt)).all()
