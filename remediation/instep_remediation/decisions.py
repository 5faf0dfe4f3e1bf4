"""What people decide: approve, reject, cancel and execute plans, acknowledge incidents, change nodes by hand, reset the
breaker. Each decision is one change in the caller's transaction, with its audit line; whoever refuses it says why.

The API, the command line and the page call these; the runner carries out what was approved. Call `wake` after the
commit.
"""

from __future__ import annotations

from instep_collector.clock import Clock
from instep_collector.store import audit, breaker, incidents, plans, steps
from instep_collector.store import nodes as node_queries
from instep_collector.store.models import ActionRow, Breaker, Incident, PlanRow
from sqlalchemy.orm import Session

from instep_remediation.actions import Action, CordonNode, DrainNode, UncordonNode
from instep_remediation.errors import NotKnown, NotPossible, Outdated
from instep_remediation.node_executor import NodeExecutor, Step
from instep_remediation.node_guards import hold
from instep_remediation.openings import Announce
from instep_remediation.plan_rows import Decision, decide, keep_action, keep_plan
from instep_remediation.plans import Plan, labelled
from instep_remediation.policy import Policy
from instep_remediation.proceedings import steps_of
from instep_remediation.repairs import end_faults

REASON_LENGTH_MAX = 1000

BY_HAND: dict[str, type[CordonNode | DrainNode | UncordonNode]] = {
    "cordon": CordonNode,
    "drain": DrainNode,
    "uncordon": UncordonNode,
}
"""What a person may ask for about a node."""


