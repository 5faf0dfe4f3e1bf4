"""Rows of the store as the API shows them: moments in ISO 8601, durations in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instep_collector.registry import NodeState, Registry, RunState
from instep_collector.store import nodes, plans, steps
from instep_collector.store.models import (
    ActionRow,
    Attempt,
    Audit,
    Breaker,
    Cordon,
    EventRow,
    Incident,
    Node,
    OrderRow,
    PlanRow,
    StepRow,
)
from instep_diagnosis.detectors.work import own_seconds
from instep_diagnosis.latching import Latch
from instep_diagnosis.verdict import Verdict
from sqlalchemy.orm import Session

from instep_remediation.advice import next_steps, runbook
from instep_remediation.alerts.message import moment
from instep_remediation.node_executor import Step
from instep_remediation.verdict_json import verdict_from_json

DRILL_SECONDS_MAX = 7200.0
"""`instep inject` lasts an hour at most: what began earlier and was not said to have ended is over."""
MOMENTS = ("onset", "alarm", "verdict", "ordered", "restarted", "step_kept", "resolved")


def between(start: float | None, end: float | None) -> float | None:
    """Return end − start in seconds, None when either is not known."""
    return None if start is None or end is None else round(end - start, 3)


def incident_view(row: Incident, *, runbook_base: str) -> dict[str, Any]:
    """Return one incident with verdict, timeline and latencies."""
    verdict = verdict_from_json(row.verdict) if row.verdict else None
    return {
        "id": row.id,
        "kind": row.kind,
        "state": row.state,
        "job": row.job,
        "run": row.run,
        "attempt": row.attempt,
        "summary": row.summary,
        "is_drill": row.is_drill,
        "labels": row.labels,
        "onset_step": row.onset_step,
        "certainty": verdict.certainty.value if verdict else ("suspect" if row.state == "suspect" else "alarm"),
        "confidence": verdict.confidence if verdict else None,
        "owner": verdict.owner.value if verdict else "unknown",
        "suspects": (row.verdict or {}).get("suspects", []),
        "verdict": row.verdict,
        "done": row.done,
        "next": next_steps(verdict),
        "runbook": runbook(row.kind, runbook_base),
        "latched": latched_view(row, verdict),
        "resolution": row.resolution,
        "step_kept": row.step_kept,
        "opened_at": moment(row.opened_at),
        "merged_into": row.merged_into,
        "acknowledged_at": moment(row.acknowledged_at),
        "acknowledged_by": row.acknowledged_by,
        "acknowledgement": row.acknowledgement,
        "version": row.version,
        "timeline": timeline(row),
        "latencies": latencies(row),
    }


def latched_view(row: Incident, verdict: Verdict | None) -> dict[str, Any] | None:
    """Return since when the fault of an open incident stands and what ends it; None where none does."""
    if verdict is None or not verdict.fault_class or row.state != "open":
        return None
    mended = str(row.mended["sentence"]) if row.mended is not None else ""
    return {"since": moment(row.onset_at), "clears": list(verdict.clears) or ["person"], "mended": mended}


def latch_view(latch: Latch) -> dict[str, Any]:
    """Return one fault that stands on a node."""
    return {
        "gpu": latch.key.gpu,
        "fault_class": latch.key.fault_class,
        "severity": latch.severity,
        "action": latch.action,
        "text": latch.text,
        "is_drill": latch.key.is_drill,
        "since": moment(latch.first_seconds),
        "last": moment(latch.last_seconds),
        "count": latch.count,
        "clears": list(latch.clears),
    }


def timeline(row: Incident) -> dict[str, Any]:
    """Return the incident's moments on the server's clock: ISO 8601 for people, `*_realtime` in seconds since 1970."""
    moments = {name: getattr(row, f"{name}_at") for name in MOMENTS}
    return {f"{name}_at": moment(at) for name, at in moments.items()} | {
        f"{name}_realtime": at for name, at in moments.items()
    }


def latencies(row: Incident) -> dict[str, float | None]:
    """Return the three latencies that are always reported apart, and the whole."""
    return {
        "onset_to_alarm_seconds": between(row.onset_at, row.alarm_at),
        "alarm_to_verdict_seconds": between(row.alarm_at, row.verdict_at),
        "verdict_to_step_kept_seconds": between(row.verdict_at, row.step_kept_at),
        "onset_to_step_kept_seconds": between(row.onset_at, row.step_kept_at),
    }


def plan_answer(session: Session, row: PlanRow) -> dict[str, Any]:
    """Return one plan with its actions and steps, as they stand in the caller's session."""
    session.flush()
    return plan_view(row, list(plans.actions(session, row.id)), list(steps.of_plan(session, row.id)))


def plan_view(row: PlanRow, actions: list[ActionRow], made: Sequence[StepRow] = ()) -> dict[str, Any]:
    """Return one plan with its actions and their steps."""
    return {
        "id": row.id,
        "incident": row.incident,
        "job": row.job,
        "run": row.run,
        "attempt": row.attempt,
        "state": row.state,
        "reason": row.reason,
        "text": row.text,
        "created_at": moment(row.created_at),
        "ended_at": moment(row.ended_at),
        "decided_at": moment(row.decided_at),
        "decided_by": row.decided_by,
        "decision": row.decision,
        "is_automatic": row.is_automatic,
        "is_drill": row.is_drill,
        "version": row.version,
        "actions": [
            {
                "position": action.position,
                "name": action.name,
                "arguments": action.arguments,
                "state": action.state,
                "detail": action.detail,
                "started_at": moment(action.started_at),
                "ended_at": moment(action.ended_at),
                "steps": [step_view(step) for step in made if step.position == action.position],
            }
            for action in actions
        ],
    }


