"""Keeps plans and sets going what may be: restarts become orders to the run's coordinator, node actions are proposals,
or approved at once where the policy says `auto`. `runner` carries approved ones out.

Everything of one plan — the plan, its actions, its order, the message and the audit line — is committed together with
the incident's verdict. A server that dies before the commit has done nothing; one that dies after it goes on from the
store.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from instep_collector.clock import Clock
from instep_collector.store import audit, breaker
from instep_collector.store import plans as plan_queries
from instep_collector.store.models import Incident, OrderRow
from sqlalchemy.orm import Session

from instep_remediation.actions import Notify, Restart
from instep_remediation.node_executor import NodeExecutor
from instep_remediation.orders import OrderHub, OrderRequest
from instep_remediation.plan_rows import ACTOR, Decision, keep_action, keep_plan
from instep_remediation.plans import Plan, as_drill, labelled
from instep_remediation.policy import Policy

AUTOMATIC = Decision(ACTOR, 'The policy says nodes.drain = "auto".', is_automatic=True)


class Executor:
    """Keeps a plan and sets going what of it may be done."""

    def __init__(
        self,
        clock: Clock,
        hub: OrderHub,
        nodes: NodeExecutor,
        policy: Policy,
        write: Callable[[str], object] = sys.stderr.write,
    ) -> None:
        self._clock = clock
        self._hub = hub
        self._nodes = nodes
        self._policy = policy
        self._write = write

    def execute(self, session: Session, plan: Plan, incident: Incident) -> OrderRow | None:
        """Keep the plan and start its actions; returns the restart order that was made, if one was."""
        now = self._clock.realtime()
        if plan.is_drill or incident.is_drill:
            plan = as_drill(plan)
        is_automatic = self._is_automatic(session, plan) and any(action.is_about_nodes for action in plan.actions)
        decision = AUTOMATIC if is_automatic else None
        row = keep_plan(session, plan, mode=self._policy.nodes.drain, decision=decision, now=now)
        row.incident = incident.id
        order: OrderRow | None = None
        for position, action in enumerate(plan.actions):
            state = "done" if isinstance(action, Notify) else "approved" if is_automatic else "proposed"
            if isinstance(action, Restart):
                order, state = self._order(session, plan, action), "ordered"
            elif state == "proposed":
                self._write(f"proposed, not done: {action.describe()} (incident {plan.incident})\n")
            keep_action(session, row, position, name=action.name, arguments=action.arguments(), state=state, now=now)
        plan_queries.refresh(session, row, at=now)
        return order

    def _is_automatic(self, session: Session, plan: Plan) -> bool:
        """Whether the policy approves what is about nodes: never in a drill, which is about a healthy node, and never
        for a slow rank, whose job goes on.
        """
        is_allowed = self._policy.nodes.drain == "auto" and not plan.is_drill and not plan.is_of_straggler
        return is_allowed and self._nodes.is_changing and not breaker.is_open(session)

    def _order(self, session: Session, plan: Plan, action: Restart) -> OrderRow:
        order, is_new = self._hub.make(
            session,
            OrderRequest(
                run=action.run,
                attempt=action.attempt,
                action="restart",
                incident=plan.incident,
                reason=labelled(plan.reason, is_drill=plan.is_drill),
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
                reason=labelled(f"incident {plan.incident}", is_drill=plan.is_drill),
            )
        return order
