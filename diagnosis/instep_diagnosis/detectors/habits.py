"""Did a rank do something it never does? A training step repeats, so each call foretells the next.

In a circle of waits each side waits for the other, and a majority may be on the wrong one: where a rank of a pair skips
a collective of the pair, its peer is the only one missing in whatever comes next. What the ranks called before tells.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
from instep_agent.wire import CollectiveEntry

from instep_diagnosis.evidence import RankState

HISTORY_CALLS_MAX = 256
"""Calls that are looked at: two steps and what came after them must fit, or nothing is known."""
PLACES_MAX = 32
"""Calls that are compared with the past: hosts do not run farther ahead."""
RANKS_COMPARED_MAX = 512
"""So that a circle through a whole large job does not take seconds (about 2 ms a rank)."""


def departing(states: Iterable[RankState]) -> tuple[int, ...]:
    """Ranks whose last calls depart from their own habit, where others' do not; empty where nothing tells them apart.

    When all depart, the script has come to something new, and that accuses nobody.
    """
    compared = list(islice(states, RANKS_COMPARED_MAX + 1))
    if len(compared) > RANKS_COMPARED_MAX:
        return ()
    found = tuple(sorted(state.rank for state in compared if departs_from_habit(state.collectives)))
    return found if len(found) < len(compared) else ()


def departs_from_habit(entries: Sequence[CollectiveEntry]) -> bool:
    """Whether a rank's calls repeated for two periods at least, and within the last one did so no more.

    The period is the one that explains the longest stretch reaching so far, and at least half of what is known; one
    that always makes the same call explains nothing.

    >>> call = lambda seq, op: CollectiveEntry(group_key="a", seq=seq, op=op, payload_bytes=8, entered_age_seconds=1.0)
    >>> departs_from_habit([call(seq, op) for seq, op in enumerate(["send", "recv"] * 4)])
    False
    >>> departs_from_habit([call(seq, op) for seq, op in enumerate([*["send", "recv"] * 4, "recv"])])
    True
    """
    return departs([(entry.group_key, entry.op, entry.payload_bytes) for entry in entries])


def departs(called: Sequence[Hashable]) -> bool:
    """The same of calls in any form that can be compared.

    >>> departs(["all_gather", "all_reduce"] * 3), departs([*["all_gather", "all_reduce"] * 3, "all_reduce"])
    (False, True)
    """
    known: dict[Hashable, int] = {}
    numbers = [known.setdefault(call, len(known)) for call in called]
    calls = np.asarray(numbers[-HISTORY_CALLS_MAX:], dtype=np.int64)
    count = len(calls)
    longest, departs = count // 2, False
    for period in range(1, count // 2 + 1):
        begin, end = _repetition(calls, period)
        if end - begin + period > longest:
            is_constant = bool((calls[begin:end] == calls[begin]).all())
            longest, departs = end - begin + period, end < count and not is_constant
    return departs


def surprise(called: Sequence[Hashable], first: int) -> int:
    """How surely a call from this place on is another one than the rank's own past foretells: by how many calls the
    longest run that led up to it, and to something else then, is longer than any that led to it. 0 is no surprise.

    Needs one step of history and no period, and finds the place also where the rank went on for long after it, as one
    does whose host runs ahead of its device.

    >>> surprise(["gather", "reduce"] * 3, 2), surprise([*["gather", "reduce"] * 3, "reduce"], 2)
    (0, 4)
    """
    calls = called[-HISTORY_CALLS_MAX:]
    begin = max(1, first - (len(called) - len(calls)))
    return max((_surprise(calls, place) for place in range(begin, min(len(calls), begin + PLACES_MAX))), default=0)


def _surprise(calls: Sequence[Hashable], place: int) -> int:
    """How much longer the calls before this place were followed by another one than by this one."""
    same = other = 0
    for earlier in range(1, place):
        length = 0
        while length < earlier and calls[earlier - 1 - length] == calls[place - 1 - length]:
            length += 1
        if calls[earlier] == calls[place]:
            same = max(same, length)
        else:
            other = max(other, length)
    return max(0, other - same)


def _repetition(calls: npt.NDArray[np.int64], period: int) -> tuple[int, int]:
    """The longest stretch in which every call is the one a period before, if it is a period long and ends within the
    last one; else an empty stretch."""
    breaks = np.flatnonzero(calls[period:] != calls[:-period]) + period
    edges = np.concatenate(([period - 1], breaks, [len(calls)]))
    lengths, ends = np.diff(edges) - 1, edges[1:]
    lengths[(ends < len(calls) - period) | (lengths < period)] = -period
    best = int(lengths.argmax())
    return int(ends[best] - lengths[best]), int(ends[best])
