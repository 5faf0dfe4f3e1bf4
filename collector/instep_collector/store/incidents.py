"""Queries about incidents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session, defer

from instep_collector.store.models import Incident

ACTIVE = ("suspect", "open")
ENDED = ("resolved", "withdrawn", "merged")


def get(session: Session, id_: str) -> Incident | None:
    """Return one incident; a merged one leads to the one it was merged into."""
    row = session.get(Incident, id_)
    return get(session, row.merged_into) if row is not None and row.merged_into else row


def by_identity(session: Session, identity: str) -> Incident | None:
    """Return the incident that was opened under an identity, whatever its state."""
    return session.scalar(select(Incident).where(Incident.identity == identity))


def active(session: Session, *, run: str | None = None) -> Sequence[Incident]:
    """Return suspects and open incidents, oldest first."""
    query = select(Incident).where(Incident.state.in_(ACTIVE)).order_by(Incident.opened_at)
    return session.scalars(query if run is None else query.where(Incident.run == run)).all()


def of_attempt(session: Session, run: str, attempt: int) -> Sequence[Incident]:
    """Return every incident of an attempt, whatever its state, oldest first."""
    return session.scalars(
        select(Incident).where(Incident.run == run, Incident.attempt == attempt).order_by(Incident.opened_at)
    ).all()


def recent(session: Session, *, limit: int = 200, states: Sequence[str] = ()) -> Sequence[Incident]:
    """Return incidents, newest first."""
    query = select(Incident).order_by(Incident.opened_at.desc()).limit(limit)
    return session.scalars(query.where(Incident.state.in_(states)) if states else query).all()


def with_verdict(session: Session, *, limit: int) -> Sequence[Incident]:
    """Return incidents that have a verdict, newest first, without their evidence, which is large."""
    query = select(Incident).where(Incident.verdict_at.is_not(None)).options(defer(Incident.evidence))
    return session.scalars(query.order_by(Incident.opened_at.desc()).limit(limit)).all()


def stops_near(session: Session, run: str, at: float, *, within: float) -> Sequence[Incident]:
    """Return the stops of a run that began near a moment, newest first; none that was withdrawn or merged."""
    query = select(Incident).where(
        Incident.run == run,
        Incident.family == "stop",
        Incident.state.not_in(("withdrawn", "merged")),
        Incident.onset_at.between(at - within, at + within),
    )
    return session.scalars(query.order_by(Incident.opened_at.desc()).options(defer(Incident.evidence))).all()


@dataclass(frozen=True, slots=True)
class Told:
    """An incident that people were told of, without its evidence, which is large."""

    id: str
    version: int
    state: str


def told(session: Session, *, ended_after: float, limit: int) -> Sequence[Told]:
    """Return incidents that people were told of: the open ones, and those that ended after a moment.

    What is open comes first, then the newest: however much ended lately, what still stands is among the first.
    """
    is_over = and_(Incident.state.in_(ENDED), Incident.resolved_at >= ended_after)
    rows = session.execute(
        select(Incident.id, Incident.version, Incident.state)
        .where(Incident.verdict_at.is_not(None), or_(Incident.state == "open", is_over))
        .order_by((Incident.state == "open").desc(), Incident.opened_at.desc())
        .limit(limit)
    )
    return [Told(*row) for row in rows]


def of_ids(session: Session, ids: Sequence[str]) -> Sequence[Incident]:
    """Return the incidents of these ids that there are, in the order of the ids."""
    found = {row.id: row for row in session.scalars(select(Incident).where(Incident.id.in_(ids)))}
    return [found[id_] for id_ in ids if id_ in found]


def counts(session: Session) -> dict[tuple[str, str], int]:
    """Return (kind, state) → number."""
    rows = session.execute(select(Incident.kind, Incident.state, func.count()).group_by(Incident.kind, Incident.state))
    return {(kind, state): number for kind, state, number in rows}


def prune(session: Session, *, before: float) -> None:
    """Forget incidents that were settled before a moment."""
    session.execute(
        delete(Incident).where(
            Incident.state.not_in(ACTIVE),
            Incident.opened_at < before,
            func.coalesce(Incident.resolved_at, Incident.opened_at) < before,
        )
    )
