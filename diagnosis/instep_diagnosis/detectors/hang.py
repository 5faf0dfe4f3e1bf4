"""Who keeps a stalled job waiting, and why: one verdict with its evidence.

Order of judgement: a process that cannot go on; a script that called different operations; the sinks of the wait-for
graph; a circle of waits; a collective that everybody entered. *Unknown* is an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from instep_diagnosis.detectors.calibration import calibrated
from instep_diagnosis.detectors.confidence import (
    LOCALISED,
    LOCALISED_IN_CIRCLE,
    LOCALISED_WEAKLY,
    OUTVOTED,
    confidence,
)
from instep_diagnosis.detectors.culprit import HostState, host_state
from instep_diagnosis.detectors.habits import departing
from instep_diagnosis.detectors.mismatch import Mismatch, find_mismatch, mismatch_evidence
from instep_diagnosis.detectors.stacks import is_outside_torch, main_thread
from instep_diagnosis.detectors.stall import Stall, StallReason, is_frozen
from instep_diagnosis.detectors.waits import Wait, WaitGraph, wait_graph
from instep_diagnosis.detectors.words import entry_words, have, ranks_words
from instep_diagnosis.evidence import JobState, RankState
from instep_diagnosis.facts import join_facts
from instep_diagnosis.settings import HangSettings
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Kind, Owner, StuckAt, Suspect, Verdict

WAITS_SHOWN_MAX = 16
"""Waiting ranks in a verdict's evidence, the longest waits first; all of them are in `waiting_ranks`."""


@dataclass(frozen=True, slots=True)
class _Case:
    """Everything that is known about one stall."""

    job: JobState
    stall: Stall
    graph: WaitGraph
    states: dict[int, RankState]

    @property
    def known_share(self) -> float:
        return len(self.states) / max(1, self.job.world_size)


def localise_hang(job: JobState, stall: Stall, settings: HangSettings | None = None) -> Verdict:
    """Who is to blame for a stall and why, with node facts joined.

    `job` may be newer than the stall, with dumps in it. Ranks that nothing fresh is known of are never blamed. A rank
    whose stack shows that it saves, loads, compiles or evaluates is a suspect at most. The kind is always `hang`,
    also where the cause is a script that skipped or mismatched a collective, so that an incident opened at the alarm
    keeps its label.
    """
    settings = settings or HangSettings()
    graph = wait_graph(job, report_age_seconds_max=settings.report_age_seconds_max)
    states = {state.rank: state for state in job.ranks if state.rank in graph.known}
    case = _Case(job, stall, graph, states)
    judged = with_measured_confidence(_with_recorder(case, _judge(case)))
    return join_facts(judged, job, fact_window_seconds=settings.fact_window_seconds)


def with_measured_confidence(verdict: Verdict) -> Verdict:
    """The verdict with the measured share of right ones for evidence of its strength; a tie shares it."""
    suspects = verdict.suspects
    tied = len(suspects) if suspects and max(suspect.confidence for suspect in suspects) < TIED_BELOW else 1
    return replace(
        verdict,
        suspects=tuple(
            replace(suspect, confidence=round(calibrated("hang-live", suspect.confidence * tied) / tied, 3))
            for suspect in suspects
        ),
    )


TIED_BELOW = 0.5
"""Of several suspects below this no more than one can be the one."""


def _judge(case: _Case) -> Verdict:
    roots = case.graph.roots()
    frozen = [rank for rank in roots if is_frozen(case.states[rank])]
    frozen += [rank for rank in case.stall.suspects if rank in case.states and is_frozen(case.states[rank])]
    if frozen:
        return _blame(case, {rank: roots.get(rank) or _beside(case, rank) for rank in sorted(set(frozen))})
    mismatch = find_mismatch(case.job)
    if mismatch:
        return _mismatched(case, mismatch)
    if guilty := {rank: waits for rank, waits in roots.items() if _is_late(case, waits)}:
        return _blame(case, guilty)
    if case.graph.waiting and not roots:
        return _circle(case)
    if case.stall.reason is StallReason.SYMMETRIC and case.graph.complete():
        return _symmetric(case)
    return _unknown(case)


