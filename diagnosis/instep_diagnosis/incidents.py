"""Incidents: findings that belong together, one for each cause. Ids and times come from the caller; nothing here is
stored.

An incident's id and its first verdict's kind (the alert's label) never change; its verdict and its suspects may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from instep_diagnosis.verdict import Certainty, Kind, Verdict

HISTORY_MAX = 200
"""Lines kept of an incident's history; the oldest but the first go."""


class Status(StrEnum):
    """Where an incident stands."""

    OPEN = "open"
    """An alarm or a suspicion; its verdict is not complete."""
    CONFIRMED = "confirmed"
    RESOLVED = "resolved"


class Family(StrEnum):
    """Kinds that may be symptoms of one cause."""

    STOP = "stop"
    """Hang, crash, mismatch: an attempt stops once."""
    STRAGGLER = "straggler"
    GPU_FAULT = "gpu-fault"


class Join(StrEnum):
    """What to do with a verdict."""

    OPEN = "open"
    UPDATE = "update"
    MERGE = "merge"
    """It joins incidents that were apart: update the one named, and point the absorbed ones to it."""
    IGNORE = "ignore"
    """It opens nothing: a recovered straggler that nobody was told of."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What is wrong, where, since when, how sure, on what evidence."""

    id: str
    """Opaque, given by the caller, never reused."""
    kind: Kind
    """Of the first verdict; the alert's label."""
    verdict: Verdict
    """The newest one that says more than what was known."""
    status: Status
    opened_at: datetime
    onset_step: int | None = None
    merged_into: str | None = None
    history: tuple[tuple[datetime, str], ...] = ()
    """When and what happened, oldest first."""

    @property
    def is_live(self) -> bool:
        """Neither resolved nor merged into another."""
        return self.status is not Status.RESOLVED and self.merged_into is None


@dataclass(frozen=True, slots=True)
class JoinDecision:
    """What to do with a verdict, and why."""

    action: Join
    incident_id: str | None
    """Of the incident to update; None to open a new one, or to ignore."""
    absorbed: tuple[str, ...]
    """Incidents to be merged into it."""
    reason: str
    """One sentence."""


def family(kind: Kind) -> Family:
    """The family of a kind."""
    if kind in (Kind.HANG, Kind.CRASH, Kind.MISMATCH):
        return Family.STOP
    return Family.STRAGGLER if kind is Kind.STRAGGLER else Family.GPU_FAULT


def join(existing: Sequence[Incident], verdict: Verdict) -> JoinDecision:
    """Where a verdict belongs. The same verdict twice gives the same incident, whether or not it has been resolved
    since.

    Stops belong together by (run, attempt), stragglers by (run, rank) while the finding lasts, faults of a GPU by
    (node, GPU, fault class, boot). A stop whose verdict names a node's fault also belongs with that fault. Of several
    the oldest keeps its id.
    """
    own = [incident for incident in existing if incident.merged_into is None and _is_same(incident, verdict)]
    linked = [i for i in existing if i.is_live and i not in own and _is_linked(i.verdict, verdict)]
    matches = sorted((*own, *linked), key=lambda incident: (incident.opened_at, incident.id))
    if not matches:
        if not verdict.is_ongoing:
            return JoinDecision(Join.IGNORE, None, (), "It has ended, and no incident tells of it.")
        return JoinDecision(Join.OPEN, None, (), f"No incident tells of {_about(verdict)}.")
    kept, absorbed = matches[0], tuple(incident.id for incident in matches[1:])
    if absorbed:
        reason = f"{_about(verdict).capitalize()} explains {len(matches)} incidents; the oldest keeps its id."
        return JoinDecision(Join.MERGE, kept.id, absorbed, reason)
    return JoinDecision(Join.UPDATE, kept.id, (), f"Incident {kept.id} tells of {_about(verdict)} already.")


def opened(incident_id: str, verdict: Verdict, *, now: datetime) -> Incident:
    """A new incident for a verdict that `join` says to open."""
    status = Status.CONFIRMED if verdict.certainty is Certainty.CONFIRMED else Status.OPEN
    return Incident(
        id=incident_id,
        kind=verdict.kind,
        verdict=verdict,
        status=status,
        opened_at=now,
        onset_step=verdict.onset_step,
        history=((now, f"Opened: {verdict.summary}"),),
    )


