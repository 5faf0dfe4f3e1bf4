"""The planner: verdict, policy and budget in, a printable plan out. Pure; what it holds back it says why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from instep_diagnosis.verdict import Certainty, Kind, Verdict

from instep_remediation.actions import Action, DrainNode, Notify, Restart
from instep_remediation.guards import JobBudget, restart_refusal
from instep_remediation.policy import Policy


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered actions with their reason."""

    incident: str
    job: str
    run: str
    attempt: int
    actions: tuple[Action, ...]
    reason: str
    """Why these actions, and why not others."""
    is_drill: bool = False
    """Its cause was made on purpose: about nodes nothing is done without approval, whatever the policy says."""
    is_of_straggler: bool = False
    """Its cause slows a job and stops none: likewise."""

    @property
    def restart(self) -> Restart | None:
        """The restart in it, if it has one."""
        return next((action for action in self.actions if isinstance(action, Restart)), None)


def make_plan(incident: str, verdict: Verdict, policy: Policy, budget: JobBudget) -> Plan | None:
    """Return what to do about a verdict; None for a suspect, about which nothing is done.

    Stragglers and facts without a failed job restart nothing. A node is left out of the restart, and proposed for
    draining, only on evidence against the node itself: a stopped process is none.
    """
    if verdict.certainty is not Certainty.CONFIRMED:
        return None
    actions: list[Action] = []
    reasons = [verdict.summary]
    is_fresh = budget.evidence_age_seconds <= policy.guards.evidence_age_seconds_max
    nodes = nodes_at_fault(verdict, policy) if is_fresh else ()
    if not is_fresh and nodes_at_fault(verdict, policy):
        reasons.append(f"Nothing is planned about nodes: the evidence is {budget.evidence_age_seconds:.0f} s old.")
    if verdict.kind in (Kind.HANG, Kind.CRASH, Kind.MISMATCH):
        refusal = restart_refusal(verdict, policy, budget)
        if refusal is None:
            exclude = nodes if policy.nodes.exclude and len(nodes) <= budget.standby else ()
            if nodes and not exclude:
                reasons.append(
                    f"The restart is in place: {budget.standby} nodes stand by for {', '.join(nodes)}, and the "
                    f"policy says nodes.exclude = {str(policy.nodes.exclude).lower()}."
                )
            actions.append(Restart(verdict.job, verdict.run, verdict.attempt, exclude))
        else:
            reasons.append(f"No restart is ordered: {refusal}.")
    if policy.nodes.drain != "off":
        actions.extend(DrainNode(node, verdict.summary) for node in nodes if node not in budget.nodes_proposed)
    actions.append(Notify(incident))
    reason = " ".join(reasons)
    return Plan(
        incident,
        verdict.job,
        verdict.run,
        verdict.attempt,
        tuple(actions),
        reason,
        verdict.is_drill,
        is_of_straggler=verdict.kind is Kind.STRAGGLER,
    )


def nodes_at_fault(verdict: Verdict, policy: Policy) -> tuple[str, ...]:
    """Return the nodes against which there is evidence, surely enough; each once, most certain first."""
    if not verdict.is_node_at_fault:
        return ()
    sure = [
        suspect.node
        for suspect in verdict.suspects
        if suspect.node and suspect.confidence >= policy.nodes.confidence_min
    ]
    return tuple(dict.fromkeys(sure))


DRILL = "[DRILL] "
"""Before what is said to people about a drill, in plans, orders, audit lines and on nodes."""


def labelled(text: str, *, is_drill: bool) -> str:
    """Return a sentence with the word, where it is about a drill.

    >>> labelled("Xid 79", is_drill=True), labelled("[DRILL] Xid 79", is_drill=True), labelled("Xid 79", is_drill=False)
    ('[DRILL] Xid 79', '[DRILL] Xid 79', 'Xid 79')
    """
    return f"{DRILL}{text}" if is_drill and not text.startswith(DRILL) else text


def as_drill(plan: Plan) -> Plan:
    """Return the plan of a drill: what it writes on nodes says so too."""
    actions = tuple(
        replace(action, reason=labelled(action.reason, is_drill=True)) if isinstance(action, DrainNode) else action
        for action in plan.actions
    )
    return replace(plan, is_drill=True, actions=actions)


NOTES = {
    "propose": "proposed: nodes are watch-only",
    "approve": "waits for approval",
    "auto": "carried out by itself, within the guards",
    "hand": "asked for by hand",
    "drill": "waits for approval: a drill drains nothing by itself",
    "straggler": "waits for approval: a slow rank drains nothing by itself",
}
"""What happens to a node action, by the policy's `nodes.drain`, or in a drill."""


def describe(plan: Plan, mode: str = "propose") -> str:
    """Return a plan as it is printed: the reason, then each action with what happens to it.

    >>> print(describe(Plan("inc-1", "gpt", "r1", 0, (DrainNode("node-b", "Xid 79"),), "GPU fell off the bus.")))
    Plan for incident inc-1: GPU fell off the bus.
      1. drain node node-b: Xid 79 [proposed: nodes are watch-only]
    """
    reason = labelled(plan.reason, is_drill=plan.is_drill)
    if mode == "auto" and (plan.is_drill or plan.is_of_straggler):
        mode = "drill" if plan.is_drill else "straggler"
    lines = [f"Plan for incident {plan.incident}: {reason}" if plan.incident else f"Plan: {reason}"]
    for number, action in enumerate(plan.actions, 1):
        note = f" [{NOTES[mode]}]" if action.is_about_nodes else ""
        lines.append(f"  {number}. {action.describe()}{note}")
    return "\n".join(lines)
