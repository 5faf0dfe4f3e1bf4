"""What follows an incident, as supervisors report it: acknowledged orders, new attempts, the first kept step, the end.

Called for every report after it was journalled, and again for those that are replayed: doing it twice changes nothing.
"""

from __future__ import annotations

import logging
from collections import deque

from instep_collector import control
from instep_collector.clock import Clock
from instep_collector.control import Body, Report
from instep_collector.errors import StoreAway
from instep_collector.registry import RunState
from instep_collector.store import incidents, jobs, orders, plans
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident, OrderRow
from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.incidents import Family
from instep_diagnosis.verdict import Kind, Verdict
from sqlalchemy import select
from sqlalchemy.orm import Session

from instep_remediation.openings import (
    STOP,
    Announce,
    Opening,
    end_for_job,
    identity,
    label_drill,
    note,
    open_incident,
    resolve,
    restarted,
    step_kept,
)
from instep_remediation.verdict_json import verdict_from_json, verdict_to_json

log = logging.getLogger(__name__)


class Aftermath:
    """Follows reports."""

    def __init__(self, clock: Clock, store: Store, announce: Announce) -> None:
        self._clock = clock
        self._store = store
        self._announce = announce
        self._late: deque[tuple[RunState, Report, Body, float]] = deque()

    def on_report(self, run: RunState, report: Report, body: Body, _at: float, realtime: float) -> None:
        """Bring one report into the store, by the time at which it was received.

        While the database is away reports wait, in their order: they are acknowledged and in the journal.
        """
        if isinstance(body, control.Heartbeat | control.Dump):
            return
        self._late.append((run, report, body, realtime))
        self.catch_up()

    def catch_up(self) -> None:
        """Bring what waits into the store, as far as the database answers."""
        while self._late:
            run, report, body, realtime = self._late[0]
            try:
                with self._store.begin() as session:
                    follow(session, self._announce, run, report, body, at=realtime)
            except StoreAway as away:
                log.warning("%d reports wait for the database: %s", len(self._late), away)
                return
            except Exception:  # One report must not hold up those of every run behind it, nor ingest.
                log.exception("A report of run %s cannot be brought into the store: it is left out.", run.run)
            self._late.popleft()


def follow(session: Session, announce: Announce, run: RunState, report: Report, body: Body, *, at: float) -> None:
    """Change jobs, orders, plans and incidents by one report."""
    match body:
        case control.AttemptOpened():
            jobs.keep_attempt(session, report.job, report.run, report.attempt, body, at=at)
            _overtaken(session, report, body.cause_order, at)
            for row in _earlier(session, report):
                restarted(row, run, report.attempt, at=at)
        case control.RankExited():
            jobs.keep_exit(session, report.run, report.attempt, body, at=at)
        case control.AttemptEnded():
            jobs.end_attempt(session, report.run, report.attempt, body.outcome, at=at)
        case control.OrderAcknowledged():
            _acknowledged(session, report, body, at)
        case control.LocalDecision():
            _decided(session, report, body, at)
        case control.StepKept():
            for row in _earlier(session, report):
                step_kept(session, row, report.attempt, body.step, at=at)
                if row.state == "resolved":
                    announce(session, row, "resolved")
        case control.RunFinished():
            _finished(session, announce, report, body, at)


def expire_orders(clock: Clock, store: Store) -> None:
    """End orders whose deadline has passed unacknowledged, and the plans that waited for them."""
    now = clock.realtime()
    with store.begin() as session:
        for order in session.scalars(select(OrderRow).where(OrderRow.outcome == "")).all():
            if now > order.created_at + order.deadline_seconds:
                end_order(session, order, "expired", "not acknowledged before its deadline", at=now)


