"""What ends when a node is mended, by a person or by a reboot: its latched faults, and what was still proposed."""

from __future__ import annotations

from instep_collector.store import incidents, plans
from instep_collector.store.models import Incident
from instep_diagnosis.incidents import Family
from sqlalchemy.orm import Session

from instep_remediation.openings import STOP, Announce, note, resolve
from instep_remediation.plan_rows import Decision

REPAIRED = "/repaired-"
"""In the identity of a fault that was mended: the same fault afterwards is another one."""


def end_faults(session: Session, node: str, decision: Decision, *, announce: Announce, now: float) -> list[Incident]:
    """End the latched faults of a node and the plans about it that have not begun; returns the faults.

    A fault whose job has not got over its stop yet stays open until it has: `mended` says so.
    """
    for plan, action in plans.of_node(session, node):
        action.state, action.ended_at = "cancelled", now
        action.detail = f"{decision.actor} said that the node is repaired."
        plans.refresh(session, plan, at=now)
    found = [row for row in incidents.active(session) if is_latched(row, node) or is_stop_by(row, node)]
    for row in found:
        end_fault(session, row, f"Repaired, says {decision.actor}: {decision.reason}", announce=announce, at=now)
    return found


def end_fault(session: Session, row: Incident, sentence: str, *, announce: Announce, at: float) -> None:
    """End one fault that was mended at a moment; one that stopped a job ends when the job's stop is over."""
    if row.mended is not None:
        return
    row.identity = f"{row.identity[:660]}{REPAIRED}{at:.3f}"
    row.mended = {"at": at, "sentence": sentence}
    _withdraw(session, row, sentence, at=at)
    if row.family == STOP:
        note(row, f"{sentence} The incident ends as soon as the job is over its stop.")
        return
    resolve(session, row, sentence, at=at)
    announce(session, row, "resolved")


def is_latched(row: Incident, node: str) -> bool:
    """Whether an incident is a fault of this node that stays until somebody mends it."""
    return node in latched_nodes(row)


def is_stop_by(row: Incident, node: str) -> bool:
    """Whether an incident is a job's stop by a fault of this node."""
    verdict = row.verdict or {}
    is_fault = row.family == STOP and bool(verdict.get("is_node_at_fault")) and bool(verdict.get("fault_class"))
    return is_fault and node in {suspect.get("node") for suspect in verdict.get("suspects", ())}


def faulty_nodes(row: Incident) -> set[str]:
    """Return the nodes that a verdict names for a fault of a device; none where it names no fault."""
    verdict = row.verdict or {}
    return {str(one.get("node")) for one in verdict.get("suspects", ())} if verdict.get("fault_class") else set()


def latched_nodes(row: Incident) -> set[str]:
    """Return the nodes with a fault that stays until somebody mends it, as an incident tells; none of another kind."""
    if row.family != Family.GPU_FAULT:
        return set()
    suspects = {str(suspect.get("node")) for suspect in (row.verdict or {}).get("suspects", ())}
    return (suspects | {row.labels.get("node", "")}) - {""}


def is_mended(row: Incident, happened_at: float) -> bool:
    """Whether a fault was mended before a moment: what happened since is another fault."""
    if row.mended is not None:
        return happened_at > float(row.mended["at"])
    # Of a server before 'mended' was kept.
    return REPAIRED in row.identity and row.resolved_at is not None and happened_at > row.resolved_at


def _withdraw(session: Session, row: Incident, sentence: str, *, at: float) -> None:
    """Give up what is only proposed about a fault that is over."""
    for plan in plans.of_incident(session, row.id):
        for action in plans.actions(session, plan.id):
            if action.state == "proposed":
                action.state, action.ended_at, action.detail = "cancelled", at, sentence
        plans.refresh(session, plan, at=at)
