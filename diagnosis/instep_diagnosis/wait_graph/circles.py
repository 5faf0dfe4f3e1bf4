"""Ranks whose calls cannot be brought into one order: they wait for one another, or some went past the rest."""

from __future__ import annotations

from itertools import combinations

from instep_diagnosis.detectors.confidence import LOCALISED_IN_CIRCLE, OUTVOTED, confidence
from instep_diagnosis.detectors.words import ranks_words
from instep_diagnosis.verdict import Cause, StuckAt
from instep_diagnosis.wait_graph.finding import Finding, about, known_share, op_words, placed, wait_lines, wait_verb
from instep_diagnosis.wait_graph.graph import OpenOp, OpKey, WaitGraph
from instep_diagnosis.wait_graph.history import History
from instep_diagnosis.wait_graph.order import find_past, peers_order, peers_say


def gone_past(history: History, graph: WaitGraph) -> Finding | None:
    """Ranks that entered an operation which the others entered only after the one that they wait in."""
    found = [past for op in graph.ops.values() if (past := find_past(history, graph, op))]
    if not found:
        return None
    past = min(found, key=lambda p: (p.is_tied, p.is_by_peers, -len(p.op.group.members), p.op.group.key))
    culprits, op = past.culprits, past.op
    tie = " No majority tells which side is right." if past.is_tied else ""
    tied = len(culprits) if past.is_tied else 1
    finding = Finding(
        culprits=culprits,
        kind=StuckAt.HOST,
        cause=Cause.SKIPPED_COLLECTIVE,
        verdict=(
            f"Calls differ, a fault of the script: {ranks_words(past.before)} entered {op_words(op)} before "
            f"{past.later_words(history)}, {ranks_words(past.after)} entered the latter without it.{tie}"
        ),
        confidence=confidence(OUTVOTED, 0.0, known_share=known_share(history), tied=tied),
        evidence=(*wait_lines(graph, [op]), *about(history)),
        is_tied=past.is_tied,
    )
    return placed(finding, op, graph)


def circle(history: History, graph: WaitGraph) -> Finding | None:
    """Ranks that wait for one another: those on the smaller side of most waits went past what the others are in."""
    ops = [op for op in graph.ops.values() if op.behind]
    circle = _in_circle(graph)
    scores: dict[int, float] = {}
    for op in ops:
        inside, behind = set(op.waiting) & circle, set(op.behind) & circle
        for side, other in ((inside, behind), (behind, inside)):
            share = 1.0 if len(side) < len(other) else 0.5 if len(side) == len(other) else 0.0
            for rank in side:
                scores[rank] = scores.get(rank, 0.0) + share
    if not scores:
        return None
    best = max(scores.values())
    culprits = tuple(sorted(rank for rank, score in scores.items() if score == best))
    culprits = _told_by_peers(history, graph, ops, culprits) or culprits
    is_tied = len(culprits) > 1
    first = max((op for op in ops if set(op.behind) & set(culprits)), key=lambda op: len(op.waiting), default=ops[0])
    tie = ", and no majority tells whose order is right" if is_tied else ""
    finding = Finding(
        culprits=culprits,
        kind=StuckAt.HOST,
        cause=Cause.SKIPPED_COLLECTIVE,
        verdict=(
            f"Ranks wait for one another in a circle, a fault of the script: {ranks_words(culprits)} went past "
            f"{op_words(first)}, in which {ranks_words(first.waiting)} {wait_verb(first.waiting)}{tie}."
        ),
        confidence=confidence(LOCALISED_IN_CIRCLE, 0.0, known_share=known_share(history), tied=len(culprits)),
        evidence=(*wait_lines(graph, ops), *about(history)),
        is_tied=is_tied,
    )
    return placed(finding, first, graph)


def _told_by_peers(history: History, graph: WaitGraph, ops: list[OpenOp], tied: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a tie that did otherwise than groups of the same kind; empty where these are silent or differ."""
    found: set[int] = set()
    for op in ops:
        for rank in set(op.behind) & set(tied):
            said = {peers_say(history, graph, op, key) for key in graph.heads(rank)}
            if said == {True}:
                found.add(rank)
            elif said == {False}:
                found.update(set(op.waiting) & set(tied))
    return tuple(sorted(found))


def _in_circle(graph: WaitGraph) -> set[int]:
    """Ranks that wait for themselves in the end: those left when ranks nobody left waits for are taken away again and
    again, from either end."""
    waits = {rank: {t for key in keys for t in graph.ops[key].behind} for rank, keys in graph.waits.items()}
    left = {rank for rank, targets in waits.items() if targets}
    while True:
        waited = {target for rank in left for target in waits[rank]}
        kept = {rank for rank in left if rank in waited and waits[rank] & left}
        if kept == left:
            return left
        left = kept


def disordered(history: History, graph: WaitGraph) -> Finding | None:
    """Ranks that all have entered the same two operations, in different orders, so that neither completes."""
    sides: dict[tuple[OpKey, OpKey], dict[bool, list[int]]] = {}
    for rank, keys in sorted(graph.waits.items()):
        # Sends and receives of one batch have no order among them.
        together = [key for key in keys if graph.ops[key].is_together and not graph.ops[key].group.is_transfer]
        if not graph.is_ordered[rank]:
            continue
        for one, other in combinations(together, 2):
            pair = (min(one, other), max(one, other))
            sides.setdefault(pair, {}).setdefault(one < other, []).append(rank)
    split = {pair: found for pair, found in sides.items() if len(found) == 2}
    if not split:
        return None
    pair, found = max(split.items(), key=lambda entry: (abs(len(entry[1][True]) - len(entry[1][False])), entry[0]))
    few, many = sorted(found.values(), key=len)
    order = peers_order(history, *pair, apart_from={*few, *many}) if len(few) == len(many) else None
    if order is not None:
        few, many = found[not order], found[order]
    is_tied = len(few) == len(many) and order is None
    culprits = tuple(sorted([*few, *many] if is_tied else few))
    first, second = (graph.ops[key] for key in pair)
    tie = " No majority tells whose order is right." if is_tied else ""
    finding = Finding(
        culprits=culprits,
        kind=StuckAt.HOST,
        cause=Cause.MISMATCHED_COLLECTIVE,
        verdict=(
            f"Wrong order, a fault of the script: {ranks_words(few)} and {ranks_words(many)} called "
            f"{op_words(first)} and {op_words(second)} in different orders, so that neither completes.{tie}"
        ),
        confidence=confidence(OUTVOTED, 0.0, known_share=known_share(history), tied=len(culprits) if is_tied else 1),
        evidence=(*wait_lines(graph, (first, second)), *about(history)),
        is_tied=is_tied,
    )
    return placed(finding, first, graph)