def _with_recorder(case: _Case, verdict: Verdict) -> Verdict:
    """Add what torch's own flight recorder says of the verdict's group, as a second witness beside the record."""
    if not verdict.seq or not verdict.group:
        return verdict
    group = verdict.group.partition(" (")[0]
    seen = {rank: entry for rank, state in case.states.items() for entry in state.recorder if entry.group == group}
    ahead = max((rank for rank in seen if rank in verdict.waiting_ranks), key=lambda r: seen[r].seq, default=None)
    lines = []
    for suspect in verdict.suspects[:WAITS_SHOWN_MAX]:
        if suspect.rank not in seen or ahead is None or suspect.rank == ahead:
            continue
        own, other = seen[suspect.rank], seen[ahead]
        text = (
            f"Rank {suspect.rank}'s flight recorder ends with {own.op} seq {own.seq} of group {group}, "
            f"rank {ahead}'s with {other.op} seq {other.seq}."
        )
        lines.append(Evidence(text, suspect.node, suspect.rank, "flight-recorder", fields={"seq": own.seq}))
    return replace(verdict, evidence=(*verdict.evidence, *lines))


def _beside(case: _Case, rank: int) -> tuple[Wait, ...]:
    """What the others wait in together with a rank that froze inside the collective that all have entered."""
    others = [wait for wait in case.graph.waits if wait.rank != rank]
    return tuple(wait for wait in others if not wait.group.members or rank in wait.group.members)


def _is_late(case: _Case, waits: Sequence[Wait]) -> bool:
    """Whether this wait is as old as the stall itself; a wait that has just begun elsewhere blames nobody."""
    return max(wait.age_seconds for wait in waits) >= 0.5 * case.stall.waited_seconds


def _blame(case: _Case, guilty: Mapping[int, Sequence[Wait]]) -> Verdict:
    """A verdict against the ranks that keep others waiting and wait for nobody."""
    found = _without_victims(case, {rank: host_state(case.states[rank]) for rank in guilty})
    if not found:
        return _unknown(case)
    guilty = {rank: guilty[rank] for rank in found}
    is_weak = all(wait.is_weak for waits in guilty.values() for wait in waits)
    localised = LOCALISED_WEAKLY if is_weak else LOCALISED
    tied = len(guilty) if is_weak else 1
    suspects = [_suspect(case, rank, host, localised, tied) for rank, host in found.items()]
    first = max(suspects, key=lambda suspect: suspect.confidence)
    lead = first.rank if first.rank is not None else min(guilty)
    waits = guilty[lead]
    benign = all(host.benign for host in found.values())
    verdict = replace(
        _base(case, waits),
        suspects=_ordered(suspects),
        owner=found[lead].owner,
        cause=found[lead].cause,
        stuck_at=found[lead].stuck_at,
        summary=_blame_words(case, found, lead, waits),
        evidence=(*_wait_evidence(case, waits), *(e for host in found.values() for e in host.evidence)),
    )
    return replace(verdict, certainty=Certainty.SUSPECT) if benign else verdict


def _without_victims(case: _Case, found: dict[int, HostState]) -> dict[int, HostState]:
    """Leave out ranks whose stack shows them in a collective or a transfer themselves, where that can explain them.

    It can when another rank is seen outside, and when transfers are not on record: then they wait for a peer unseen.
    """
    inside = {rank for rank, host in found.items() if host.stuck_at is StuckAt.DEVICE}
    is_anybody_outside = len(inside) < len(found)
    return {
        rank: host
        for rank, host in found.items()
        if rank not in inside or not (is_anybody_outside or "p2p" in case.states[rank].report.unobserved)
    }


def _suspect(case: _Case, rank: int, host: HostState, localised: float, tied: int = 1) -> Suspect:
    sure = confidence(localised, host.weight, known_share=case.known_share, tied=tied)
    report = case.states[rank].report
    return Suspect(rank, report.node, report.gpu, host.cause, sure)


def _blame_words(case: _Case, found: dict[int, HostState], lead: int, waits: Sequence[Wait]) -> str:
    host = found[lead]
    who = f"Rank {lead} on {case.states[lead].report.node}"
    others = [rank for rank in found if rank != lead]
    also = f"; {ranks_words(others)} {'too' if len(others) == 1 else 'likewise'}" if others else ""
    if not waits:
        return f"{who} does not go on: {host.words}{also}."
    wait = max(waits, key=lambda w: w.age_seconds)
    waiting = f"{ranks_words(sorted({w.rank for w in waits}))} {have(len({w.rank for w in waits}))}"
    seconds = wait.age_seconds + case.states[wait.rank].report_age_seconds
    is_inside = lead not in wait.targets
    entered = f"does not go on inside {entry_words(wait)}" if is_inside else f"never entered {entry_words(wait)}"
    return f"{who} {entered}; {waiting} waited {seconds:.1f} s; {host.words}{also}."