def step_view(row: StepRow) -> dict[str, Any]:
    """Return one step as the journal has it."""
    return {
        "step": row.step,
        "name": row.name,
        "node": row.node,
        "state": row.state,
        "detail": row.detail,
        "tries": row.tries,
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
    }


def planned_step_view(position: int, step: Step) -> dict[str, Any]:
    """Return one step as it would be carried out."""
    return {
        "position": position,
        "name": step.name,
        "node": step.node,
        "mark": step.mark,
        "arguments": step.arguments,
        "text": step.describe(),
    }


def audit_view(row: Audit) -> dict[str, Any]:
    """Return one audit line."""
    return {
        "id": row.id,
        "at": moment(row.at),
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "reason": row.reason,
    }


def breaker_view(row: Breaker, failures_max: int) -> dict[str, Any]:
    """Return the breaker."""
    return {
        "is_open": row.opened_at is not None,
        "failures": row.failures,
        "failures_max": failures_max,
        "opened_at": moment(row.opened_at),
        "reason": row.reason,
        "reset_at": moment(row.reset_at),
        "reset_by": row.reset_by,
    }


def order_view(row: OrderRow) -> dict[str, Any]:
    """Return one order."""
    return {
        "id": row.id,
        "run": row.run,
        "attempt": row.attempt,
        "action": row.action,
        "exclude": row.exclude,
        "reason": row.reason,
        "incident": row.incident,
        "deadline_seconds": row.deadline_seconds,
        "outcome": row.outcome,
        "detail": row.detail,
        "created_at": moment(row.created_at),
        "ended_at": moment(row.ended_at),
    }


def node_view(row: Node, live: NodeState | None, now: float, cordon: Cordon | None = None) -> dict[str, Any]:
    """Return one node; `heard_age_seconds` is None when its agent was not heard of since the server started."""
    return {
        "node": row.node,
        "cluster": row.cluster,
        "boot_id": row.boot_id,
        "gpus": row.gpus,
        "first_seen_at": moment(row.first_seen_at),
        "last_seen_at": moment(row.last_seen_at),
        "heard_age_seconds": None if live is None else round(max(0.0, now - live.heard_at), 3),
        "cordoned": cordon
        and {"plan": cordon.plan, "actor": cordon.actor, "reason": cordon.reason, "since": moment(cordon.at)},
    }


def fact_view(row: EventRow) -> dict[str, Any]:
    """Return one raw fact of a node; `at` is by the node's own clock."""
    return {
        "id": row.id,
        "kind": row.kind,
        "text": row.text,
        "fields": row.fields,
        "is_drill": row.is_drill,
        "at": moment(row.realtime),
        "received_at": moment(row.received_at),
    }


def lasting_drills(session: Session, *, now: float, node: str | None = None) -> list[dict[str, Any]]:
    """Return the drills that last, of one node or of all, newest first: begun, and not said to have ended."""
    said = nodes.drills(session, node=node, after=now - DRILL_SECONDS_MAX)
    ended = {(row.node, row.fields.get("drill")) for row in said if row.kind == "drill_ended"}
    return [
        {
            "node": row.node,
            "drill": row.fields.get("drill", ""),
            "fault": row.fields.get("fault", ""),
            "since": moment(row.realtime),
        }
        for row in said
        if row.kind == "drill_began" and (row.node, row.fields.get("drill")) not in ended
    ]


def job_view(run: RunState, registry: Registry, now: float) -> dict[str, Any]:
    """Return one run as it is now."""
    board = run.current()
    state = run.outcome or "finished" if run.is_finished else "running" if registry.is_live(run, now) else "silent"
    return {
        "job": run.job,
        "run": run.run,
        "attempt": run.attempt,
        "state": state,
        "world_size": run.world_size,
        "max_restarts": run.max_restarts,
        "restarts_used": run.restarts_used,
        "standby": list(run.standby),
        "step": board.step(),
        "is_controlled": run.is_controlled,
        "heard_age_seconds": round(max(0.0, now - run.heard_at), 3),
        "ranks": [
            {
                "rank": report.rank,
                "node": report.node,
                "gpu": report.gpu,
                "step": report.step,
                "phase": report.phase,
                "process_state": report.process_state,
                "report_age_seconds": round(age, 3),
                "heartbeat_age_seconds": round(report.heartbeat_age_seconds + age, 3),
            }
            for report, age in board.ranks_now(now)
        ],
    }


def attempt_view(row: Attempt) -> dict[str, Any]:
    """Return one attempt of a run."""
    return {
        "attempt": row.attempt,
        "members": row.members,
        "resume_step": row.resume_step,
        "cause_order": row.cause_order,
        "outcome": row.outcome,
        "opened_at": moment(row.opened_at),
        "ended_at": moment(row.ended_at),
    }


def steps_view(run: RunState, count: int) -> dict[str, Any]:
    """Return the last steps of the running attempt by rank: seconds, None where a step was not reported."""
    board = run.current()
    kept = {rank: {step.step: step for step in steps} for rank, steps in sorted(board.steps.items())}
    numbers = sorted({number for steps in kept.values() for number in steps})[-count:]
    return {
        "run": run.run,
        "attempt": run.attempt,
        "steps": numbers,
        "ranks": [
            {
                "rank": rank,
                "node": run.node_of(rank),
                "wall_seconds": [steps[number].wall_seconds if number in steps else None for number in numbers],
                "work_seconds": [
                    max(0.0, own_seconds(steps[number])) if number in steps else None for number in numbers
                ],
            }
            for rank, steps in kept.items()
        ],
    }
