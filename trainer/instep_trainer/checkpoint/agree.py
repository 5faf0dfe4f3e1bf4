"""Which state all ranks resume from: a pure function of what each of them holds.

A step is committed when it is complete on every *current* rank. A rank is current when its newest state is within
one step of the newest anywhere, for the collectives of a step let no rank be further ahead; one that was moved to
another node, or whose slots failed their digest, is not. State is replicated (DDP), so a rank without the committed
state receives it from a holder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from instep_trainer.checkpoint.slots import Entry

STEPS_AHEAD_MAX = 1


@dataclass(frozen=True, slots=True)
class Agreement:
    """Where to resume, and who has it."""

    entry: Entry
    source: str
    """`memory`, `disk`, or `start` when nothing is kept anywhere."""
    holders: tuple[int, ...]
    """Ranks that hold the state there; the first one hands it out."""
    receivers: tuple[int, ...]
    """Ranks that do not."""


def resume_step(inventories: Mapping[int, Sequence[tuple[int, int]]]) -> int | None:
    """Give the committed step by the (step, attempt) pairs each rank keeps in memory, or None when nothing is kept.

    >>> resume_step({0: [(8, 0), (7, 0)], 1: [(7, 0), (6, 0)], 2: []})
    7
    """
    entry = committed({rank: [Entry(*pair) for pair in pairs] for rank, pairs in inventories.items()})
    return None if entry is None else entry.step


def agree(memory: Mapping[int, Sequence[Entry]], disk: Mapping[int, Entry | None]) -> Agreement:
    """Give where all ranks resume: the committed state in memory, or the newest on disk when nothing as new is in
    memory.

    A disk checkpoint one step ahead of memory was written while a peer died in the same step; memory still goes
    first.

    Both mappings have every rank as a key; `disk` holds the newest checkpoint each rank can read.
    """
    in_memory = committed(memory)
    on_disk = max((entry for entry in disk.values() if entry is not None), default=None)
    if in_memory is not None and (on_disk is None or in_memory.step >= on_disk.step - STEPS_AHEAD_MAX):
        return _agreement(in_memory, "memory", memory, {rank for rank in memory if in_memory in memory[rank]})
    if on_disk is not None:
        return _agreement(on_disk, "disk", memory, {rank for rank in disk if disk[rank] == on_disk})
    return _agreement(Entry(0, 0), "start", memory, set(memory))


def committed(held: Mapping[int, Sequence[Entry]]) -> Entry | None:
    """Give the newest state that every current rank holds, or None."""
    superseded = _superseded({entry for entries in held.values() for entry in entries})
    live = {rank: {entry for entry in entries if entry not in superseded} for rank, entries in held.items()}
    newest = {rank: max(entries) for rank, entries in live.items() if entries}
    if not newest:
        return None
    step_max = max(entry.step for entry in newest.values())
    current = [rank for rank, entry in newest.items() if entry.step >= step_max - STEPS_AHEAD_MAX]
    common = set.intersection(*(live[rank] for rank in current))
    return max(common) if common else _newest_below(live, current)


def _newest_below(live: Mapping[int, set[Entry]], current: Sequence[int]) -> Entry:
    """Without a common state (slots lost one by one): the newest step that the slowest current rank holds, which is
    whole."""
    return min(max(live[rank]) for rank in current)


def _superseded(entries: Iterable[Entry]) -> set[Entry]:
    """States on a branch that a later attempt left: it kept step s, so it resumed below s, and older attempts' steps
    from s on are void."""
    known = list(entries)
    return {
        entry for entry in known if any(other.attempt > entry.attempt and other.step <= entry.step for other in known)
    }


def _agreement(entry: Entry, source: str, ranks: Iterable[int], holders: set[int]) -> Agreement:
    return Agreement(entry, source, tuple(sorted(holders)), tuple(sorted(set(ranks) - holders)))
