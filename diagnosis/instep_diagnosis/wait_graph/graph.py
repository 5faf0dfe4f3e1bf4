"""The wait-for graph over process groups: open operations, who is missing from them, and where the waits lead.

A rank waits in the first operation of each group that it entered and has not completed. Operations stand between the
ranks, so that a group of any size costs as much as it has members.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from instep_diagnosis.wait_graph.history import Call, Group, History, Progress, RankHistory, Standing

OpKey = tuple[str, int]
"""Group key and number."""

ROOTED_OPS = ("broadcast", "reduce", "gather", "scatter")
"""Operations that one rank may complete before all have entered."""


def is_rooted(op: str, group: Group) -> bool:
    """Whether one member may complete such an operation before all have entered it."""
    return group.is_transfer or (op.startswith(ROOTED_OPS) and not op.startswith("reduce_scatter"))


@dataclass(slots=True)
class OpenOp:
    """One operation that somebody has entered and not completed."""

    group: Group
    seq: int
    op: str
    waiting: list[int] = field(default_factory=list)
    """Ranks for which it is the first open operation of the group."""
    behind: tuple[int, ...] = ()
    """Members known not to have entered it."""
    unseen: tuple[int, ...] = ()
    """Members of whom nothing is known, where nothing shows that they entered."""
    is_completed_elsewhere: bool = False
    """Another member has completed it."""
    started: frozenset[int] = frozenset()
    """Members on whose device it runs."""

    @property
    def is_rooted(self) -> bool:
        """Whether completion by one member says nothing about the others."""
        return is_rooted(self.op, self.group)

    @property
    def is_together(self) -> bool:
        """Every member has entered it, and none has completed it."""
        return not (self.behind or self.unseen or self.is_completed_elsewhere)


@dataclass(frozen=True, slots=True)
class _Level:
    """How far one rank has got in one group."""

    entered: int | None
    """At least."""
    ceiling: int | None
    """At most; None is *not known*: it may have entered more."""
    started: int | None
    completed: int | None
    opens: tuple[tuple[int, int, str], ...] = ()
    """Number, place among the rank's calls and name of each open operation, first number first."""
    is_assumed: bool = False
    """Only launches or only completions are known: open if somebody is not as far, or farther."""

    def opened(self, furthest: int, floor: int) -> tuple[int, int, str] | None:
        """The first open operation behind `floor`, where `furthest` is the last that any member has completed. Launches
        alone show none that a member has completed, and completions alone none that no member has."""
        first = next((found for found in self.opens if found[0] > floor), None)
        if first is None or not self.is_assumed:
            return first
        return first if (self.completed is not None) == (furthest >= first[0]) else None


@dataclass(frozen=True, slots=True)
class WaitGraph:
    """All open operations of a job, and for each rank those it waits in, the one it entered first in front."""

    ops: Mapping[OpKey, OpenOp]
    waits: Mapping[int, tuple[OpKey, ...]]
    is_ordered: Mapping[int, bool]
    entered: Mapping[str, Mapping[int, int]]
    """Group key → rank → the last number it entered there, where that is known."""
    has_timing: frozenset[int]
    """Ranks whose device start is on record, so that its absence says something."""
    unsure: frozenset[int]
    """Ranks that may wait for somebody where nothing tells, since counters of theirs are missing."""

    def is_blocked(self, rank: int) -> bool:
        """Whether a rank waits for one that has not entered, or that nothing is known of."""
        return any(self.ops[key].behind or self.ops[key].unseen for key in self.waits.get(rank, ()))

    def heads(self, rank: int) -> tuple[OpKey, ...]:
        """What a rank is held up by: the first thing it entered, or all of it where the order is not on record."""
        waits = self.waits.get(rank, ())
        return waits[:1] if self.is_ordered.get(rank) else waits

    def behind(self) -> set[int]:
        """Ranks that somebody waits for."""
        return {rank for op in self.ops.values() for rank in op.behind}

    def leads_to(self, key: OpKey) -> set[int]:
        """Ranks that an operation waits for in the end, through what holds up its members; empty where nothing
        does."""
        found: set[int] = set()
        seen, frontier = {key}, [key]
        while frontier:
            current = frontier.pop()
            op = self.ops[current]
            found.update(op.behind or op.unseen or (op.waiting if op.is_completed_elsewhere else ()))
            held = op.behind or (op.waiting if op.is_together else ())
            for head in (head for rank in held for head in self.heads(rank)):
                if head not in seen:
                    seen.add(head)
                    frontier.append(head)
        return found


