"""What ends when a person says that a node is mended: its latched faults, and what was still proposed about it."""

from __future__ import annotations

from instep_collector.store import incidents, plans
from instep_collector.store.models import Incident
from instep_diagnosis.incidents import Family
from sqlalchemy.orm import Session

from instep_remediation.openings import Announce, resolve
from instep_remediation.plan_rows import Decision

REPAIRED = "/repaired-"
"""In the identity of a fault that was mended: the same fault afterwards is another one."""


def end_faults(
    session: Session, node: str, decision: Decision, *, announce: Announce, now: float
) -> list[Incident]:
    """End the latched faults of a node and the plans about it that have not begun; returns the faults."""
    for plan, action in plans.of_node(session, node):
        action.state, action.ended_at = "cancelled", now
        action.detail = f"{decision.actor} said that the node is repaired."
        plans.refresh(session, plan, at=now)
    found = [row for row in incidents.active(session) if is_latched(row, node)]
    for row in found:
        row.identity = f"{row.identity[:660]}{REPAIRED}{now:.3f}"
        resolve(session, row, f"Repaired, says {decision.actor}: {decision.reason}", at=now)
        announce(session, row, "resolved")
    return found


def is_latched(row: Incident, node: str) -> bool:
    """Whether an incident is a fault of this node that stays until somebody mends it."""
    return node in latched_nodes(row)


def latched_nodes(row: Incident) -> set[str]:
    """Return the nodes with a fault that stays until somebody mends it, as an incident tells; none of another kind."""
    if row.family != Family.GPU_FAULT:
        return set()
    suspects = {str(suspect.get("node")) for suspect in (row.verdict or {}).get("suspects", ())}
    return (suspects | {row.labels.get("node", "")}) - {""}


def is_mended(row: Incident, happened_at: float) -> bool:
    """Whether a fault was mended before a moment: what happened since is another fault."""
    return REPAIRED in row.identity and row.resolved_at is not None and happened_at > row.resolved_at
