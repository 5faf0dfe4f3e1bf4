"""Limits that stand before every restart. Pure: each refusal is a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from instep_diagnosis.verdict import Verdict

from instep_remediation.policy import Policy


@dataclass(frozen=True, slots=True)
class JobBudget:
    """What the run allows and what is under way, at the moment of planning."""

    max_restarts: int
    restarts_used: int
    is_controlled: bool = True
    """A coordinator listens for orders."""
    is_current_attempt: bool = True
    standby: int = 0
    """Nodes that stand by, so that others can be left out."""
    has_plan_pending: bool = False
    """Another plan for this run is being carried out."""
    nodes_proposed: frozenset[str] = frozenset()
    """Nodes whose draining is proposed already."""
    local_decision: str = ""
    """What the coordinator did by itself about this attempt, such as `restart`."""
    evidence_age_seconds: float = 0.0
    last_restart_age_seconds: float | None = None
    """Since the last restart order of this run; None before any."""


def restart_refusal(verdict: Verdict, policy: Policy, budget: JobBudget) -> str | None:
    """Return why the job may not be restarted, or None when it may.

    >>> from instep_diagnosis.verdict import Certainty, Kind, Owner
    >>> crash = Verdict(Kind.CRASH, Certainty.CONFIRMED, "Rank 1 died.", (), Owner.JOB, ())
    >>> restart_refusal(crash, Policy(), JobBudget(max_restarts=0, restarts_used=0))
    'the run allows 0 restarts (--max-restarts)'
    """
    interval = policy.jobs.restart_interval_seconds_min
    last = budget.last_restart_age_seconds
    refusals = (
        (not policy.jobs.restart, "the policy says jobs.restart = false"),
        (not budget.is_controlled, "no coordinator of this run listens for orders"),
        (bool(budget.local_decision), f"the run's coordinator has decided by itself ({budget.local_decision})"),
        (budget.has_plan_pending, "another plan for this job is being carried out"),
        (
            budget.evidence_age_seconds > policy.guards.evidence_age_seconds_max,
            f"the evidence is {budget.evidence_age_seconds:.0f} s old",
        ),
        (budget.max_restarts == 0, "the run allows 0 restarts (--max-restarts)"),
        (
            budget.restarts_used >= budget.max_restarts,
            f"{budget.restarts_used} of {budget.max_restarts} restarts are used (--max-restarts)",
        ),
        (not budget.is_current_attempt, f"attempt {verdict.attempt} is over"),
        (last is not None and last < interval, f"the last restart is less than {interval:.0f} s ago"),
    )
    return next((reason for is_refused, reason in refusals if is_refused), None)