class Decisions:
    """Decisions on one server's plans, incidents and nodes."""

    def __init__(self, clock: Clock, nodes: NodeExecutor, policy: Policy, announce: Announce) -> None:
        self._clock = clock
        self._nodes = nodes
        self._policy = policy
        self._announce = announce

    # Plans -----------------------------------------------------------------------------------------------------------

    def approve(
        self, session: Session, plan_id: int, actor: str, reason: str, *, version: int | None = None
    ) -> PlanRow:
        """Allow what a plan proposes about nodes: it is carried out as soon as the guards let it."""
        row = self._plan(session, plan_id, version)
        self._allow(session, row, Decision(actor, reason), ("proposed",))
        return self._decided(session, row, "approve", Decision(actor, reason))

    def execute(
        self, session: Session, plan_id: int, actor: str, reason: str, *, version: int | None = None
    ) -> PlanRow:
        """Carry a plan out now: one that waits is approved by this, one that failed goes on from the failed step.

        Raises NotPossible with the guard's sentence when it would be held back.
        """
        row = self._plan(session, plan_id, version)
        self._allow(session, row, Decision(actor, reason), ("proposed", "approved", "failed", "cancelled"))
        for action in plans.actions(session, row.id):
            refusal = hold(session, row, action, self._policy) if action.state == "approved" else None
            if refusal is not None:
                raise NotPossible(f"Plan {row.id} cannot be carried out now: {refusal}")
        return self._decided(session, row, "execute", Decision(actor, reason))

    def reject(self, session: Session, plan_id: int, actor: str, reason: str, *, version: int | None = None) -> PlanRow:
        """Refuse what a plan proposes: nothing of it is done."""
        row = self._plan(session, plan_id, version)
        if not self._end(session, row, ("proposed",), "rejected", reason):
            raise NotPossible(f"Plan {row.id} is {row.state}: only what is proposed can be rejected.")
        return self._decided(session, row, "reject", Decision(actor, reason))

    def cancel(self, session: Session, plan_id: int, actor: str, reason: str, *, version: int | None = None) -> PlanRow:
        """Stop a plan: no further step is begun. What was done stays; a step that was asked for ends as it ends."""
        row = self._plan(session, plan_id, version)
        if not self._end(session, row, plans.UNDECIDED, "cancelled", reason):
            raise NotPossible(f"Plan {row.id} is {row.state}: there is nothing to cancel about nodes in it.")
        return self._decided(session, row, "cancel", Decision(actor, reason))

    def dry_run(self, session: Session, plan_id: int) -> list[tuple[ActionRow, Step]]:
        """Return the steps of a plan's node actions as they would be carried out. Nothing is written."""
        row = self._plan(session, plan_id, None)
        return [
            (action, step)
            for action in plans.actions(session, row.id)
            if action.name in {kind.name for kind in BY_HAND.values()}
            for step in steps_of(self._nodes, action)
        ]

    # Incidents and the breaker ---------------------------------------------------------------------------------------

    def acknowledge(
        self, session: Session, incident_id: str, actor: str, reason: str, *, version: int | None = None
    ) -> Incident:
        """Write down that somebody looks after an incident; a second one takes over."""
        row = incidents.get(session, incident_id)
        if row is None:
            raise NotKnown(f"There is no incident {incident_id[:40]!r}.")
        _check_version(f"Incident {row.id}", row.version, version)
        row.acknowledged_at, row.acknowledged_by, row.acknowledgement = self._clock.realtime(), actor[:200], reason
        self._note(session, "acknowledge", f"incident {row.id}", Decision(actor, reason), is_drill=row.is_drill)
        return row

    def reset_breaker(self, session: Session, actor: str, reason: str) -> Breaker:
        """Let automatic plans be carried out again."""
        row = breaker.reset(session, actor=actor[:200], at=self._clock.realtime())
        self._note(session, "breaker-reset", f"breaker {row.name}", Decision(actor, reason))
        return row

    # Nodes -----------------------------------------------------------------------------------------------------------

    def node_steps(self, session: Session, node: str, verb: str, reason: str) -> list[Step]:
        """Return the steps that a change of a node by hand would have. Nothing is written."""
        self._node(session, node)
        return list(self._nodes.steps(BY_HAND[verb](node, reason), "plan-0-0"))

    def change_node(self, session: Session, node: str, verb: str, actor: str, reason: str) -> PlanRow:
        """Make an approved plan that cordons, drains or uncordons a node."""
        self._node(session, node)
        self._check_changing()
        self._note(session, verb, f"node {node}", Decision(actor, reason))
        return self._plan_by_hand(session, BY_HAND[verb](node, reason), Decision(actor, reason))

    def repaired(self, session: Session, node: str, actor: str, reason: str) -> tuple[PlanRow | None, list[Incident]]:
        """Take a node back into service: end its latched faults and proposals, and uncordon it.

        Returns the plan that uncordons it (None with an executor that changes nothing) and the incidents that ended.
        """
        self._node(session, node)
        decision, now = Decision(actor, reason), self._clock.realtime()
        busy = [row for row, action in plans.of_node(session, node) if action.state == "executing"]
        if busy:
            raise NotPossible(f"Plan {busy[0].id} is being carried out on node {node}: cancel it or let it end first.")
        ended = end_faults(session, node, decision, announce=self._announce, now=now)
        made = self._plan_by_hand(session, UncordonNode(node, reason), decision) if self._nodes.is_changing else None
        self._note(session, "repaired", f"node {node}", decision)
        return made, ended

    # Parts -----------------------------------------------------------------------------------------------------------

    def _plan(self, session: Session, plan_id: int, version: int | None) -> PlanRow:
        row = plans.get(session, plan_id)
        if row is None:
            raise NotKnown(f"There is no plan {plan_id}.")
        _check_version(f"Plan {row.id}", row.version, version)
        return row

    def _node(self, session: Session, node: str) -> None:
        if node_queries.get(session, node) is None:
            raise NotKnown(f"There is no node {node[:200]!r}: no agent of this name has been heard of.")

    def _check_changing(self) -> None:
        if not self._nodes.is_changing:
            raise NotPossible(
                f'The executor "{self._nodes.name}" changes nothing: configure one that changes nodes '
                "(executor in the server's configuration)."
            )

    def _allow(self, session: Session, row: PlanRow, decision: Decision, states: tuple[str, ...]) -> None:
        """Approve the node actions of a plan that are in one of these states."""
        found = [
            action
            for action in plans.actions(session, row.id)
            if action.state in states and action.name in {kind.name for kind in BY_HAND.values()}
        ]
        if not found or row.state in ("closed", "rejected"):
            raise NotPossible(f"Plan {row.id} is {row.state}: there is nothing in it to be decided on about nodes.")
        self._check_changing()
        for action in found:
            steps.take_up_again(session, action)
            action.state, action.detail, action.ended_at = "approved", "", None
        decide(row, decision, now=self._clock.realtime())
        plans.refresh(session, row, at=self._clock.realtime())

    def _end(self, session: Session, row: PlanRow, states: tuple[str, ...], state: str, reason: str) -> bool:
        """End the node actions of a plan that are in one of these states; returns whether there were any."""
        now = self._clock.realtime()
        found = [action for action in plans.actions(session, row.id) if action.state in states]
        for action in found:
            steps.cancel(session, action, at=now)
            action.state, action.detail, action.ended_at = state, reason, now
        plans.refresh(session, row, at=now)
        return bool(found)

    def _plan_by_hand(self, session: Session, action: Action, decision: Decision) -> PlanRow:
        now = self._clock.realtime()
        plan = Plan("", "", "", 0, (action,), decision.reason)
        row = keep_plan(session, plan, mode="hand", decision=decision, now=now)
        keep_action(session, row, 0, name=action.name, arguments=action.arguments(), state="approved", now=now)
        plans.refresh(session, row, at=now)
        return row

    def _decided(self, session: Session, row: PlanRow, action: str, decision: Decision) -> PlanRow:
        decide(row, decision, now=self._clock.realtime())
        self._note(session, action, f"plan {row.id}", decision, is_drill=row.is_drill)
        session.flush()
        return row

    def _note(self, session: Session, action: str, subject: str, decision: Decision, *, is_drill: bool = False) -> None:
        audit.note(
            session,
            at=self._clock.realtime(),
            actor=decision.actor,
            action=action,
            subject=subject,
            reason=labelled(decision.reason, is_drill=is_drill),
        )


def _check_version(subject: str, version: int, wanted: int | None) -> None:
    if wanted is not None and wanted != version:
        raise Outdated(f"{subject} has changed (version {version}, not {wanted}): look at it again, then decide.")
