"""Queries about the steps of node actions: the journal of what is carried out."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from instep_collector.store.models import ActionRow, StepRow

OPEN = ("pending", "executing")


def of_plan(session: Session, plan: int) -> Sequence[StepRow]:
    """Return every step of a plan in the order in which they are carried out."""
    return session.scalars(select(StepRow).where(StepRow.plan == plan).order_by(StepRow.position, StepRow.step)).all()


def of_action(session: Session, action: ActionRow) -> Sequence[StepRow]:
    """Return the steps of one action in their order."""
    return session.scalars(
        select(StepRow).where(StepRow.plan == action.plan, StepRow.position == action.position).order_by(StepRow.step)
    ).all()


def get(session: Session, plan: int, position: int, step: int) -> StepRow | None:
    """Return one step."""
    return session.get(StepRow, (plan, position, step))


def take_up_again(session: Session, action: ActionRow) -> None:
    """Have the steps of a failed action that are not done carried out again, with their whole time."""
    session.execute(
        update(StepRow)
        .where(StepRow.plan == action.plan, StepRow.position == action.position, StepRow.state != "done")
        .values(state="pending", started_at=None, ended_at=None, next_at=0.0)
    )


def cancel(session: Session, action: ActionRow, *, at: float) -> None:
    """Give up the steps of an action that are not done."""
    session.execute(
        update(StepRow)
        .where(StepRow.plan == action.plan, StepRow.position == action.position, StepRow.state.in_(OPEN))
        .values(state="cancelled", ended_at=at)
    )
