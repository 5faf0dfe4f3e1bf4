"""How a node action begins and ends in the store: its steps, the cordon, the breaker, the audit line, the incident's
own account. Works on rows of the caller's session.
"""

from __future__ import annotations

from collections.abc import Sequence

from instep_collector.store import audit, breaker, cordons, plans, steps
from instep_collector.store.models import ActionRow, Incident, PlanRow, StepRow
from sqlalchemy.orm import Session

from instep_remediation.actions import UncordonNode, read_action
from instep_remediation.node_executor import NodeExecutor, Step
from instep_remediation.openings import note
from instep_remediation.plan_rows import ACTOR
from instep_remediation.plans import labelled


def steps_of(nodes: NodeExecutor, action: ActionRow) -> Sequence[Step]:
    """Return an action's steps as the executor would carry them out. Nothing is written."""
    return nodes.steps(read_action(action.name, action.arguments), f"plan-{action.plan}-{action.position}")


def begin(session: Session, plan: PlanRow, action: ActionRow, made: Sequence[Step], *, now: float) -> None:
    """Write an action's steps down, all before the first is carried out; steps that are there stay as they are."""
    if not steps.of_action(session, action):
        session.add_all(_row(action, index, step) for index, step in enumerate(made))
    action.state, action.detail, action.ended_at = "executing", "", None
    action.started_at = now if action.started_at is None else action.started_at
    node = str(action.arguments["node"])
    if action.name != UncordonNode.name:
        cordons.keep(
            session, node, plan=plan.id, actor=plan.decided_by, reason=str(action.arguments.get("reason", "")), at=now
        )
    plans.refresh(session, plan, at=now)
    _tell(session, plan, action, "began", plan.decision, now=now)


def remaining(session: Session, action: ActionRow) -> list[StepRow]:
    """Return the steps of an action that are not done."""
    session.flush()
    return [row for row in steps.of_action(session, action) if row.state != "done"]


def end_action(session: Session, plan: PlanRow, action: ActionRow, *, now: float) -> None:
    """Write down that every step of an action is done."""
    action.state, action.ended_at = "done", now
    if action.name == UncordonNode.name:
        cordons.forget(session, str(action.arguments["node"]))
    breaker.count_success(session)
    plans.refresh(session, plan, at=now)
    _tell(session, plan, action, "done", plan.decision, now=now)


def fail_action(
    session: Session, plan: PlanRow, action: ActionRow, sentence: str, *, failures_max: int, now: float
) -> None:
    """Write down that an action failed and what remains of it; what the plan had still to do is given up."""
    left = ", ".join(f"{row.name} {row.node}" for row in remaining(session, action)) or "nothing"
    action.state, action.ended_at, action.detail = "failed", now, f"{sentence} Remaining: {left}."
    for later in plans.actions(session, plan.id):
        if later.state in ("approved", "proposed"):
            later.state, later.detail, later.ended_at = "cancelled", "An earlier action of this plan failed.", now
    if breaker.count_failure(session, action.detail, failures_max=failures_max, at=now):
        audit.note(
            session,
            at=now,
            actor=ACTOR,
            action="breaker-open",
            subject="breaker nodes",
            reason=f"{failures_max} node plans failed in a row, plan {plan.id} last.",
        )
    plans.refresh(session, plan, at=now)
    _tell(session, plan, action, "failed", action.detail, now=now)


def _row(action: ActionRow, index: int, step: Step) -> StepRow:
    return StepRow(
        plan=action.plan,
        position=action.position,
        step=index,
        name=step.name,
        node=step.node,
        mark=step.mark,
        arguments=step.arguments,
        state="pending",
        detail="",
        tries=0,
        next_at=0.0,
        started_at=None,
        ended_at=None,
    )


def _tell(session: Session, plan: PlanRow, action: ActionRow, how: str, reason: str, *, now: float) -> None:
    """Add the audit line, and a sentence to the incident."""
    node = str(action.arguments["node"])
    audit.note(
        session,
        at=now,
        actor=ACTOR,
        action=f"{action.name}-{how}",
        subject=f"node {node}",
        reason=labelled(f"plan {plan.id}: {reason}", is_drill=plan.is_drill),
    )
    incident = session.get(Incident, plan.incident) if plan.incident else None
    if incident is not None:
        words = action.name.replace("_", " ")
        note(incident, f"{words.capitalize()} {node}: {how} (plan {plan.id}). {action.detail}".strip())