def wait_graph(history: History) -> WaitGraph:
    """The wait-for graph of a job."""
    levels = _levels(history)
    ops: dict[OpKey, OpenOp] = {}
    waits: dict[int, list[tuple[int, OpKey]]] = defaultdict(list)
    for key in sorted(levels):
        for op, places in _open_ops(history, history.groups[key], levels[key]):
            ops[key, op.seq] = op
            for rank, place in places.items():
                waits[rank].append((place, (key, op.seq)))
    return WaitGraph(
        ops=ops,
        waits={rank: tuple(key for _, key in sorted(found)) for rank, found in waits.items()},
        is_ordered={rank: known.is_ordered and bool(known.calls) for rank, known in history.ranks.items()},
        entered={
            key: {rank: level.ceiling for rank, level in ranks.items() if level.ceiling is not None}
            for key, ranks in levels.items()
        },
        has_timing=frozenset(rank for rank, known in history.ranks.items() if _has_timing(known)),
        unsure=frozenset(_unsure(history, levels)),
    )


def _unsure(history: History, levels: Mapping[str, Mapping[int, _Level]]) -> Iterator[int]:
    """Ranks that may have an operation open which another member of its group has not entered. What one has completed,
    all have entered."""
    unordered = {rank for rank, known in history.ranks.items() if not known.is_ordered}
    for key, group in history.groups.items() if unordered else ():
        found = levels.get(key, {})
        reached = [found[rank].entered if rank in found else None for rank in group.members]
        least = min((-1 if count is None else count for count in reached), default=-1)
        least = max(least, *(level.completed for level in found.values() if level.completed is not None), -1)
        for rank in unordered.intersection(group.members):
            if not (rank in found and _is_through(found[rank], least)):
                yield rank


def _is_through(level: _Level, least: int) -> bool:
    """Whether a rank surely waits for nobody: it has completed all that it entered, or all others have entered it."""
    return level.ceiling is not None and max(least, -1 if level.completed is None else level.completed) >= level.ceiling


def _has_timing(known: RankHistory) -> bool:
    has_call = any(call.progress is Progress.STARTED for call in known.calls)
    return known.has_timing or has_call or any(standing.started is not None for standing in known.standings.values())


def _levels(history: History) -> dict[str, dict[int, _Level]]:
    levels: dict[str, dict[int, _Level]] = defaultdict(dict)
    for rank, known in history.ranks.items():
        for key, level in _rank_levels(known).items():
            levels[key][rank] = level
    return levels


def _rank_levels(known: RankHistory) -> dict[str, _Level]:
    """Group key → how far a rank has got there, from its calls and its counters."""
    calls: dict[str, list[tuple[int, Call]]] = defaultdict(list)
    for order, call in enumerate(known.calls):
        calls[call.group].append((order, call))
    return {key: _level(calls.get(key, []), known, key) for key in dict.fromkeys((*calls, *known.standings))}


