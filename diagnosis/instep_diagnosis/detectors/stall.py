"""Has a job stopped? No progress relative to its own step times, with positive evidence or as a mere suspicion.

A stall is a question for more evidence; who is to blame, and why, is `detectors.hang`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from instep_diagnosis.detectors.waits import Wait, WaitGraph, wait_graph
from instep_diagnosis.evidence import JobState, RankState
from instep_diagnosis.settings import HangSettings
from instep_diagnosis.verdict import Certainty

__all__ = ["HangSettings", "Stall", "StallReason", "detect_stall", "stall_patience_seconds"]

FROZEN_STATES = frozenset({"stopped", "zombie", "gone"})
"""States in which a process cannot go on by itself."""
_WORKING_PHASES = frozenset({"forward", "backward", "optimizer", "user", "wait"})
"""Phases in which a rank has no business to stay: none of them is benign when peers wait far beyond the step
times."""


class StallReason(StrEnum):
    """On what a stall rests."""

    FROZEN = "frozen"
    """Somebody waits for a process that is stopped, dead or uninterruptible."""
    WORKING = "working"
    """Somebody waits far beyond the step times for a rank that sits in a phase known not to be benign."""
    DEADLOCK = "deadlock"
    """Ranks wait for one another in a circle."""
    SYMMETRIC = "symmetric"
    """Every member entered a collective and it does not complete."""
    UNKNOWN_PHASE = "unknown-phase"
    BENIGN_PHASE = "benign-phase"
    """Far beyond even the patience for start, compile, data, checkpoint or evaluation."""
    UNKNOWN_RANK = "unknown-rank"
    """Those waited for are ranks that nothing fresh is known of: ask for evidence, accuse nobody."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A job that makes no progress."""

    job: str
    run: str
    attempt: int
    certainty: Certainty
    reason: StallReason
    suspects: tuple[int, ...]
    """Ranks that keep the others waiting; empty for a circle, a symmetric stall and unknown ranks."""
    waiting: tuple[int, ...]
    unknown: tuple[int, ...]
    """Ranks to ask for evidence because nothing fresh is known of them."""
    waited_seconds: float
    """How long the longest waiting rank has been seen to wait."""
    patience_seconds: float
    """What the wait was compared with."""
    step: int
    """Steps finished by the slowest known rank."""
    onset_age_seconds: float
    """Since the first sign: before the moment of evaluation."""


@dataclass(frozen=True, slots=True)
class _Finding:
    reason: StallReason
    certainty: Certainty
    rank: int | None
    waits: tuple[Wait, ...]
    waited_seconds: float
    patience_seconds: float


def detect_stall(job: JobState, settings: HangSettings) -> Stall | None:
    """The stall of a job, or None while it makes progress, pauses for a benign reason, or nobody waits.

    Waits and heartbeats count only up to the moment each report was read, so a late report never looks like a long
    wait.
    """
    if not _may_be_stalled(job, settings):
        return None
    graph = wait_graph(job, report_age_seconds_max=settings.report_age_seconds_max)
    states = {state.rank: state for state in job.ranks if state.rank in graph.known}
    inside = graph.inside()
    findings = [
        finding
        for rank, waits in graph.roots().items()
        if (
            finding := _root(job, states[rank], waits, settings, released=_released(states, rank, inside.get(rank, ())))
        )
    ]
    findings += _unheard(job, graph, settings)
    findings += _alone(job, states, graph, settings)
    if not findings:
        findings = _mutual(job, graph, settings)
    confirmed = [finding for finding in findings if finding.certainty is Certainty.CONFIRMED]
    return _stall(job, graph, confirmed or findings) if findings else None


def _may_be_stalled(job: JobState, settings: HangSettings) -> bool:
    """A cheap look before the graph is built: is anybody stopped, or in a collective for as long as the least
    patience?"""
    least = _frozen_patience_seconds(job, settings)
    return any(
        state.report.process_state == "stopped"
        or any((group.entered_age_seconds or least) >= least for group in state.groups)
        for state in job.ranks
    )


