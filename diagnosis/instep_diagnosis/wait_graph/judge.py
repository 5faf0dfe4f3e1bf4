"""The verdict on a hang from evidence on file. Order of judgement: a script that called different operations; ranks
that hold up what the others completed, or that others wait for while they wait for nobody; ranks without evidence that
explain the rest; a circle of waits; an operation that all entered. *Unknown* is an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

from instep_diagnosis.detectors.calibration import calibrated
from instep_diagnosis.detectors.confidence import LOCALISED, LOCALISED_WEAKLY, OUTVOTED, confidence
from instep_diagnosis.detectors.words import have, ranks_words
from instep_diagnosis.verdict import Cause, StuckAt
from instep_diagnosis.wait_graph.circles import circle, disordered, gone_past
from instep_diagnosis.wait_graph.finding import (
    Finding,
    about,
    group_words,
    in_short,
    known_share,
    op_words,
    ops_on,
    placed,
    wait_lines,
    wait_verb,
    waiting,
)
from instep_diagnosis.wait_graph.graph import OpenOp, WaitGraph, wait_graph
from instep_diagnosis.wait_graph.habit import out_of_habit, told_by_habit
from instep_diagnosis.wait_graph.history import History
from instep_diagnosis.wait_graph.order import seen_past
from instep_diagnosis.wait_graph.process import process_cause
from instep_diagnosis.wait_graph.signatures import Mismatch, find_mismatches

SILENT_COMBINED_MAX = 12
"""Silent ranks among which the smallest explanation is looked for; beyond them all that could be it are named."""
WITNESSES_MIN = 2
"""Operations that wait for one absent rank alone: so many say more of it than that its file is lost."""
ABSENT_SURE_MAX = 0.85
"""Of single ranks named for their absence in simulated jobs that lost files by chance too, 88 % of 244 were right."""
_EITHER = (
    "Were its evidence only lost, and the rank in the operation with the others, all else would look the same: then it "
    "is the device or the network, and nobody. See whether its process lives."
)
_HIDDEN = "gloo's recorder lists no sends and receives: a rank with nothing outstanding may wait in one for another."
_FROZEN = frozenset({Cause.STOPPED, Cause.DEAD, Cause.UNINTERRUPTIBLE})
_HOST, _DEVICE = 0.5, 0.8
_ABSENT, _ABSENT_FROM_ALL, _ABSENT_BESIDE_OTHERS = 0.55, 0.85, 0.7
"""The same of a rank that left nothing: one operation waits for it; several do; several, and other files are lost."""
"""How surely each kind of evidence alone shows that a rank does not go on (`detectors.confidence`)."""


def localise(history: History) -> Finding:
    """Who keeps a job waiting, with measured confidence (`detectors.calibration`).

    Ranks that wait are never blamed, unless all wait in a circle. A rank without evidence is blamed only where no rank
    with evidence explains the waits.
    """
    found = localise_uncalibrated(history)
    if not found.culprits:
        return found
    tied = len(found.culprits) if found.is_tied else 1
    # Measured on dumps: a source that is trusted less stays so.
    sure = calibrated("hang", found.confidence * tied / history.trust) * history.trust
    if found.is_by_absence:
        sure = min(sure, ABSENT_SURE_MAX * history.trust)
    return replace(found, confidence=round(sure / tied, 3))


def localise_uncalibrated(history: History) -> Finding:
    """The same with the strength of the evidence for confidence: what a calibration is fitted on."""
    graph = wait_graph(history)
    found = (
        _frozen(history, graph)
        or _mismatched(history, graph)
        or gone_past(history, graph)
        or _stuck(history, graph)
        or (out_of_habit(history, graph) if history.silent else None)
        or _silent(history, graph)
        or circle(history, graph)
        or disordered(history, graph)
        or _symmetric(history, graph)
    )
    return told_by_habit(history, graph, found or _nothing(history, graph))


def _frozen(history: History, graph: WaitGraph) -> Finding | None:
    """Ranks whose process is seen not to go on, wherever they stand, where somebody waits beside them."""
    frozen = sorted(rank for rank, known in history.ranks.items() if process_cause(known.process) in _FROZEN)
    if history.source != "flight-recorder":  # there a silence is told with a file's name, which may be any word
        frozen += sorted(rank for rank, why in history.silent.items() if process_cause(why) in _FROZEN)
    victims = waiting(graph, frozen)
    if not frozen or not victims or len(frozen) > len(victims):
        return None
    process = {rank: history.ranks[rank].process if rank in history.ranks else history.silent[rank] for rank in frozen}
    ops = ops_on(graph, frozen)
    finding = Finding(
        culprits=tuple(sorted(frozen)),
        kind=StuckAt.HOST,
        cause=process_cause(process[frozen[0]]),
        verdict=(
            f"{ranks_words(frozen, is_start=True)} {'does' if len(frozen) == 1 else 'do'} not go on: "
            f"{', '.join(sorted(set(process.values())))}; {ranks_words(victims)} {wait_verb(victims)}."
        ),
        confidence=confidence(LOCALISED, 0.9, known_share=known_share(history)),
        evidence=(
            *in_short([f"Rank {rank}: {words}." for rank, words in sorted(process.items())], "ranks"),
            *wait_lines(graph, ops),
            *about(history),
        ),
    )
    return placed(finding, ops[0] if ops else None, graph)


def _mismatched(history: History, graph: WaitGraph) -> Finding | None:
    mismatches = find_mismatches(history)
    if not mismatches or not graph.ops:
        return None
    first = mismatches[0]
    is_tied = first.expected is None
    # Others count where they say as surely that somebody else erred too, and not of this one's followers.
    alike = [m for m in mismatches if not is_tied and m.expected is not None and m.is_by_peers == first.is_by_peers]
    involved = set(first.called)
    blamed = list(first.culprits)
    for other in alike[1:]:
        if not involved & set(other.called):
            blamed.extend(other.culprits)
            involved |= set(other.called)
    culprits = tuple(sorted(set(blamed)))
    cause = Cause.SKIPPED_COLLECTIVE if first.is_skip else Cause.MISMATCHED_COLLECTIVE
    tie = " No majority tells which side is right." if is_tied else ""
    share = min(known_share(history), history.trust * first.seen_share)
    return Finding(
        culprits=culprits,
        kind=StuckAt.HOST,
        cause=cause,
        verdict=_mismatch_words(first) + tie,
        confidence=confidence(OUTVOTED, 0.0, known_share=share, tied=len(culprits) if is_tied else 1),
        evidence=(*in_short(_mismatch_lines(mismatches), "mismatches"), *wait_lines(graph), *about(history)),
        is_tied=is_tied,
        waiting=waiting(graph, culprits),
        group=first.group.description or first.group.key,
        members=first.group.members,
        seq=first.seq,
        op=first.expected[0] if first.expected else "",
    )


def _mismatch_words(mismatch: Mismatch) -> str:
    sides: dict[str, list[int]] = {}
    for rank, signature in mismatch.called.items():
        sides.setdefault(" ".join(word for word in signature if word), []).append(rank)
    ordered = sorted(sides.items(), key=lambda side: (-len(side[1]), side[1]))
    parts = [f"{ranks_words(ranks)} called {words}" for words, ranks in ordered]
    skip = f" {ranks_words(mismatch.culprits, is_start=True)} left one operation out." if mismatch.is_skip else ""
    peers = " Other groups of its kind tell which side is right." if mismatch.is_by_peers else ""
    return (
        f"Wrong {mismatch.what}, a fault of the script: under seq {mismatch.seq} of {group_words(mismatch.group)} "
        f"{' and '.join(parts)}.{skip}{peers}"
    )


def _mismatch_lines(mismatches: Sequence[Mismatch]) -> list[str]:
    return [
        f"Under seq {m.seq} of {group_words(m.group)} {ranks_words(m.culprits)} "
        f"{'differs' if len(m.culprits) == 1 else 'differ'} in {m.what}"
        f"{' (no majority)' if m.expected is None else ''}."
        for m in mismatches
    ]


def _stuck(history: History, graph: WaitGraph) -> Finding | None:
    """Ranks that hold up the others, on the device or on the host."""
    lagging = _lagging(history, graph)
    sinks = {rank for rank in graph.behind() if not graph.is_blocked(rank)} - set(lagging)
    host = sorted(rank for rank in sinks if rank not in graph.unsure and not _is_held(graph, rank))
    seen_to_call = [rank for rank in host if not history.ranks[rank].may_transfer]
    host = seen_to_call or host
    silent = _hiding_silent(history, graph, host) if not lagging else []
    culprits = tuple(sorted({*lagging, *host, *silent}))
    if not culprits:
        return None
    kind = StuckAt.DEVICE if lagging else StuckAt.HOST
    ops = ops_on(graph, culprits)
    first = ops[0] if ops else None
    is_hidden = bool(silent) or _may_hide(history, host)
    is_tied = is_hidden and len(culprits) > 1
    localised = LOCALISED_WEAKLY if is_hidden else LOCALISED
    sure = _DEVICE if lagging else 0.0 if is_hidden else _HOST
    finding = Finding(
        culprits=culprits,
        kind=kind,
        cause=Cause.DEVICE if lagging else _host_cause(history, host),
        verdict=_stuck_words(history, graph, lagging, host, first),
        confidence=confidence(localised, sure, known_share=known_share(history), tied=len(culprits) if is_tied else 1),
        is_tied=is_tied,
        evidence=(
            *([_HIDDEN] if is_hidden else []),
            *([_alone_words(first)] if is_tied and first and len(graph.waits) == 1 else []),
            *in_short([_culprit_line(history, graph, rank) for rank in culprits if rank in history.ranks], "ranks"),
            *wait_lines(graph, ops),
            *about(history),
        ),
    )
    return placed(finding, first, graph)


def _alone_words(op: OpenOp) -> str:
    """What is not seen from the dumps of a pipeline over gloo: whether the one is ahead, or the others are behind."""
    rank = op.waiting[0]
    return f"Rank {rank} waits alone: if its {op.op or 'operation'} is one call too many, rank {rank} is to blame."


def _may_hide(history: History, host: Sequence[int]) -> bool:
    """Whether one of these may sit in a transfer that is not on record. Its job's transfers are counted once one has
    been sent: before that, of several ranks of gloo with nothing outstanding one may wait for the other."""
    is_counted = any(history.ranks[rank].has_hidden_transfers for rank in host)
    return is_counted or (len(host) > 1 and not any(history.ranks[rank].has_device for rank in host))


def _hiding_silent(history: History, graph: WaitGraph, host: Sequence[int]) -> list[int]:
    """Ranks without evidence for which ranks with nothing outstanding may wait in a transfer that is not on record."""
    known = [history.ranks[rank] for rank in host]
    if not any(one.has_hidden_transfers or one.has_idle_groups for one in known):
        return []
    entered = {rank for ranks in graph.entered.values() for rank in ranks}
    return sorted(rank for rank in history.silent if rank not in entered)


def _lagging(history: History, graph: WaitGraph) -> list[int]:
    """Ranks on whose device an operation stands that the others have completed, or that alone has not begun it."""
    found: set[int] = set()
    for op in graph.ops.values():
        if op.is_completed_elsewhere and not op.is_rooted:
            found.update(rank for rank in op.waiting if history.ranks[rank].has_device)
        elif (op.started or _is_beside_silence(op)) and not (op.behind or op.is_completed_elsewhere):
            # Also beside ranks without a dump: that one has not begun what its peers have is seen, their death is not.
            found.update(rank for rank in op.waiting if _is_unstarted(graph, rank, op))
    return sorted(found)


def _is_beside_silence(op: OpenOp) -> bool:
    """Whether one member alone is on record, and waits: a device begins an operation without its peers, so that it says
    something by itself that this one has not."""
    return len(op.waiting) == 1 and len(op.unseen) + 1 == len(op.group.members)


def _is_unstarted(graph: WaitGraph, rank: int, op: OpenOp) -> bool:
    """Whether a rank's device has not begun what is first in its queue, while others' have."""
    key = (op.group.key, op.seq)
    if rank in op.started or rank not in graph.has_timing or key not in graph.heads(rank):
        return False
    if not graph.is_ordered[rank] and graph.is_blocked(rank):
        return False
    return not any(rank in graph.ops[other].started for other in graph.heads(rank))


def _is_held(graph: WaitGraph, rank: int) -> bool:
    """Whether a rank that others wait for is itself held up in an operation that all have entered."""
    return any(rank not in graph.leads_to(key) for key in graph.waits.get(rank, ()) if graph.ops[key].is_together)


def _host_cause(history: History, ranks: Iterable[int]) -> Cause:
    causes = {process_cause(history.ranks[rank].process) for rank in ranks}
    return causes.pop() if len(causes) == 1 else Cause.UNKNOWN


def _stuck_words(
    history: History, graph: WaitGraph, lagging: Sequence[int], host: Sequence[int], first: OpenOp | None
) -> str:
    parts = []
    if lagging:
        parts.append(
            f"{ranks_words(lagging, is_start=True)} {'is' if len(lagging) == 1 else 'are'} stuck on the device: "
            f"launched, and not completed as by the others"
        )
    if host:
        where = f"never entered {op_words(first)}" if first and not lagging else "never entered what the others wait in"
        parts.append(f"{ranks_words(host, is_start=not parts)} {where}: stuck on the host")
    victims = waiting(graph, (*lagging, *host))
    who = f"; {ranks_words(victims)} {wait_verb(victims)}" if victims else ""
    return f"{', and '.join(parts)}{who}."


def _culprit_line(history: History, graph: WaitGraph, rank: int) -> str:
    known = history.ranks[rank]
    process = f" Its process: {known.process}." if known.process else ""
    waits = graph.waits.get(rank, ())
    if waits:
        op = graph.ops[waits[0]]
        state = "which the others have completed" if op.is_completed_elsewhere else "which has not completed"
        return f"Rank {rank} has launched {op_words(op)}, {state}.{process}"
    last = known.calls[-1] if known.calls else None
    if last is None:
        return f"Rank {rank} has nothing outstanding on record.{process}"
    words = f"{last.op} seq {last.seq} of {group_words(history.groups[last.group])}"
    return f"Rank {rank} has nothing outstanding; the last on record is {words}.{process}"


def _silent(history: History, graph: WaitGraph) -> Finding | None:
    """Ranks without evidence that others wait for, where nobody with evidence explains the waits.

    A rank that is absent and one that sits in an operation which nobody completes leave the same evidence of all
    others. One that alone left nothing is named, as what keeps a rank from calling keeps it from writing too. Where
    more is lost than it, that says little, and it is named only if several operations wait for nobody else.
    """
    unseen = {key: _absent_from(history, graph, op) for key, op in graph.ops.items()}
    open_keys = [key for key, op in graph.ops.items() if unseen[key] and _is_all_else_known(history, op)]
    heads = {key for rank in graph.waits for key in graph.heads(rank)}
    chosen = [key for key in open_keys if key in heads] or open_keys
    if not chosen:
        return None
    culprits, _ = _smallest_explanation([unseen[key] for key in chosen])
    ops = [graph.ops[key] for key in open_keys if unseen[key] & set(culprits)]
    witnesses = sum(unseen[key] == set(culprits) for key in chosen)
    why = sorted({history.silent.get(rank, "no dump") for rank in culprits})
    absent = (
        f"{ranks_words(culprits, is_start=True)} left nothing to read ({', '.join(why)}) and {have(len(culprits))} "
        f"not been seen to enter {op_words(ops[0])}"
    )
    evidence = (*wait_lines(graph, ops), *about(history))
    is_alone, is_witnessed = len(history.silent) == 1, witnesses >= WITNESSES_MIN
    if len(culprits) == 1 and not (is_alone or is_witnessed):
        words = f"{absent}: look there first. As {len(history.silent)} ranks left nothing, that alone accuses nobody."
        return placed(Finding((), StuckAt.UNKNOWN, Cause.UNKNOWN, words, 0.0, evidence), ops[0], graph)
    # Of several one may wait for another where nobody sees it, so that each alone could hold up all.
    is_tied = len(culprits) > 1
    is_of_counters = history.source != "flight-recorder" and len(why) == 1
    tie = " Nothing tells which of them." if is_tied else ""
    finding = Finding(
        culprits=culprits,
        kind=StuckAt.HOST,
        cause=Cause.DEAD if why == ["no dump"] else process_cause(why[0]) if is_of_counters else Cause.UNKNOWN,
        verdict=f"{absent}: dead, or its recorder is frozen.{tie}",
        confidence=confidence(
            _ABSENT if not is_witnessed else _ABSENT_FROM_ALL if is_alone else _ABSENT_BESIDE_OTHERS,
            0.0,
            known_share=known_share(history),
            tied=len(culprits) if is_tied else 1,
        ),
        evidence=(_EITHER, *evidence),
        is_tied=is_tied,
        is_by_absence=True,
    )
    return placed(finding, ops[0], graph)


def _absent_from(history: History, graph: WaitGraph, op: OpenOp) -> set[int]:
    """Ranks without evidence whose absence would explain an open operation. None where those that wait in it have not
    begun it, though their devices' starts are on record: they do not wait for others."""
    if op.waiting and all(_is_unstarted(graph, rank, op) for rank in op.waiting):
        return set()
    absent = set(op.unseen) if op.group.is_listed else set(history.silent)
    return absent - seen_past(history, graph, op)


