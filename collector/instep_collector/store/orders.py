"""Queries about orders to coordinators."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from instep_collector.store.models import OrderRow


def get(session: Session, id_: int) -> OrderRow | None:
    """Return one order."""
    return session.get(OrderRow, id_)


def find(session: Session, incident: str, attempt: int, action: str) -> OrderRow | None:
    """Return the order that was made of this kind for this attempt, whatever became of it."""
    return session.scalar(
        select(OrderRow).where(OrderRow.incident == incident, OrderRow.attempt == attempt, OrderRow.action == action)
    )


def listed(session: Session, run: str, *, after: int = 0) -> Sequence[OrderRow]:
    """Return what a coordinator still has to acknowledge, oldest first."""
    return session.scalars(
        select(OrderRow).where(OrderRow.run == run, OrderRow.id > after, OrderRow.outcome == "").order_by(OrderRow.id)
    ).all()


def of_attempt(session: Session, run: str, attempt: int) -> Sequence[OrderRow]:
    """Return every order made for an attempt."""
    return session.scalars(
        select(OrderRow).where(OrderRow.run == run, OrderRow.attempt == attempt).order_by(OrderRow.id)
    ).all()


def recent(session: Session, *, limit: int = 200) -> Sequence[OrderRow]:
    """Return orders, newest first."""
    return session.scalars(select(OrderRow).order_by(OrderRow.id.desc()).limit(limit)).all()
