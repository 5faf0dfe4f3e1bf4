"""Queries about plans and their actions. A plan's state follows from those of its actions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from instep_collector.store.models import ActionRow, Cordon, PlanRow

PENDING = ("waiting", "approved", "executing")
"""Plans that are not over."""
UNDECIDED = ("proposed", "approved", "executing")
"""Node actions that are not over."""
PRECEDENCE = (
    ("ordered", "executing"),
    ("executing", "executing"),
    ("approved", "approved"),
    ("proposed", "waiting"),
    ("failed", "failed"),
    ("cancelled", "cancelled"),
    ("rejected", "rejected"),
)
"""(state of any action, state of the plan): the first that fits."""
LOOKED_THROUGH_MAX = 1000
"""Newest actions among which those about one node are looked for."""


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


def state_of(states: Iterable[str]) -> str:
    """Return a plan's state from those of its actions.

    >>> state_of(["ordered", "proposed"]), state_of(["done", "proposed"]), state_of(["failed", "done"]), state_of([])
    ('executing', 'waiting', 'failed', 'done')
    """
    found = set(states)
    return next((plan for action, plan in PRECEDENCE if action in found), "done")


def refresh(session: Session, row: PlanRow, *, at: float) -> None:
    """Bring a plan's state up to date with its actions; one that was closed stays so."""
    session.flush()
    if row.state == "closed":
        return
    row.state = state_of(action.state for action in actions(session, row.id))
    row.ended_at = None if row.state in PENDING else at


def executing(session: Session, run: str) -> Sequence[PlanRow]:
    """Return the plans whose order a run's coordinator has still to carry out."""
    return session.scalars(
        select(PlanRow).where(
            PlanRow.run == run,
            PlanRow.state == "executing",
            PlanRow.id.in_(select(ActionRow.plan).where(ActionRow.state == "ordered")),
        )
    ).all()


def pending(session: Session) -> Sequence[PlanRow]:
    """Return every plan that is not over, oldest first."""
    return session.scalars(select(PlanRow).where(PlanRow.state.in_(PENDING)).order_by(PlanRow.id)).all()


def in_state(session: Session, *states: str) -> Sequence[tuple[PlanRow, ActionRow]]:
    """Return the actions in these states of plans that are not over, in the order in which they may be carried out."""
    rows = session.execute(
        select(PlanRow, ActionRow)
        .join(ActionRow, ActionRow.plan == PlanRow.id)
        .where(PlanRow.state.in_(PENDING), ActionRow.state.in_(states))
        .order_by(PlanRow.id, ActionRow.position)
    )
    return [(plan, action) for plan, action in rows]


def of_node(session: Session, node: str) -> Sequence[tuple[PlanRow, ActionRow]]:
    """Return the actions about a node that are not over."""
    return [(plan, action) for plan, action in in_state(session, *UNDECIDED) if action.arguments.get("node") == node]


def about_node(session: Session, node: str, *, limit: int) -> list[PlanRow]:
    """Return the plans with an action about a node, whatever their state, newest first."""
    rows = session.execute(
        select(PlanRow, ActionRow)
        .join(ActionRow, ActionRow.plan == PlanRow.id)
        .order_by(PlanRow.id.desc())
        .limit(LOOKED_THROUGH_MAX)
    )
    found: dict[int, PlanRow] = {}
    for plan, action in rows:
        if len(found) >= limit:
            break
        if action.arguments.get("node") == node:
            found[plan.id] = plan
    return list(found.values())


def settle(session: Session, plan: int, name: str, *, state: str, detail: str, at: float) -> None:
    """Write down how the actions of one name ended, and end the plan when nothing of it is on its way."""
    session.execute(
        update(ActionRow)
        .where(ActionRow.plan == plan, ActionRow.name == name, ActionRow.state == "ordered")
        .values(state=state, detail=detail, ended_at=at)
    )
    row = session.get(PlanRow, plan)
    if row is not None and row.state == "executing":
        refresh(session, row, at=at)


def close(session: Session, incident: str, *, at: float) -> None:
    """Close what is not over of an incident, except what is about nodes: those need mending after the job goes on."""
    for row in of_incident(session, incident):
        if row.state in PENDING and not any(action.state in UNDECIDED for action in actions(session, row.id)):
            row.state, row.ended_at = "closed", at


def nodes_proposed(session: Session) -> frozenset[str]:
    """Return the nodes about which something is proposed, approved or being carried out, or that are cordoned by us.

    What a drill only proposes is left out: it must not keep a real fault's drain back.
    """
    rows = session.execute(
        select(ActionRow.arguments)
        .join(PlanRow, ActionRow.plan == PlanRow.id)
        .where(
            PlanRow.state.in_(PENDING),
            ActionRow.state.in_(UNDECIDED),
            or_(ActionRow.state != "proposed", PlanRow.is_drill.is_(False)),
        )
    )
    found = {str(arguments["node"]) for (arguments,) in rows if "node" in arguments}
    return frozenset(found | set(session.scalars(select(Cordon.node))))


def prune(session: Session, *, before: float) -> None:
    """Forget plans made by hand that were over before a moment; others go with their incident."""
    session.execute(
        delete(PlanRow).where(PlanRow.incident.is_(None), PlanRow.state.not_in(PENDING), PlanRow.ended_at < before)
    )