def _mismatched(case: _Case, mismatch: Mismatch) -> Verdict:
    """A script in which ranks called different operations: a bug, and no node's fault."""
    cause = Cause.SKIPPED_COLLECTIVE if mismatch.is_skip else Cause.MISMATCHED_COLLECTIVE
    ranks = [rank for rank in mismatch.culprits if rank in case.states]
    tied = len(ranks) if mismatch.is_tie else 1
    sure = confidence(OUTVOTED, 0.0, known_share=case.known_share, tied=tied)
    suspects = [
        Suspect(rank, case.states[rank].report.node, case.states[rank].report.gpu, cause, sure) for rank in ranks
    ]
    skip = f" {ranks_words(ranks, is_start=True)} skipped one operation." if mismatch.is_skip else ""
    tie = " No majority tells which side is right." if mismatch.is_tie else ""
    return replace(
        _base(case, case.graph.waits),
        suspects=_ordered(suspects),
        owner=Owner.JOB,
        cause=cause,
        stuck_at=StuckAt.HOST,
        summary=mismatch.in_words() + skip + tie,
        seq=mismatch.seq,
        op=mismatch.expected[0] if mismatch.expected else "",
        group=mismatch.group_words.removeprefix("group "),
        evidence=(*mismatch_evidence(case.job, mismatch), *_host_evidence(case, ranks)),
    )


def _circle(case: _Case) -> Verdict:
    """Ranks that wait for one another: one of them went past what the others are in."""
    waits = [wait for wait in case.graph.waits if wait.targets and not wait.is_weak and not wait.is_left]
    scores = _minority_scores(waits)
    outside = [rank for rank in scores if _is_outside(case, rank)]
    if not waits or (outside and len(outside) < len(scores)):
        # An operation that runs beside its caller makes it look as if it waited; its stack knows better.
        on = {rank: [wait for wait in waits if rank in wait.targets] for rank in sorted(outside)}
        return _blame(case, on) if waits else _unknown(case)
    tied = _went_past(case, scores)
    is_tie = len(tied) > 1
    sure = confidence(LOCALISED_IN_CIRCLE, 0.0, known_share=case.known_share, tied=len(tied))
    suspects = [
        Suspect(rank, case.states[rank].report.node, case.states[rank].report.gpu, Cause.SKIPPED_COLLECTIVE, sure)
        for rank in tied
    ]
    on_them = [wait for wait in waits if set(wait.targets) & set(tied)]
    return replace(
        _base(case, [w for w in on_them if w.rank not in tied] or on_them or waits),
        suspects=_ordered(suspects),
        owner=Owner.JOB,
        cause=Cause.SKIPPED_COLLECTIVE,
        stuck_at=StuckAt.HOST,
        summary=_circle_words(tied, waits, is_tie),
        evidence=(*_wait_evidence(case, waits), *_host_evidence(case, tied)),
    )


def _is_outside(case: _Case, rank: int) -> bool:
    """Whether a rank is seen neither in a collective nor anywhere else in torch, doing nothing that may take long."""
    state = case.states.get(rank)
    stack = main_thread(state.stacks) if state else None
    return state is not None and stack is not None and is_outside_torch(stack) and not host_state(state).benign


def _went_past(case: _Case, scores: Mapping[int, float]) -> list[int]:
    """Who left something out: those that departed from their own habit; where that tells nothing, those on the
    smaller side of most waits."""
    known = {rank: score for rank, score in scores.items() if rank in case.states}
    strays = set(departing(case.states[rank] for rank in known))
    known = {rank: score for rank, score in known.items() if not strays or rank in strays}
    best = max(known.values(), default=0.0)
    return sorted(rank for rank, score in known.items() if score == best)


def _minority_scores(waits: Iterable[Wait]) -> dict[int, float]:
    """rank → in how many collectives of the circle it stands on the smaller side; half where the sides are equal."""
    sides: dict[tuple[str, int], tuple[set[int], set[int]]] = {}
    for wait in waits:
        inside, behind = sides.setdefault((wait.group.key, wait.seq), (set(), set()))
        inside.add(wait.rank)
        behind.update(wait.targets)
    scores: dict[int, float] = {}
    for inside, behind in sides.values():
        for side, other in ((inside, behind), (behind, inside)):
            for rank in side:
                share = 1.0 if len(side) < len(other) else 0.5 if len(side) == len(other) else 0.0
                scores[rank] = scores.get(rank, 0.0) + share
    return scores


