"""The audit log: who changed what, and why. Lines are added, never changed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import CursorResult, delete, func, select
from sqlalchemy.orm import Session

from instep_collector.store.models import Audit


def note(session: Session, *, at: float, actor: str, action: str, subject: str, reason: str) -> None:
    """Add one line."""
    session.add(Audit(at=at, actor=actor[:200], action=action[:60], subject=subject[:300], reason=reason))


def oldest_at(session: Session) -> float | None:
    """Return the moment of the oldest line, None without any."""
    return session.scalar(select(func.min(Audit.at)))


def prune(session: Session, *, before: float) -> int:
    """Remove lines from before a moment; returns how many."""
    result = session.execute(delete(Audit).where(Audit.at < before))
    assert isinstance(result, CursorResult)
    return result.rowcount


def find(session: Session, *, subject: str = "", actor: str = "", limit: int) -> Sequence[Audit]:
    """Return lines about a subject, by an actor, or both, newest first."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit)
    query = query.where(Audit.subject == subject) if subject else query
    return session.scalars(query.where(Audit.actor == actor) if actor else query).all()


def recent(session: Session, *, limit: int = 200) -> Sequence[Audit]:
    """Return lines, newest first."""
    return session.scalars(select(Audit).order_by(Audit.id.desc()).limit(limit)).all()
