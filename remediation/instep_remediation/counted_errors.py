"""Errors of GPUs' memories that were only counted, until the driver's own line says whether each was contained."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.facts import is_counted, is_line_of

GPUS_MAX = 10_000
COUNTS_MAX = 64
"""Of one GPU, with no line yet. The oldest stay: while there is no line about them, nothing was contained."""
TOLERANCE_SECONDS = 1.0
"""A count's moment is computed anew in each message."""

Place = tuple[str, str, str, bool]
"""Node, GPU and boot, and whether it is a drill."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One fact that says that there were errors."""

    fact: NodeFact
    at: float
    """When, in seconds since 1970."""


class CountedErrors:
    """What was counted and has no line yet, by GPU."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Place, list[Counted]] = OrderedDict()

    def add(self, fact: NodeFact, *, at: float) -> None:
        """Keep a fact that says that there were errors; any other is no business of this."""
        if not is_counted(fact) or not fact.gpu:
            return
        place = _place(fact)
        counts = self._counts.setdefault(place, [])
        self._counts.move_to_end(place)
        if len(counts) < COUNTS_MAX:
            counts.append(Counted(fact, at))
        if len(self._counts) > GPUS_MAX:
            self._counts.popitem(last=False)

    def explain(self, line: NodeFact, *, at: float) -> bool:
        """Take out what a line about contained errors tells of; return whether that was anything."""
        place = _place(line)
        counts = self._counts.get(place, [])
        left = [one for one in counts if not is_line_of(line, _seen_from(one, line, at))]
        if left:
            self._counts[place] = left
        else:
            self._counts.pop(place, None)
        return len(left) < len(counts)

    def is_open(self, line: NodeFact, *, since: float) -> bool:
        """Whether any error of the same GPU since a moment has no line yet."""
        return any(one.at >= since - TOLERANCE_SECONDS for one in self._counts.get(_place(line), ()))


def _place(fact: NodeFact) -> Place:
    return fact.node, fact.gpu, fact.boot_id, fact.is_drill


def _seen_from(counted: Counted, line: NodeFact, at: float) -> NodeFact:
    """Return a counted fact with its age at the moment of which the line's age is told."""
    return replace(counted.fact, age_seconds=line.age_seconds + at - counted.at)
