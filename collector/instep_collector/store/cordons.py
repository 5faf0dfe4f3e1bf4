"""Queries about the nodes that we took out of service."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instep_collector.store.models import Cordon


def get(session: Session, node: str) -> Cordon | None:
    """Return what is known of a node that we took out of service, None for any other."""
    return session.get(Cordon, node)


def all_nodes(session: Session) -> Sequence[Cordon]:
    """Return every node that we took out of service, by name."""
    return session.scalars(select(Cordon).order_by(Cordon.node)).all()


def count(session: Session) -> int:
    """Return how many nodes we took out of service."""
    return session.scalar(select(func.count()).select_from(Cordon)) or 0


def keep(session: Session, node: str, *, plan: int, actor: str, reason: str, at: float) -> None:
    """Keep that a node is out of service by us; the first reason stays."""
    if session.get(Cordon, node) is None:
        session.add(Cordon(node=node, plan=plan, actor=actor, reason=reason, at=at))


def forget(session: Session, node: str) -> None:
    """Keep that a node is back in service."""
    row = session.get(Cordon, node)
    if row is not None:
        session.delete(row)