def updated(incident: Incident, verdict: Verdict, *, now: datetime) -> Incident:
    """The incident with a newer verdict; one that knows less than the present one changes nothing.

    A resolved incident stays resolved: its cause is over, and a late verdict only completes it.
    """
    better = verdict if _knows_more(verdict, incident.verdict) else incident.verdict
    status = incident.status
    if status is not Status.RESOLVED and not verdict.is_ongoing:
        return resolved(incident, "It has ended by itself.", now=now)
    if status is Status.OPEN and better.certainty is Certainty.CONFIRMED:
        status = Status.CONFIRMED
    changed = replace(incident, verdict=better, status=status)
    if better == incident.verdict or better.summary == incident.verdict.summary:
        return changed
    return _noted(changed, f"Now known: {better.summary}", now)


def resolved(incident: Incident, reason: str, *, now: datetime) -> Incident:
    """The incident, over."""
    if incident.status is Status.RESOLVED:
        return incident
    return _noted(replace(incident, status=Status.RESOLVED), f"Resolved: {reason}", now)


def merged(incident: Incident, into: str, *, now: datetime) -> Incident:
    """The incident, pointing to the one that goes on in its stead."""
    return _noted(replace(incident, merged_into=into), f"Merged into {into}.", now)


def _is_same(incident: Incident, verdict: Verdict) -> bool:
    """Same finding, by the key of its family."""
    old = incident.verdict
    if family(incident.kind) is not family(verdict.kind):
        return False
    if family(verdict.kind) is Family.STOP:
        same_attempt = (old.run, old.attempt) == (verdict.run, verdict.attempt)
        # A suspicion that passed and a hang later in the same attempt are two things.
        return same_attempt and (incident.is_live or old.onset_step == verdict.onset_step)
    if family(verdict.kind) is Family.STRAGGLER:
        same_rank = (old.run, _first_rank(old)) == (verdict.run, _first_rank(verdict))
        same_onset = (old.attempt, old.onset_step) == (verdict.attempt, verdict.onset_step)
        return same_rank and (incident.is_live or same_onset)
    return _device(old) == _device(verdict)


def _is_linked(old: Verdict, new: Verdict) -> bool:
    """A stop and a fault of a GPU that explains it."""
    if {family(old.kind), family(new.kind)} != {Family.STOP, Family.GPU_FAULT}:
        return False
    (node, gpu, *fault), (other_node, other_gpu, *other_fault) = _device(old), _device(new)
    # A GPU that is known by its PCI address alone, or not at all, may be the same one.
    is_same_gpu = gpu == other_gpu or not gpu or not other_gpu or ":" in gpu + other_gpu
    return bool(new.fault_class) and (node, fault) == (other_node, other_fault) and is_same_gpu


def _device(verdict: Verdict) -> tuple[str, str, str, str]:
    suspect = verdict.suspects[0] if verdict.suspects else None
    where = (suspect.node, suspect.gpu) if suspect else ("", "")
    return (*where, verdict.fault_class, verdict.boot_id)


def _first_rank(verdict: Verdict) -> int | None:
    return verdict.suspects[0].rank if verdict.suspects else None


def _knows_more(new: Verdict, old: Verdict) -> bool:
    return _knowledge(new) >= _knowledge(old)


def _knowledge(verdict: Verdict) -> tuple[bool, bool, bool]:
    is_confirmed = verdict.certainty is Certainty.CONFIRMED
    return (verdict.is_node_at_fault, is_confirmed, bool(verdict.suspects))


def _about(verdict: Verdict) -> str:
    if family(verdict.kind) is Family.GPU_FAULT:
        node, gpu, fault, _ = _device(verdict)
        return f"{fault or 'a fault'} of GPU {gpu or '?'} on {node}"
    if family(verdict.kind) is Family.STRAGGLER:
        return f"slow rank {_first_rank(verdict)} of run {verdict.run}"
    return f"the stop of attempt {verdict.attempt} of run {verdict.run}"


def _noted(incident: Incident, line: str, now: datetime) -> Incident:
    history = (*incident.history, (now, line))
    if len(history) > HISTORY_MAX:
        history = (history[0], *history[-(HISTORY_MAX - 1) :])
    return replace(incident, history=history)
