"""Whose calls depart from what the rank itself always called, where counting ranks tells nothing.

A training step repeats, so a rank's own past foretells its next call, also where it has one peer only. The rank that
breaks its habit is to blame as long as others keep theirs; where all do something new, the script has come to
something new, and that accuses nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf

from instep_diagnosis.detectors.confidence import BY_HABIT, LOCALISED_WEAKLY, confidence
from instep_diagnosis.detectors.habits import HISTORY_CALLS_MAX, RANKS_COMPARED_MAX, surprise
from instep_diagnosis.detectors.words import ranks_words
from instep_diagnosis.verdict import Cause, StuckAt
from instep_diagnosis.wait_graph.finding import (
    Finding,
    about,
    known_share,
    op_words,
    ops_on,
    placed,
    wait_lines,
    waiting,
)
from instep_diagnosis.wait_graph.graph import WaitGraph
from instep_diagnosis.wait_graph.history import History, Progress, RankHistory, Signature

ASSUMED_DONE_CALLS = 8
"""Newest calls of a gloo rank that may be open though a later one of their group makes them out to be done."""
SURPRISE_MIN = 2
"""Calls: a run of one is met by chance."""
SURPRISE_ALONE_MIN = 5
"""The same where nothing else disputes the call, unless so many are not on record: a ring that holds less than a step
makes for runs of 3."""
EARLY_RATIO, USUAL_RATIO = 0.7, 0.9
EARLY_SAMPLES_MIN = 12
"""A call is too early that follows the one before within the first share of the least time it ever took, of so many;
from the second on it is as usual, and between them it may be either."""
_OF_CALLS = (Cause.SKIPPED_COLLECTIVE, Cause.MISMATCHED_COLLECTIVE)


def told_by_habit(history: History, graph: WaitGraph, found: Finding) -> Finding:
    """The finding, or the one rank's or side's whose habit is broken where the finding is a tie or names nobody."""
    if found.is_tied or not found.culprits or _may_hide_a_transfer(history, found):
        found = _too_early(history, graph, found) or found
    if not found.culprits and found.is_hang:
        return _alone(history, graph, found) or found
    if not found.is_tied or found.cause not in _OF_CALLS:
        return found
    known = [history.ranks[rank] for rank in found.culprits if rank in history.ranks]
    odd = _odd(known)
    if len(known) < len(found.culprits) or not odd:
        return found
    words = found.verdict.partition(" No majority")[0].partition(", and no majority")[0].rstrip(".")
    others = ranks_words([rank for rank in found.culprits if rank not in odd])
    return replace(
        found,
        culprits=odd,
        verdict=f"{words}. {ranks_words(odd, is_start=True)} never called so before, and {others} did nothing new.",
        confidence=round(confidence(BY_HABIT, 0.0, known_share=known_share(history)), 3),
        is_tied=False,
        waiting=tuple(sorted({*found.waiting, *found.culprits} - set(odd))),
    )


def out_of_habit(history: History, graph: WaitGraph) -> Finding | None:
    """The one rank that calls what it never called before, if it is one alone; it explains waits that would otherwise
    be laid on ranks of which there is no evidence. A rank beside which nobody left evidence is tied with its peers: the
    script may have come to something new."""
    known = [one for one in history.ranks.values() if one.calls]
    if len(known) == 1 and graph.ops and known[0].is_ordered:
        return _beside_silence(history, graph, known[0])
    return _alone(history, graph, None)


def _beside_silence(history: History, graph: WaitGraph, known: RankHistory) -> Finding | None:
    if _surprise(known) < SURPRISE_MIN:
        return None
    ops = sorted(graph.ops.values(), key=lambda op: op.seq)
    tied = tuple(sorted({known.rank, *(rank for op in ops for rank in op.unseen)}))
    finding = Finding(
        culprits=tied,
        kind=StuckAt.HOST,
        cause=Cause.SKIPPED_COLLECTIVE,
        verdict=f"Rank {known.rank} never called so before, and what the others called is not on record.",
        confidence=confidence(BY_HABIT, 0.0, known_share=known_share(history), tied=len(tied)),
        evidence=(*wait_lines(graph), *about(history)),
        is_tied=len(tied) > 1,
    )
    return placed(finding, ops[0], graph)


def _alone(history: History, graph: WaitGraph, found: Finding | None) -> Finding | None:
    known = [one for one in history.ranks.values() if one.calls]
    odd = _odd(known) if 2 * len(known) > len(history.world) else ()
    if len(odd) != 1 or not _is_surprising(history.ranks[odd[0]], is_beside_silence=bool(history.silent)):
        return None
    never = "never called so before, and the others did nothing new"
    ops = ops_on(graph, odd)
    finding = Finding(
        culprits=odd,
        kind=StuckAt.HOST,
        cause=Cause.SKIPPED_COLLECTIVE,
        verdict=f"Calls differ, a fault of the script: {ranks_words(odd)} {never}.",
        confidence=confidence(BY_HABIT, 0.0, known_share=known_share(history)),
        evidence=found.evidence if found else (*wait_lines(graph), *about(history)),
        waiting=waiting(graph, odd),
    )
    return placed(finding, ops[0] if ops else None, graph)


def _may_hide_a_transfer(history: History, found: Finding) -> bool:
    """Whether those blamed for not calling may wait in a transfer that is not on record, for the one who called."""
    blamed = [history.ranks[rank] for rank in found.culprits if rank in history.ranks]
    return found.cause not in _OF_CALLS and any(one.has_hidden_transfers or one.has_idle_groups for one in blamed)


def _too_early(history: History, graph: WaitGraph, found: Finding) -> Finding | None:
    """The one rank that waits in a call that it made far sooner after the one before than ever: one too many, or the
    next one with something left out. Where it is not far sooner, and nobody else waits, it is one of a tie. Of gloo's
    ranks alone, whose hosts do not run ahead."""
    haste = {one.rank: _haste(one) for one in history.ranks.values() if one.rank in graph.waits}
    early = [rank for rank, ratio in haste.items() if ratio < EARLY_RATIO]
    if len(early) != 1:
        return _doubted(history, found, haste) if len(haste) == 1 and found.culprits else None
    (rank,) = early
    op = graph.ops[graph.waits[rank][0]]
    finding = Finding(
        culprits=(rank,),
        kind=StuckAt.HOST,
        cause=Cause.SKIPPED_COLLECTIVE,
        verdict=(
            f"Calls differ, a fault of the script: rank {rank} called {op_words(op)} sooner after the call before than "
            f"it ever did, and the others did not."
        ),
        confidence=confidence(BY_HABIT, 0.0, known_share=known_share(history)),
        evidence=(*wait_lines(graph), *about(history)),
    )
    return placed(finding, op, graph)


def _doubted(history: History, found: Finding, haste: Mapping[int, float]) -> Finding | None:
    """The finding with the one rank that waits in the tie, where its call came sooner than ever."""
    ((rank, ratio),) = haste.items()
    if ratio >= USUAL_RATIO or rank in found.culprits:
        return None
    tied = tuple(sorted({*found.culprits, rank}))
    strength = confidence(LOCALISED_WEAKLY, 0.0, known_share=known_share(history), tied=len(tied))
    words = f"Rank {rank} called sooner after the call before than it ever did, and may have made one too many."
    return replace(
        found,
        culprits=tied,
        verdict=f"{found.verdict} {words}",
        confidence=round(strength, 3),
        is_tied=True,
        waiting=(),
    )


def _haste(one: RankHistory) -> float:
    """The time between a rank's last two calls by the least it ever was between such calls; large where that is not
    known."""
    calls = one.calls
    if one.has_device or len(calls) < EARLY_SAMPLES_MIN or not all(call.created_ns for call in calls[-2:]):
        return inf
    kinds = _in_short(one)
    past = [
        calls[place].created_ns - calls[place - 1].created_ns
        for place in range(1, len(calls) - 1)
        if (kinds[place - 1], kinds[place]) == (kinds[-2], kinds[-1])
    ]
    last = calls[-1].created_ns - calls[-2].created_ns
    return last / max(1, min(past)) if len(past) >= EARLY_SAMPLES_MIN else inf


def _odd(known: Iterable[RankHistory]) -> tuple[int, ...]:
    """Those of these ranks whose calls are the most surprising, where the others' are all known from their past.

    Empty where that does not tell them apart, where their order of calls is not on record, and where they are so many
    that to compare them would take seconds. At the beginning of a short ring everything is new: that alone is no more
    than a small surprise, and a rank whose past is not on record speaks for nobody.
    """
    compared = list(known)
    if len(compared) > RANKS_COMPARED_MAX or not all(one.is_ordered for one in compared):
        return ()
    surprises = {one.rank: _surprise(one) for one in compared}
    most = max(surprises.values(), default=0)
    odd = tuple(rank for rank, found in surprises.items() if found == most)
    others = [one for one in compared if one.rank not in odd]
    least = SURPRISE_MIN + 2 * max((surprises[one.rank] for one in others), default=0)
    return odd if others and most >= least and all(_is_known(one) for one in others) else ()


def _surprise(one: RankHistory) -> int:
    """Of a call that does not complete, or one after it: what completed has held up nobody."""
    first = _first_open(one)
    if not one.has_device:
        first = max(0, min(first, len(one.calls) - ASSUMED_DONE_CALLS))
    return surprise(_in_short(one), first)


def _is_surprising(one: RankHistory, *, is_beside_silence: bool) -> bool:
    """Whether the surprise is large by itself, or as a third of a short past foretold another call; the latter also in
    place of a rank without evidence, of which a dead one would leave no more."""
    share = max(SURPRISE_MIN, min(_first_open(one), HISTORY_CALLS_MAX) / 3.0)
    return _surprise(one) >= (share if is_beside_silence else min(SURPRISE_ALONE_MIN, share))


def _is_known(one: RankHistory) -> bool:
    """Whether the rank has called before everything that it waits in."""
    calls = _in_short(one)
    return all(call in calls[:place] for place, call in enumerate(calls[_first_open(one) :], _first_open(one)))


def _first_open(one: RankHistory) -> int:
    places = (place for place, call in enumerate(one.calls) if call.progress < Progress.COMPLETED)
    return next(places, len(one.calls))


def _in_short(one: RankHistory) -> list[tuple[str, str, Signature]]:
    return [(call.group, call.op, call.signature) for call in one.calls]
