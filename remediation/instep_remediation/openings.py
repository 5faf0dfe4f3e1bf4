"""Opens incidents and fills them in: identity, labels, timeline. Works on rows of the caller's session; decides
nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from instep_collector.boards import RankBoard
from instep_collector.registry import RunState
from instep_collector.sink import Finding
from instep_collector.store import incidents as queries
from instep_collector.store import plans as plan_queries
from instep_collector.store.models import Incident
from instep_diagnosis.incidents import Family, family
from instep_diagnosis.verdict import Kind, Verdict
from sqlalchemy.orm import Session

from instep_remediation.verdict_json import as_json, verdict_from_json, verdict_to_json

Announce = Callable[[Session, Incident, str], None]
"""Queues a message to people: incident, and the occasion (`verdict` or `resolved`)."""

STOP = Family.STOP.value
"""Incidents that end an attempt, and are over when the next one has kept a step."""


SEVERITIES = {
    Kind.HANG: "critical",
    Kind.CRASH: "critical",
    Kind.MISMATCH: "critical",
    Kind.GPU_FAULT: "critical",
    Kind.STRAGGLER: "warning",
}
"""Of the alert: `critical` wakes somebody; a slow job goes on, and waits for the morning. So does what hurts no running
work."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What is fixed when an incident is opened."""

    identity: str
    kind: str
    job: str
    run: str
    attempt: int
    summary: str
    onset_step: int | None
    onset_at: float
    is_drill: bool = False
    node: str = ""
    severity: str = ""
    """Of the alert, where it is another than that of its kind."""


def open_incident(session: Session, opening: Opening, *, state: str, now: float) -> tuple[Incident, bool]:
    """Return the incident of this identity and whether it is new. A withdrawn suspect is taken up again."""
    known = queries.by_identity(session, opening.identity)
    if known is not None:
        if known.state == "withdrawn":
            known.state, known.resolved_at, known.resolution = state, None, ""
        return known, False
    id_ = f"inc-{secrets.token_hex(6)}"
    row = Incident(
        id=id_,
        identity=opening.identity,
        kind=opening.kind,
        family=family(Kind(opening.kind)).value,
        state=state,
        merged_into=None,
        job=opening.job,
        run=opening.run,
        attempt=opening.attempt,
        labels=labels(opening, id_),
        is_drill=opening.is_drill,
        summary=opening.summary,
        onset_step=opening.onset_step,
        verdict=None,
        evidence=None,
        done=[],
        resolution="",
        onset_at=opening.onset_at,
        alarm_at=None,
        verdict_at=None,
        ordered_at=None,
        restarted_at=None,
        step_kept_at=None,
        step_kept=None,
        resolved_at=None,
        opened_at=now,
    )
    session.add(row)
    session.flush()
    return row, True


def labels(opening: Opening, id_: str) -> dict[str, str]:
    """Return the labels of the incident's alert. They never change; the first verdict adds whether it is a drill."""
    found = {
        "incident": id_,
        "severity": opening.severity or SEVERITIES[Kind(opening.kind)],
        "alertname": f"Instep{''.join(part.title() for part in opening.kind.split('-'))}",
        "kind": opening.kind,
        "job": opening.job,
        "run": opening.run,
        "node": opening.node,
    }
    return {name: value for name, value in found.items() if value}


def identity(run: str, attempt: int, kind: str, onset: str | int | None) -> str:
    """Return an incident's identity: opening it twice opens it once.

    >>> identity("r1", 0, "hang", 41)
    'r1/0/hang/41'
    """
    return f"{run}/{attempt}/{kind}/{'-' if onset is None else onset}"


def fill_in(row: Incident, finding: Finding, *, now: float) -> None:
    """Put a verdict and its evidence into an incident; the moment of the first one stays."""
    verdict = finding.verdict
    label_drill(row, verdict)
    row.summary, row.verdict, row.evidence = verdict.summary, verdict_to_json(verdict), as_json(finding.bundle)
    row.state = "open" if row.state in ("suspect", "withdrawn") else row.state
    row.alarm_at = row.alarm_at if row.alarm_at is not None else now - finding.alarm_age_seconds
    row.verdict_at = row.verdict_at if row.verdict_at is not None else now
    row.onset_at = min(row.onset_at, now - verdict.onset_age_seconds)


def label_drill(row: Incident, verdict: Verdict) -> None:
    """Say whether it is a drill, with the first verdict: a drill that comes later makes no drill of what is real."""
    if row.verdict is None:
        row.is_drill = row.is_drill or verdict.is_drill
        row.labels = row.labels | {"drill": str(row.is_drill).lower()}


