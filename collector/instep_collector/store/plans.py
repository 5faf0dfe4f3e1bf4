"""Queries about plans and their actions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from instep_collector.store.models import ActionRow, PlanRow

PENDING = ("waiting", "executing")


def get(session: Session, id_: int) -> PlanRow | None:
    """Return one plan."""
    return session.get(PlanRow, id_)


def actions(session: Session, plan: int) -> Sequence[ActionRow]:
    """Return a plan's actions in their order."""
    return session.scalars(select(ActionRow).where(ActionRow.plan == plan).order_by(ActionRow.position)).all()


def of_incident(session: Session, incident: str) -> Sequence[PlanRow]:
    """Return the plans made for an incident, oldest first."""
    return session.scalars(select(PlanRow).where(PlanRow.incident == incident).order_by(PlanRow.id)).all()


def recent(session: Session, *, limit: int = 200, states: Sequence[str] = ()) -> Sequence[PlanRow]:
    """Return plans, newest first."""
    query = select(PlanRow).order_by(PlanRow.id.desc()).limit(limit)
    return session.scalars(query.where(PlanRow.state.in_(states)) if states else query).all()


def executing(session: Session, run: str) -> Sequence[PlanRow]:
    """Return the plans that are being carried out for a run."""
    return session.scalars(select(PlanRow).where(PlanRow.run == run, PlanRow.state == "executing")).all()


def settle(session: Session, plan: int, name: str, *, state: str, detail: str, at: float) -> None:
    """Write down how the actions of one name ended, and end the plan when nothing of it is on its way."""
    session.execute(
        update(ActionRow)
        .where(ActionRow.plan == plan, ActionRow.name == name, ActionRow.state == "ordered")
        .values(state=state, detail=detail, ended_at=at)
    )
    row = session.get(PlanRow, plan)
    states = {action.state for action in actions(session, plan)}
    if row is not None and row.state == "executing" and "ordered" not in states:
        row.state = "failed" if "failed" in states else "waiting" if "proposed" in states else "done"
        row.ended_at = None if row.state == "waiting" else at


def close(session: Session, incident: str, *, at: float) -> None:
    """Close what still waits on an incident, except proposals about nodes: those need mending after the job goes on."""
    for row in of_incident(session, incident):
        if row.state == "executing" or (row.state == "waiting" and not proposes(session, row.id)):
            row.state, row.ended_at = "closed", at


def proposes(session: Session, plan: int) -> bool:
    """Whether an action of the plan waits for somebody to decide on it."""
    return any(action.state == "proposed" for action in actions(session, plan))


def nodes_proposed(session: Session) -> frozenset[str]:
    """Return the nodes about which a proposal waits to be decided on."""
    waiting = session.scalars(
        select(ActionRow)
        .join(PlanRow, PlanRow.id == ActionRow.plan)
        .where(ActionRow.state == "proposed", PlanRow.state.in_(PENDING))
    ).all()
    return frozenset(str(action.arguments["node"]) for action in waiting if "node" in action.arguments)
