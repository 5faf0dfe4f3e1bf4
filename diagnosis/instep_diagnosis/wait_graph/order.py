"""Did a rank go past an operation? It entered what others entered only later, and not what they entered before.

Two operations that the same ranks take part in are called in one order by all of them. A rank that is merely late has
entered neither; one that entered the later without the earlier left the earlier out, or the others added it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from instep_diagnosis.wait_graph.finding import group_words
from instep_diagnosis.wait_graph.graph import OpenOp, OpKey, WaitGraph, is_rooted
from instep_diagnosis.wait_graph.history import Call, Group, History, Progress


@dataclass(frozen=True, slots=True)
class Past:
    """One operation that some members entered and others went past."""

    op: OpenOp
    later: OpKey
    before: tuple[int, ...]
    """Ranks that entered the operation, then the later one."""
    after: tuple[int, ...]
    """Ranks that entered only the later one."""
    culprits: tuple[int, ...]
    is_tied: bool
    is_by_peers: bool

    def later_words(self, history: History) -> str:
        """The later operation, in words."""
        return f"seq {self.later[1]} of {group_words(history.groups[self.later[0]])}"


def find_past(history: History, graph: WaitGraph, op: OpenOp) -> Past | None:
    """Who went past an open operation, or None. Transfers are not compared: those of one batch have no order."""
    if op.group.is_transfer or not op.behind:
        return None
    later = _entered_later(history, graph, op)
    found: dict[OpKey, list[int]] = defaultdict(list)
    for rank in op.behind:
        passed = next((key for key in later if graph.entered[key[0]].get(rank, -1) >= key[1]), None)
        if passed is not None:
            found[passed].append(rank)
    if not found:
        return _crossed(history, graph, op)
    key, after = max(found.items(), key=lambda entry: (len(entry[1]), entry[0]))
    before = later[key]
    is_right = peers_say(history, graph, op, key) if len(before) == len(after) else len(before) > len(after)
    culprits = (*before, *after) if is_right is None else after if is_right else before
    return Past(
        op=op,
        later=key,
        before=tuple(before),
        after=tuple(sorted(after)),
        culprits=tuple(sorted(culprits)),
        is_tied=is_right is None,
        is_by_peers=len(before) == len(after),
    )


def _crossed(history: History, graph: WaitGraph, op: OpenOp) -> Past | None:
    """Ranks that each wait for the other in operations of both: one side has left out what the other is in. The smaller
    side has; of two as large, the one that groups of the same kind contradict."""
    waiting = set(op.waiting)
    for rank in op.behind:
        for key in graph.waits.get(rank, ()):
            other = graph.ops[key]
            before = sorted(waiting.intersection(other.behind))
            if not before or other.group.is_transfer:
                continue
            after = sorted(set(other.waiting) & set(op.behind))
            is_even = len(before) == len(after)
            is_right = peers_say(history, graph, op, key) if is_even else len(before) > len(after)
            culprits = (*before, *after) if is_right is None else tuple(after) if is_right else tuple(before)
            found = tuple(sorted(culprits))
            return Past(op, key, tuple(before), tuple(after), found, is_right is None, is_by_peers=is_even)
    return None


def _entered_later(history: History, graph: WaitGraph, op: OpenOp) -> dict[OpKey, list[int]]:
    """Operations that ranks entered after the one they wait in, with those ranks."""
    own = (op.group.key, op.seq)
    found: dict[OpKey, list[int]] = defaultdict(list)
    for rank in op.waiting:
        calls = history.ranks[rank].calls if graph.is_ordered[rank] else ()
        places = [place for place, call in enumerate(calls) if (call.group, call.seq) == own]
        for call in calls[places[0] + 1 :] if places else ():
            if call.group != own[0] and not history.groups[call.group].is_transfer:
                found[call.group, call.seq].append(rank)
    return found


def seen_past(history: History, graph: WaitGraph, op: OpenOp) -> set[int]:
    """Ranks without evidence of this operation that took part in a later one: a member that waits in it called the
    later one after it, and that one has completed, which takes all who are in it. Streams of a device run beside one
    another, so that this can be; the rank is then in the operation too, or left it out, and not absent."""
    missing = set(op.unseen)
    found: set[int] = set()
    for rank in op.waiting if missing else ():
        calls = history.ranks[rank].calls if graph.is_ordered[rank] else ()
        places = [place for place, call in enumerate(calls) if (call.group, call.seq) == (op.group.key, op.seq)]
        for call in calls[places[0] + 1 :] if places else ():
            if call.progress is Progress.COMPLETED and not is_rooted(call.op, history.groups[call.group]):
                found |= missing.intersection(history.groups[call.group].members)
    return found


def peers_say(history: History, graph: WaitGraph, op: OpenOp, later: OpKey) -> bool | None:
    """What ranks of other groups of the same kind did before the later operation: True where all entered theirs of the
    same number, False where none did, None where they differ or there are none."""
    said: set[bool] = set()
    passed = {rank for rank, seq in graph.entered[later[0]].items() if seq >= later[1]} - set(op.group.members)
    for key, ranks in graph.entered.items():
        if key != op.group.key and _is_alike(history.groups[key], op.group):
            said.update(seq >= op.seq for rank, seq in ranks.items() if rank in passed)
    return said.pop() if len(said) == 1 else None


def _is_alike(one: Group, other: Group) -> bool:
    same = (one.description, len(one.members)) == (other.description, len(other.members))
    return same and bool(one.description) and not one.is_transfer


def peers_order(history: History, one: OpKey, other: OpKey, *, apart_from: set[int]) -> bool | None:
    """Whether ranks of groups of the same kinds called the first of two operations before the second, None where they
    differ or none called both."""
    said: set[bool] = set()
    for rank, known in history.ranks.items():
        if rank in apart_from or not known.is_ordered:
            continue
        places = [_place(history, known.calls, key) for key in (one, other)]
        if places[0] is not None and places[1] is not None:
            said.add(places[0] < places[1])
    return said.pop() if len(said) == 1 else None


def _place(history: History, calls: tuple[Call, ...], key: OpKey) -> int | None:
    """Where a rank called an operation of the same number in the same group, or in one of its kind."""
    group = history.groups[key[0]]
    for place, call in enumerate(calls):
        if call.seq == key[1] and (call.group == key[0] or _is_alike(history.groups[call.group], group)):
            return place
    return None
