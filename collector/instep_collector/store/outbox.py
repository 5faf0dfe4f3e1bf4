"""Queries about messages to people that are not delivered yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from instep_collector.store.models import Webhook


def put(session: Session, incident: str, occasion: str, body: dict[str, Any], *, at: float) -> None:
    """Queue one message; the same occasion of an incident is queued once."""
    id_ = f"{incident}:{occasion}"
    if session.get(Webhook, id_) is None:
        session.add(
            Webhook(
                id=id_, incident=incident, body=body, tries=0, created_at=at, next_at=at, delivered_at=None, error=""
            )
        )


def due(session: Session, *, now: float, tries_max: int, limit: int = 20) -> Sequence[Webhook]:
    """Return messages whose time has come, oldest first."""
    return session.scalars(
        select(Webhook)
        .where(Webhook.delivered_at.is_(None), Webhook.next_at <= now, Webhook.tries < tries_max)
        .order_by(Webhook.created_at)
        .limit(limit)
    ).all()


def keep_receipt(session: Session, incident: str, mark: str, *, at: float) -> None:
    """Keep that a receiver knows all there is to know of an incident; it is named by its mark."""
    id_ = f"{incident}:{mark}"
    if session.get(Webhook, id_) is None:
        session.add(
            Webhook(id=id_, incident=incident, body={}, tries=1, created_at=at, next_at=at, delivered_at=at, error="")
        )


def receipts(session: Session, incidents: Sequence[str], mark: str) -> frozenset[str]:
    """Return those of the incidents for which a receiver's receipt is kept."""
    ids = [f"{incident}:{mark}" for incident in incidents]
    return frozenset(session.scalars(select(Webhook.incident).where(Webhook.id.in_(ids))))


def prune(session: Session, *, before: float) -> None:
    """Forget messages made before a moment."""
    session.execute(delete(Webhook).where(Webhook.created_at < before))
