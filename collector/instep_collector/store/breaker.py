"""Queries about the breaker before node actions that nobody has approved."""

from __future__ import annotations

from sqlalchemy.orm import Session

from instep_collector.store.models import Breaker

NODES = "nodes"


def get(session: Session) -> Breaker:
    """Return the breaker; it is closed before anything has failed."""
    row = session.get(Breaker, NODES)
    if row is None:
        row = Breaker(name=NODES, failures=0, opened_at=None, reason="", reset_at=None, reset_by="")
        session.add(row)
        session.flush()
    return row


def is_open(session: Session) -> bool:
    """Whether nothing is carried out by itself until a person has looked."""
    row = session.get(Breaker, NODES)
    return row is not None and row.opened_at is not None


def count_failure(session: Session, reason: str, *, failures_max: int, at: float) -> bool:
    """Count a failed node plan; returns whether this one opened the breaker."""
    row = get(session)
    row.failures, row.reason = row.failures + 1, reason
    if row.opened_at is not None or row.failures < failures_max:
        return False
    row.opened_at = at
    return True


def count_success(session: Session) -> None:
    """Begin to count anew; an open breaker stays open."""
    row = session.get(Breaker, NODES)
    if row is not None and row.opened_at is None:
        row.failures = 0


def reset(session: Session, *, actor: str, at: float) -> Breaker:
    """Close it and begin to count anew."""
    row = get(session)
    row.failures, row.opened_at, row.reason, row.reset_at, row.reset_by = 0, None, "", at, actor
    return row
