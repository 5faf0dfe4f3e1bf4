"""Carries plans out: restarts become orders to the run's coordinator, node actions are printed and kept as proposals.

Everything of one plan — the plan, its actions, its order, the message and the audit line — is committed together with
the incident's verdict. A server that dies before the commit has done nothing; one that dies after it goes on from the
store.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from instep_collector.clock import Clock
from instep_collector.store import audit
from instep_collector.store.models import ActionRow, Incident, OrderRow, PlanRow
from sqlalchemy.orm import Session

from instep_remediation.actions import Action, Notify, Restart
from instep_remediation.orders import OrderHub, OrderRequest
from instep_remediation.plans import Plan, describe

ACTOR = "instep-server"


class NodeExecutor(Protocol):
    """Changes nodes; later ones speak to Kubernetes or Slurm."""

    def submit(self, plan: Plan, action: Action) -> str:
        """Take an action on; returns the state it is in now: `proposed`, `ordered`, `done` or `failed`."""


class PrintingExecutor:
    """Does nothing to nodes: prints what would be done."""

    def __init__(self, write: Callable[[str], object] = sys.stderr.write) -> None:
        self._write = write

    def submit(self, plan: Plan, action: Action) -> str:
        """Print one line and leave the action proposed."""
        self._write(f"proposed, not done: {action.describe()} (incident {plan.incident})\n")
        return "proposed"


class Executor:
    """Keeps a plan and sets going what of it may be done."""

    def __init__(self, clock: Clock, hub: OrderHub, nodes: NodeExecutor) -> None:
        self._clock = clock
        self._hub = hub
        self._nodes = nodes

    def execute(self, session: Session, plan: Plan, incident: Incident) -> OrderRow | None:
        """Keep the plan and start its actions; returns the restart order that was made, if one was."""
        now = self._clock.realtime()
        row = PlanRow(
            incident=incident.id,
            job=plan.job,
            run=plan.run,
            attempt=plan.attempt,
            state="executing",
            reason=plan.reason,
            text=describe(plan),
            created_at=now,
            ended_at=None,
        )
        session.add(row)
        session.flush()
        order: OrderRow | None = None
        states: list[str] = []
        for position, action in enumerate(plan.actions):
            state = "done"
            if isinstance(action, Restart):
                order, state = self._order(session, plan, action), "ordered"
            elif not isinstance(action, Notify):
                state = self._nodes.submit(plan, action)
            states.append(state)
            session.add(
                ActionRow(
                    plan=row.id,
                    position=position,
                    name=action.name,
                    arguments=action.arguments(),
                    state=state,
                    detail="",
                    started_at=now,
                    ended_at=now if state == "done" else None,
                )
            )
        row.state = "executing" if "ordered" in states else "waiting" if "proposed" in states else "done"
        row.ended_at = now if row.state == "done" else None
        audit.note(session, at=now, actor=ACTOR, action="plan", subject=f"plan {row.id}", reason=row.text)
        return order

    def _order(self, session: Session, plan: Plan, action: Restart) -> OrderRow:
        order, is_new = self._hub.make(
            session,
            OrderRequest(
                run=action.run,
                attempt=action.attempt,
                action="restart",
                incident=plan.incident,
                reason=plan.reason,
                exclude=action.exclude,
            ),
        )
        if is_new:
            audit.note(
                session,
                at=self._clock.realtime(),
                actor=ACTOR,
                action="order-restart",
                subject=f"run {action.run} attempt {action.attempt}",
                reason=f"incident {plan.incident}",
            )
        return order
