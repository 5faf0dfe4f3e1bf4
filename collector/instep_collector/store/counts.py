"""Counts of what the store holds, for the metrics: few rows whatever the number of incidents, plans and orders."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instep_collector.store.models import Incident, OrderRow, PlanRow


def open_incidents(session: Session, *, limit: int) -> dict[tuple[str, str, bool], int]:
    """Return (job, kind, is a drill) → open incidents; an incident of a node alone has an empty job."""
    keys = (Incident.job, Incident.kind, Incident.is_drill)
    query = select(*keys, func.count()).where(Incident.state == "open").group_by(*keys).order_by(*keys).limit(limit)
    return {(job, kind, is_drill): number for job, kind, is_drill, number in session.execute(query)}


def plans(session: Session) -> dict[str, int]:
    """Return state → plans."""
    query = select(PlanRow.state, func.count()).group_by(PlanRow.state)
    return {row[0]: row[1] for row in session.execute(query)}


def orders(session: Session) -> dict[tuple[str, str], int]:
    """Return (action, outcome) → orders to coordinators; the outcome is empty until there is one."""
    query = select(OrderRow.action, OrderRow.outcome, func.count()).group_by(OrderRow.action, OrderRow.outcome)
    return {(action, outcome): number for action, outcome, number in session.execute(query)}