def stall_patience_seconds(job: JobState, settings: HangSettings) -> float:
    """How long peers may wait before it is a stall; infinite while too few steps are finished to know.

    The largest of the floor, `stall_step_factor` medians and `stall_p95_factor` 95th percentiles of the job's own
    steps.
    """
    if len(job.step_seconds) < settings.finished_steps_min:
        return float("inf")
    median, p95 = np.quantile(np.asarray(job.step_seconds), [0.5, 0.95])
    factors = (settings.stall_step_factor * median, settings.stall_p95_factor * p95)
    return float(max(settings.stall_floor_seconds, *factors))


def _frozen_patience_seconds(job: JobState, settings: HangSettings) -> float:
    if len(job.step_seconds) < settings.finished_steps_min:
        return max(settings.stopped_seconds, settings.stall_floor_seconds)
    median = float(np.median(np.asarray(job.step_seconds)))
    return max(settings.stopped_seconds, settings.stopped_step_factor * median)


def _root(
    job: JobState, state: RankState, waits: tuple[Wait, ...], settings: HangSettings, *, released: float
) -> _Finding | None:
    """Judge one rank that others wait for; it was itself waiting until `released` seconds ago."""
    waited = max(wait.age_seconds for wait in waits)
    idle = _idle_seconds(state) if is_frozen(state) else min(_idle_seconds(state), released)
    for reason, certainty, patience in _claims(job, state, settings):
        # Both must hold: somebody waits, and the rank itself has shown no sign of life for as long.
        if waited >= patience and idle >= patience:
            return _Finding(reason, certainty, state.rank, waits, waited, patience)
    return None


def _released(states: dict[int, RankState], rank: int, inside: tuple[Wait, ...]) -> float:
    """For how long a rank could have gone on from what it is in, up to the moment its report was read.

    Reports are not read at one moment: at the end of a long pause the one that paused may be seen to have arrived while
    the next one, read before, still seems to wait for nobody. A member that has gone on arrived before its newest call.
    """
    arrived = [
        group.entered_age_seconds
        for wait in inside
        for member in wait.group.members or ()
        if member != rank and member in states
        for group in states[member].groups
        if group.key == wait.group.key and group.entered_age_seconds is not None
    ]
    return max(0.0, min(arrived, default=float("inf")) - states[rank].report_age_seconds)


def _claims(job: JobState, state: RankState, settings: HangSettings) -> list[tuple[StallReason, Certainty, float]]:
    """What may be claimed of a rank, and after how long; the strongest first."""
    patience = stall_patience_seconds(job, settings)
    phase = state.report.phase
    benign = settings.benign_patience_seconds.get(phase)
    if is_frozen(state):
        return [(StallReason.FROZEN, Certainty.CONFIRMED, _frozen_patience_seconds(job, settings))]
    if benign is not None:
        return [(StallReason.BENIGN_PHASE, Certainty.SUSPECT, max(benign, settings.stall_floor_seconds))]
    if state.report.process_state == "uninterruptible":
        # One sample in D state is common (a page from disk), so it must last twice as long as a stop.
        return [(StallReason.FROZEN, Certainty.CONFIRMED, 2 * _frozen_patience_seconds(job, settings))]
    if state.report.process_state == "running":
        patience *= settings.running_patience_factor
    if _is_at_work(state):
        return [(StallReason.WORKING, Certainty.CONFIRMED, patience)]
    confirmed = max(patience, settings.unknown_phase_patience_seconds)
    return [
        (StallReason.UNKNOWN_PHASE, Certainty.CONFIRMED, confirmed),
        (StallReason.UNKNOWN_PHASE, Certainty.SUSPECT, patience),
    ]


def is_frozen(state: RankState) -> bool:
    """Whether a rank's process has ended or cannot go on by itself."""
    return state.exit_code is not None or state.report.process_state in FROZEN_STATES


def _unheard(job: JobState, graph: WaitGraph, settings: HangSettings) -> list[_Finding]:
    """Long waits for ranks that nothing is known of: a reason to ask, never to accuse."""
    patience = stall_patience_seconds(job, settings)
    waits = [wait for wait in graph.waits if _is_unheard(wait) and wait.age_seconds >= patience]
    if not waits or graph.roots():
        return []
    waited = max(wait.age_seconds for wait in waits)
    return [_Finding(StallReason.UNKNOWN_RANK, Certainty.SUSPECT, None, tuple(waits), waited, patience)]


def _is_unheard(wait: Wait) -> bool:
    return bool(wait.unknown) and not wait.targets and not wait.is_left


