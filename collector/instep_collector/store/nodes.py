"""Queries about nodes and their raw events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from instep_agent.wire import Event, GpuReport
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from instep_collector.store.models import EventRow, Node

ASKED_MAX = 1000
"""What drivers of one node asked for, newest first, that is looked at."""
DRILLS_MAX = 1000
"""Beginnings and ends of drills that are looked at."""


def keep_node(
    session: Session,
    node: str,
    *,
    cluster: str,
    boot_id: str,
    gpus: tuple[GpuReport, ...],
    at: float,
    booted_at: float | None = None,
) -> None:
    """Keep what is known of a node now."""
    row = session.get(Node, node)
    if row is None:
        row = Node(node=node, cluster=cluster, boot_id=boot_id, gpus=[], first_seen_at=at, last_seen_at=at)
        session.add(row)
    row.cluster, row.boot_id, row.last_seen_at, row.booted_at = cluster, boot_id, at, booted_at
    if gpus:
        row.gpus = msgspec.to_builtins(gpus)


def seen(session: Session, nodes: Sequence[str], *, at: float) -> None:
    """Keep that nodes were heard of."""
    session.execute(update(Node).where(Node.node.in_(nodes)).values(last_seen_at=at))


def get(session: Session, node: str) -> Node | None:
    """Return one node."""
    return session.get(Node, node)


def nodes(session: Session) -> Sequence[Node]:
    """Return every node by name."""
    return session.scalars(select(Node).order_by(Node.node)).all()


def keep_events(session: Session, events: Sequence[tuple[str, Event, float]]) -> int:
    """Keep (node, event, received at) once each; returns how many were new."""
    wanted = {event.id: (node, event, at) for node, event, at in events}
    have = set(session.scalars(select(EventRow.id).where(EventRow.id.in_(wanted))))
    session.add_all(_row(*found) for id_, found in wanted.items() if id_ not in have)
    return len(wanted) - len(have)


def events(session: Session, *, node: str | None = None, limit: int = 200) -> Sequence[EventRow]:
    """Return recent events, newest first."""
    query = select(EventRow).order_by(EventRow.received_at.desc()).limit(limit)
    return session.scalars(query if node is None else query.where(EventRow.node == node)).all()


def asking(session: Session, node: Node) -> set[str]:
    """Return the GPUs of a node (UUID, else index) whose drivers asked for something last, since it was booted."""
    query = select(EventRow).where(EventRow.node == node.node, EventRow.kind == "gpu_recovery")
    query = query.where(EventRow.is_drill.is_(False), EventRow.received_at >= (node.booted_at or 0.0))
    newest: dict[str, str] = {}
    for row in session.scalars(query.order_by(EventRow.received_at.desc(), EventRow.realtime.desc()).limit(ASKED_MAX)):
        newest.setdefault(row.fields.get("uuid") or row.fields.get("gpu", ""), row.fields.get("action", "0"))
    return {gpu for gpu, action in newest.items() if gpu and action != "0"}


def drills(session: Session, *, node: str | None = None, after: float) -> Sequence[EventRow]:
    """Return what nodes said of the beginning and the end of drills since a moment, newest first."""
    kinds = EventRow.kind.in_(("drill_began", "drill_ended"))
    query = select(EventRow).where(kinds, EventRow.received_at >= after)
    query = query.order_by(EventRow.received_at.desc()).limit(DRILLS_MAX)
    return session.scalars(query if node is None else query.where(EventRow.node == node)).all()


def prune_events(session: Session, *, before: float) -> None:
    """Forget events received before a moment."""
    session.execute(delete(EventRow).where(EventRow.received_at < before))


def _row(node: str, event: Event, at: float) -> EventRow:
    return EventRow(
        id=event.id,
        node=node,
        kind=event.kind,
        text=clean(event.text),
        fields=_clean_fields(event.fields),
        is_drill=event.is_drill,
        realtime=event.realtime_ns / 1e9,
        received_at=at,
    )


def _clean_fields(fields: dict[str, str]) -> dict[str, Any]:
    return {clean(name): clean(value) for name, value in fields.items()}


def clean(text: str) -> str:
    """Return text without NUL, which PostgreSQL does not store."""
    return text.replace("\0", "")