def _level(calls: list[tuple[int, Call]], known: RankHistory, key: str) -> _Level:
    standing = known.standings.get(key, Standing())
    entered, started, completed = standing.entered, standing.started, standing.completed
    for _, call in calls:
        entered = _furthest(entered, call.seq)
        started = _furthest(started, call.seq) if call.progress >= Progress.STARTED else started
        completed = _furthest(completed, call.seq) if call.progress is Progress.COMPLETED else completed
    done = -1 if completed is None else completed
    opens = [(call.seq, order, call.op) for order, call in calls if call.progress < Progress.COMPLETED]
    opens = sorted(found for found in opens if found[0] > done)
    at_least = max((count for count in (entered, started, completed) if count is not None), default=None)
    ceiling = at_least if known.is_ordered else entered
    if completed is not None and completed < (opens[0][0] - 1 if opens else at_least or 0):
        # The ring has lost the oldest one, or there are only counters.
        place = opens[0][1] if opens else len(known.calls)
        opens.insert(0, (completed + 1, place, ""))
    is_assumed = (entered is None) != (completed is None) and not opens and not calls
    if completed is None and entered is not None and not known.is_ordered:
        # Named or not: whether the newest launch has completed is not known.
        opens, is_assumed = [opens[-1] if opens else (entered, 0, "")], True
    elif is_assumed:
        opens = [(done + 1 if entered is None else entered, 0, "")]
    return _Level(at_least, ceiling, started, completed, tuple(opens), is_assumed)


def _furthest(known: int | None, seq: int) -> int:
    return seq if known is None else max(known, seq)


def _open_ops(history: History, group: Group, levels: Mapping[int, _Level]) -> list[tuple[OpenOp, dict[int, int]]]:
    """The operations of a group that are open, each with the places it has among its waiting ranks' calls."""
    furthest = max((level.completed for level in levels.values() if level.completed is not None), default=-1)
    found: dict[int, tuple[OpenOp, dict[int, int]]] = {}
    for rank, level in sorted(levels.items()):
        # gloo's mark of completion lags: what a peer has completed, everybody has.
        first = level.opened(furthest, floor=-1 if history.ranks[rank].has_device else furthest)
        if first is not None:
            seq, place, name = first
            op, places = found.setdefault(seq, (OpenOp(group, seq, name), {}))
            op.op = op.op or name
            places[rank] = place
    for op, places in found.values():
        _fill(op, history, levels, places, is_completed_elsewhere=furthest >= op.seq)
    return [entry for entry in found.values() if _is_real(*entry, history, levels)]


def _fill(
    op: OpenOp, history: History, levels: Mapping[int, _Level], places: Iterable[int], *, is_completed_elsewhere: bool
) -> None:
    members = op.group.members or tuple(sorted(levels))
    op.waiting = list(places)
    op.is_completed_elsewhere = is_completed_elsewhere
    waiting = set(op.waiting)
    late = [rank for rank in members if rank not in waiting and not _has_entered(levels, rank, op.seq)]
    op.behind = tuple(rank for rank in late if _is_known(history, levels, rank))
    if not is_completed_elsewhere or op.is_rooted:
        op.unseen = tuple(rank for rank in late if not _is_known(history, levels, rank))
    op.started = frozenset(
        rank for rank, level in levels.items() if level.started is not None and level.started >= op.seq
    )


def _has_entered(levels: Mapping[int, _Level], rank: int, seq: int) -> bool:
    level = levels.get(rank)
    return level is not None and level.entered is not None and level.entered >= seq


def _is_known(history: History, levels: Mapping[int, _Level], rank: int) -> bool:
    """Whether a rank would show a later operation of the group if it had entered one. A dump leaves none out; of
    counters any may be missing."""
    level = levels.get(rank)
    return rank in history.ranks and (
        history.ranks[rank].is_ordered or (level is not None and level.ceiling is not None)
    )


def _is_real(op: OpenOp, places: Mapping[int, int], history: History, levels: Mapping[int, _Level]) -> bool:
    """Whether it is open indeed: counts of one kind show nothing where all agree, and gloo's marks lag behind an
    operation that all have entered and somebody has left for another call."""
    if op.behind:
        return True
    if all(levels[rank].is_assumed for rank in op.waiting):
        # RAS asks every rank at one moment; from other launches nothing is seen to wait for a rank that is left out.
        return op.is_completed_elsewhere or (bool(op.unseen) and history.source == "ras")
    if op.unseen:
        return True
    is_host = not any(history.ranks[rank].has_device for rank in op.waiting)
    is_left = any(place < len(history.ranks[rank].calls) - 1 for rank, place in places.items())
    return not (is_host and is_left and op.is_together)
