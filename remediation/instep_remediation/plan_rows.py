"""Plans as the store keeps them: written with their actions and one audit line, in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass

from instep_collector.store import audit
from instep_collector.store.models import ActionRow, PlanRow
from sqlalchemy.orm import Session

from instep_remediation.plans import Plan, describe

ACTOR = "instep-server"
"""The server itself, in the audit log."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Who decided, and why."""

    actor: str
    reason: str
    is_automatic: bool = False


def keep_plan(session: Session, plan: Plan, *, mode: str, decision: Decision | None, now: float) -> PlanRow:
    """Return the plan's new row, with its actions still to be kept; with a decision it is approved already."""
    row = PlanRow(
        incident=plan.incident or None,
        job=plan.job,
        run=plan.run,
        attempt=plan.attempt,
        state="executing",
        reason=plan.reason,
        text=describe(plan, mode),
        created_at=now,
        ended_at=None,
        decided_at=None,
        is_drill=plan.is_drill,
    )
    session.add(row)
    if decision is not None:
        decide(row, decision, now=now)
    session.flush()
    actor = decision.actor if decision is not None else ACTOR
    audit.note(session, at=now, actor=actor, action="plan", subject=f"plan {row.id}", reason=row.text)
    return row


def decide(row: PlanRow, decision: Decision, *, now: float) -> None:
    """Write a decision into a plan."""
    row.decided_by, row.decided_at = decision.actor[:200], now
    row.decision, row.is_automatic = decision.reason, decision.is_automatic


def keep_action(
    session: Session, row: PlanRow, position: int, *, name: str, arguments: dict[str, object], state: str, now: float
) -> None:
    """Keep one action of a plan."""
    is_over = state == "done"
    session.add(
        ActionRow(
            plan=row.id,
            position=position,
            name=name,
            arguments=arguments,
            state=state,
            detail="",
            started_at=now if is_over or state == "ordered" else None,
            ended_at=now if is_over else None,
        )
    )