def note(row: Incident, sentence: str) -> None:
    """Add one sentence to what was done, once."""
    if sentence not in row.done:
        row.done = [*row.done, sentence]


def resolve(session: Session, row: Incident, resolution: str, *, at: float, state: str = "resolved") -> None:
    """End an incident."""
    row.state, row.resolution, row.resolved_at = state, resolution, at
    plan_queries.close(session, row.id, at=at)


def merge(session: Session, row: Incident, into: Incident, *, at: float) -> None:
    """Make an incident a part of another one, to which its id leads from now on."""
    resolve(session, row, f"Part of {into.id}.", at=at, state="merged")
    row.merged_into = into.id


def catch_up(session: Session, row: Incident, run: RunState, board: RankBoard, *, now: float) -> None:
    """Apply to a new incident what was told before it could be opened: a later attempt, its first step, the end."""
    if board.decision is not None:
        note(row, f"The job's coordinator decided by itself: {board.decision.action}. {board.decision.reason}".strip())
    for later in sorted(other for other in run.boards if other > board.attempt):
        restarted(row, run, later, at=run.boards[later].opened_realtime or now)
        kept = run.boards[later].kept
        if kept is not None:
            step_kept(session, row, later, kept[0], at=kept[1])
    if run.is_finished and row.state == "open":
        end_for_job(session, row, f"The run is over ({run.outcome}).", at=now)


def restarted(row: Incident, run: RunState, attempt: int, *, at: float) -> None:
    """A later attempt was opened."""
    if row.restarted_at is None:
        row.restarted_at = at
        nodes = ", ".join(member.node for member in run.members if member.ranks)
        note(row, f"Attempt {attempt} was started" + (f" on {nodes}." if nodes else "."))


def step_kept(session: Session, row: Incident, attempt: int, step: int, *, at: float) -> None:
    """Every rank of a later attempt has kept a step: the job goes on."""
    if row.step_kept_at is None:
        row.step_kept_at, row.step_kept = at, step
    if row.state == "open":
        end_for_job(session, row, f"Step {step} was kept by every rank in attempt {attempt}.", at=at)


def end_for_job(session: Session, row: Incident, sentence: str, *, at: float) -> None:
    """The job is through with it, which ends the incident; a fault of a device stays until its node is repaired, unless
    that was said before.
    """
    where = device_of(row) if row.verdict and row.verdict.get("is_node_at_fault") else None
    if where is None:
        resolve(session, row, sentence, at=at)
        return
    if row.mended is not None:
        resolve(session, row, f"{row.mended['sentence']} {sentence}", at=at)
        return
    row.family = Family.GPU_FAULT.value
    note(row, f"{sentence} The fault stays until node {where[0]} is repaired (instep nodes repaired {where[0]}).")


def is_hang(row: Incident) -> bool:
    """Whether it began as an alarm about a job that makes no progress."""
    return row.family == STOP and row.kind == Kind.HANG


def device(verdict: Verdict) -> tuple[str, str, str, str] | None:
    """Return (node, GPU, fault class, boot) of a verdict about a fault, else None."""
    if not (verdict.fault_class and verdict.suspects):
        return None
    return (verdict.suspects[0].node, verdict.suspects[0].gpu, verdict.fault_class, verdict.boot_id)


def is_same_fault(row: Incident, verdict: Verdict) -> bool:
    """Whether an incident tells of a verdict's fault. A drill's never holds a real one: that would wake nobody."""
    return row.is_drill == verdict.is_drill and device_of(row) == device(verdict)


def device_of(row: Incident) -> tuple[str, str, str, str] | None:
    """Return what `device` says of an incident's verdict."""
    return device(verdict_from_json(row.verdict)) if row.verdict else None


def join_fault(session: Session, row: Incident, verdict: Verdict, *, now: float) -> Incident:
    """Return the incident that goes on with a stop's verdict: an older one about the same faulty device, or itself."""
    where = device(verdict)
    older = next(
        (
            other
            for other in queries.active(session)
            if where is not None
            and other.id != row.id
            and other.family == Family.GPU_FAULT
            and is_same_fault(other, verdict)
        ),
        None,
    )
    if older is None:
        return row
    merge(session, row, older, at=now)
    older.family, older.job, older.run, older.attempt = STOP, row.job, row.run, row.attempt
    older.onset_step = row.onset_step
    older.restarted_at = older.step_kept_at = older.step_kept = None  # of a stop before this one
    return older