def _circle_words(tied: list[int], waits: Sequence[Wait], is_tie: bool) -> str:
    missed = next((w for w in waits if set(w.targets) & set(tied) and w.rank not in tied), waits[0])
    own = next((w for w in waits if w.rank in tied), waits[0])
    if is_tie:
        return (
            f"{ranks_words(tied, is_start=True)} wait for one another: rank {missed.rank} in {entry_words(missed)}, "
            f"rank {own.rank} in {entry_words(own)}; the order of calls differs, and no majority tells whose is right."
        )
    waiting = sorted({w.rank for w in waits if w.group.key == missed.group.key and w.rank not in tied})
    return (
        f"Rank {tied[0]} skipped {entry_words(missed)}, in which {ranks_words(waiting)} "
        f"wait{'s' if len(waiting) == 1 else ''}, and waits in {entry_words(own)} instead."
    )


def _symmetric(case: _Case) -> Verdict:
    waits = case.graph.complete()
    wait = max(waits, key=lambda w: w.age_seconds)
    words = (
        f"All ranks of {entry_words(wait)} have entered it and it has not completed for {wait.age_seconds:.1f} s: "
        f"the device or the network, and nothing tells which rank."
    )
    return replace(
        _base(case, waits),
        owner=Owner.UNKNOWN,
        cause=Cause.DEVICE,
        stuck_at=StuckAt.DEVICE,
        summary=words,
        evidence=_wait_evidence(case, waits),
    )


def _unknown(case: _Case) -> Verdict:
    """Honest ignorance: somebody waits, and what would explain it cannot be seen."""
    unknown = case.stall.unknown
    about = f"nothing fresh is known of {ranks_words(unknown)}" if unknown else "the evidence names nobody"
    waiting = case.stall.waiting
    who = f"{ranks_words(waiting, is_start=True)} {have(len(waiting))}" if waiting else "The job has"
    return replace(
        _base(case, case.graph.waits),
        certainty=Certainty.SUSPECT,
        summary=f"{who} waited {case.stall.waited_seconds:.1f} s; {about}.",
        evidence=_wait_evidence(case, case.graph.waits),
    )


def _base(case: _Case, waits: Sequence[Wait]) -> Verdict:
    """What every verdict on this stall says; the waits tell where the others are."""
    first = max(waits, key=lambda wait: (wait.age_seconds, -wait.rank), default=None)
    waiting = tuple(sorted({wait.rank for wait in waits}))
    onset = max(
        (wait.age_seconds + case.states[wait.rank].report_age_seconds for wait in waits),
        default=case.stall.onset_age_seconds,
    )
    return Verdict(
        kind=Kind.HANG,
        certainty=case.stall.certainty,
        summary="",
        suspects=(),
        owner=Owner.UNKNOWN,
        evidence=(),
        job=case.job.job,
        run=case.job.run,
        attempt=case.job.attempt,
        onset_step=case.stall.step,
        onset_age_seconds=onset,
        waiting_ranks=waiting,
        group=f"{first.group.description} ({first.group.key})".lstrip() if first else "",
        seq=first.seq if first else None,
        op=first.group.op if first else "",
        cost_gpu_seconds=round(onset * case.job.world_size, 3),
    )


def _wait_evidence(case: _Case, waits: Sequence[Wait]) -> tuple[Evidence, ...]:
    longest = sorted(waits, key=lambda wait: (-wait.age_seconds, wait.rank))[:WAITS_SHOWN_MAX]
    return tuple(_wait_line(case.states[wait.rank], wait) for wait in longest)


def _wait_line(state: RankState, wait: Wait) -> Evidence:
    missing = f"{ranks_words(wait.targets)} {have(len(wait.targets))} not." if wait.targets else "all have."
    return Evidence(
        text=f"Rank {wait.rank} entered {entry_words(wait)} {wait.age_seconds:.1f} s before it was read; {missing}",
        node=state.report.node,
        rank=wait.rank,
        source="rank-record",
        age_seconds=state.report_age_seconds,
        fields={
            "seq": wait.seq,
            "op": wait.group.op,
            "group_key": wait.group.key,
            "wait_seconds": wait.age_seconds,
        },
    )


def _host_evidence(case: _Case, ranks: Sequence[int]) -> tuple[Evidence, ...]:
    return tuple(item for rank in ranks if rank in case.states for item in host_state(case.states[rank]).evidence)


def _ordered(suspects: Sequence[Suspect]) -> tuple[Suspect, ...]:
    return tuple(sorted(suspects, key=lambda s: (-s.confidence, -1 if s.rank is None else s.rank)))