def _is_all_else_known(history: History, op: OpenOp) -> bool:
    """Whether silence alone explains an open operation: all others are known to have entered it, and where evidence may
    leave out any of a rank's counters, to wait in it."""
    if op.behind or not set(op.unseen) <= set(history.silent):
        return False
    return history.source == "flight-recorder" or set(op.group.members) <= {*op.waiting, *op.unseen}


def _smallest_explanation(unexplained: Sequence[set[int]]) -> tuple[tuple[int, ...], bool]:
    """The fewest ranks of which one is in each set; all that are in one of several equal answers, and whether so.

    >>> _smallest_explanation([{1, 2}, {2}])
    ((2,), False)
    >>> _smallest_explanation([{1, 2}])
    ((1, 2), True)
    """
    distinct = {frozenset(ranks) for ranks in unexplained}
    everyone = sorted(set().union(*distinct))
    if len(everyone) > SILENT_COMBINED_MAX:
        return tuple(everyone), True
    for count in range(1, len(everyone) + 1):
        found = [chosen for chosen in combinations(everyone, count) if all(set(chosen) & ranks for ranks in distinct)]
        if found:
            return tuple(sorted({rank for chosen in found for rank in chosen})), len(found) > 1
    return tuple(everyone), True


def _symmetric(history: History, graph: WaitGraph) -> Finding | None:
    ops = [op for op in graph.ops.values() if op.is_together or op.is_completed_elsewhere]
    stuck = [op for op in ops if not graph.leads_to((op.group.key, op.seq))] or ops
    if not stuck:
        return None
    first = max(stuck, key=lambda op: (len(op.waiting), op.group.key))
    finding = Finding(
        culprits=(),
        kind=StuckAt.DEVICE,
        cause=Cause.UNKNOWN,
        verdict=(
            f"All members have launched {op_words(first)} and it does not complete: the device or the network, and "
            f"nothing tells which rank."
        ),
        confidence=0.0,
        evidence=(*wait_lines(graph, stuck), *about(history)),
    )
    return placed(finding, first, graph)


def _nothing(history: History, graph: WaitGraph) -> Finding:
    is_hang = bool(graph.ops)
    words = "Ranks wait, and the evidence names nobody." if is_hang else "Nothing on record waits: no hang is seen."
    may_hide = any(one.has_hidden_transfers or one.has_idle_groups for one in history.ranks.values())
    lines = (*([_HIDDEN] if may_hide else []), *wait_lines(graph), *about(history))
    return Finding((), StuckAt.UNKNOWN, Cause.UNKNOWN, words, 0.0, lines, is_hang=is_hang, waiting=waiting(graph, ()))