def end_order(session: Session, order: OrderRow, outcome: str, detail: str, *, at: float) -> None:
    """Write down how an order ended, in its plan and incident as well. The first outcome stays."""
    if order.outcome:
        return
    order.outcome, order.detail, order.ended_at = outcome, detail, at
    if order.action == "dump":
        return
    for plan in plans.of_incident(session, order.incident):
        plans.settle(
            session,
            plan.id,
            order.action,
            state="done" if outcome == "done" else "failed",
            detail=f"{outcome} {detail}".strip(),
            at=at,
        )
    row = session.get(Incident, order.incident)
    if row is not None:
        note(row, f"Order {order.id} ({order.action}) was {_words(outcome)}{f': {detail}' if detail else ''}.")


def _words(outcome: str) -> str:
    return {"done": "acknowledged", "obsolete": "overtaken by a newer attempt"}.get(outcome, outcome)


def _acknowledged(session: Session, report: Report, body: control.OrderAcknowledged, at: float) -> None:
    order = orders.get(session, body.order)
    if order is not None and order.run == report.run:
        end_order(session, order, "done" if body.outcome == "done" else "refused", body.detail, at=at)


def _overtaken(session: Session, report: Report, cause_order: int | None, at: float) -> None:
    """A newer attempt ends the orders for older ones: the one that caused it is done, acknowledged or not."""
    for order in orders.listed(session, report.run):
        if order.attempt < report.attempt:
            end_order(session, order, "done" if order.id == cause_order else "obsolete", "", at=at)


def _earlier(session: Session, report: Report) -> list[Incident]:
    """Return the run's incidents that ended an earlier attempt and are not over."""
    return [
        row
        for row in incidents.active(session, run=report.run)
        if row.family == STOP and row.attempt < report.attempt and row.state == "open"
    ]


def _decided(session: Session, report: Report, body: control.LocalDecision, at: float) -> None:
    """The coordinator acted by itself: note it, and open the hang that it found while this server was away."""
    sentence = f"The job's coordinator decided by itself: {body.action}. {body.reason}".strip()
    rows = [
        row for row in incidents.active(session, run=report.run) if row.attempt == report.attempt and row.family == STOP
    ]
    verdict = _local_verdict(body)
    if not rows and verdict is not None and verdict.kind is Kind.HANG:
        rows = [
            open_incident(
                session,
                Opening(
                    identity(report.run, report.attempt, "hang", verdict.onset_step),
                    Kind.HANG.value,
                    report.job,
                    report.run,
                    report.attempt,
                    verdict.summary,
                    verdict.onset_step,
                    at - verdict.onset_age_seconds,
                    verdict.is_drill,
                ),
                state="open",
                now=at,
            )[0]
        ]
    for row in rows:
        row.state = "open"
        note(row, sentence)
        if verdict is not None and row.verdict_at is None:
            label_drill(row, verdict)
            row.summary, row.verdict = verdict.summary, verdict_to_json(verdict)
            row.alarm_at, row.verdict_at = row.alarm_at or at, at


def _local_verdict(body: control.LocalDecision) -> Verdict | None:
    try:
        return verdict_from_json(body.verdict) if body.verdict else None
    except EvidenceError:
        return None


def _finished(session: Session, announce: Announce, report: Report, body: control.RunFinished, at: float) -> None:
    jobs.end_run(session, report.run, body.outcome, at=at)
    for order in orders.listed(session, report.run):
        end_order(session, order, "obsolete", "the run is over", at=at)
    for row in incidents.active(session, run=report.run):
        is_open = row.state == "open"
        if is_open and row.family == STOP and row.verdict_at is None:
            continue  # Its verdict is still to come; it is ended right after.
        if row.family == Family.GPU_FAULT:
            continue  # It is the node's by now, and ends with its repair.
        sentence = f"The run is over ({body.outcome})."
        if is_open:
            end_for_job(session, row, sentence, at=at)
        else:
            resolve(session, row, sentence, at=at, state="withdrawn")
        if row.state == "resolved":
            announce(session, row, "resolved")
