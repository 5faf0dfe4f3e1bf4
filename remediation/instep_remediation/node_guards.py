"""Limits that stand before every change of a node, whoever asked for it. Each refusal is a sentence."""

from __future__ import annotations

from instep_collector.store import breaker, cordons, plans
from instep_collector.store.models import ActionRow, PlanRow
from sqlalchemy.orm import Session

from instep_remediation.actions import UncordonNode
from instep_remediation.policy import Policy


def hold(session: Session, plan: PlanRow, action: ActionRow, policy: Policy) -> str | None:
    """Return why an approved action may not begin now, or None when it may."""
    node = str(action.arguments["node"])
    for other, running in plans.in_state(session, "executing", "ordered"):
        if other.id == plan.id:
            return f"Action {running.position + 1} of this plan is being carried out."
        if running.arguments.get("node") == node:
            return f"Plan {other.id} is being carried out on node {node}."
        if plan.run and other.run == plan.run and running.state == "executing":
            return f"Plan {other.id} is being carried out for job {other.job}."
    if plan.is_automatic and breaker.is_open(session):
        return "The breaker is open: a person has to reset it, or to approve this plan."
    if action.name == UncordonNode.name or cordons.get(session, node) is not None:
        return None
    taken, limit = cordons.count(session), policy.nodes.unavailable_max
    if taken >= limit:
        return f"{taken} nodes are out of service by us, and the policy says nodes.unavailable_max = {limit}."
    return None