def _alone(job: JobState, states: dict[int, RankState], graph: WaitGraph, settings: HangSettings) -> list[_Finding]:
    """Stopped processes that nobody waits for to come: inside the collective that holds the others too, or
    unobserved."""
    found = []
    for rank, state in states.items():
        if state.report.process_state != "stopped" or state.exit_code is not None or rank in graph.roots():
            continue
        beside = tuple(wait for wait in graph.complete() if wait.rank != rank and rank in (wait.group.members or ()))
        patience = _frozen_patience_seconds(job, settings) if beside else stall_patience_seconds(job, settings)
        idle = min([_idle_seconds(state), *(wait.age_seconds for wait in beside)])
        if idle >= patience:
            found.append(_Finding(StallReason.FROZEN, Certainty.CONFIRMED, rank, beside, idle, patience))
    return found


def _mutual(job: JobState, graph: WaitGraph, settings: HangSettings) -> list[_Finding]:
    """A circle of waits, or a collective that everybody entered and that does not complete."""
    patience = stall_patience_seconds(job, settings)
    if graph.waiting and not graph.roots():
        circle = tuple(wait for wait in graph.waits if wait.targets and not wait.is_left)
        if min(wait.age_seconds for wait in circle) >= patience:
            waited = max(wait.age_seconds for wait in circle)
            return [_Finding(StallReason.DEADLOCK, Certainty.CONFIRMED, None, circle, waited, patience)]
    if graph.waiting:
        return []
    return _symmetric(job, graph, patience, settings)


def _symmetric(job: JobState, graph: WaitGraph, patience: float, settings: HangSettings) -> list[_Finding]:
    """Completion may be noticed late, so a rank that has gone on to a benign phase is not taken to sit in it."""
    states = {state.rank: state for state in job.ranks}
    waits = tuple(
        wait
        for wait in graph.complete()
        if wait.age_seconds >= patience
        and _idle_seconds(states[wait.rank]) >= patience
        and states[wait.rank].report.phase not in settings.benign_patience_seconds
    )
    full = tuple(wait for wait in waits if _all_wait(wait, waits))
    if not full:
        return []
    waited = min(wait.age_seconds for wait in full)
    is_sure = all(_is_at_work(states[wait.rank]) for wait in full) or waited >= settings.unknown_phase_patience_seconds
    certainty = Certainty.CONFIRMED if is_sure else Certainty.SUSPECT
    return [_Finding(StallReason.SYMMETRIC, certainty, None, full, waited, patience)]


def _is_at_work(state: RankState) -> bool:
    """Whether the rank is in a phase known not to be benign."""
    phase = state.report.phase
    return phase in _WORKING_PHASES or (phase == "between" and state.report.is_annotated)


def _all_wait(wait: Wait, waits: tuple[Wait, ...]) -> bool:
    """Whether every member of a wait's group sits in the same collective for as long."""
    together = {other.rank for other in waits if other.group.key == wait.group.key}
    size = max(wait.group.size, len(wait.group.members or ()), 2)
    return len(together) >= size


def _idle_seconds(state: RankState) -> float:
    """Time without a sign of life, up to the moment the report was read; for ever once the process has ended."""
    if state.exit_code is not None:
        return float("inf")
    return max(0.0, state.report.heartbeat_age_seconds - state.report_age_seconds)


def _stall(job: JobState, graph: WaitGraph, findings: list[_Finding]) -> Stall:
    worst = max(findings, key=lambda finding: finding.waited_seconds)
    waits = [wait for finding in findings for wait in finding.waits]
    known = [state for state in job.ranks if state.rank in graph.known]
    ages = {state.rank: state.report_age_seconds for state in job.ranks}
    onset = max((wait.age_seconds + ages[wait.rank] for wait in waits), default=worst.waited_seconds)
    return Stall(
        job=job.job,
        run=job.run,
        attempt=job.attempt,
        certainty=worst.certainty,
        reason=worst.reason,
        suspects=tuple(sorted({finding.rank for finding in findings if finding.rank is not None})),
        waiting=tuple(sorted({wait.rank for wait in waits})),
        unknown=tuple(sorted(set(range(job.world_size)) - graph.known)),
        waited_seconds=worst.waited_seconds,
        patience_seconds=worst.patience_seconds,
        step=min((state.report.step for state in known), default=0),
        onset_age_seconds=onset,
    )
