"""From the readings of one tick to the message on the wire: numbers in one column, their names in a dictionary."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from instep_agent.clocks import read_anchor
from instep_agent.columns import Column, Series
from instep_agent.digest import digest
from instep_agent.node import Fact, Node
from instep_agent.wire import Dictionary, Event, Frame, GpuReport, RankReport

SERIES_MAX = 4096
"""Further series of one agent are not sent: labels must not grow without bound."""
SERIES_KEEP_SECONDS = 900.0
"""So long a series that nobody reads keeps its place."""
PLACED_MAX = 512
"""Tuples of series whose places are kept; each source has two."""
_NAN = float("nan")


@dataclass(slots=True)
class Tick:
    """What was read since the last frame."""

    ranks: dict[tuple[str, int, int], RankReport] = field(default_factory=dict)
    gpus: tuple[GpuReport, ...] | None = None
    facts: list[Fact] = field(default_factory=list)

    def add_rank(self, report: RankReport) -> None:
        """Keep the newest report of a rank, with the steps and the place of those it replaces."""
        key = (report.run, report.attempt, report.rank)
        before = self.ranks.get(key)
        if before is not None and (before.steps or before.place is not None):
            place = before.place if report.place is None else report.place
            report = msgspec.structs.replace(report, steps=before.steps + report.steps, place=place)
        self.ranks[key] = report


@dataclass(slots=True)
class _Placed:
    """Where the series of one tuple are in the column."""

    series: tuple[Series, ...]
    """Kept, so that nobody else gets its identity."""
    places: list[int]
    unplaced: list[int]
    """Which of them have no place."""
    read_ns: int = 0


class FrameBuilder:
    """Numbers the frames of one run of the agent and knows the current dictionary."""

    def __init__(self, node: Node, *, cluster: str = "") -> None:
        self._node = node
        self._cluster = cluster
        self._epoch = os.urandom(6).hex()
        self._sequence = 0
        self._events = 0
        self._index: dict[Series, int] = {}
        self._read_ns: list[int] = []
        """When each series of the dictionary was last read; what `_placed` knows is younger."""
        self._blank = array("d", [_NAN])
        """A column without values, and a place behind it for series that have none."""
        self._placed: dict[int, _Placed] = {}
        """By the identity of a tuple of series."""
        self._left_out: frozenset[Series] = frozenset()
        self.dictionary = make_dictionary(())
        self.series_dropped = 0
        """Series that are left out because the dictionary is full."""

    def build(self, tick: Tick, columns: Iterable[Column] | None) -> Frame:
        """Give the next frame; `dictionary` is the one it refers to, unless it has no columns and so no values."""
        values = b"" if columns is None else self._column(columns)
        self._sequence += 1
        return Frame(
            cluster=self._cluster,
            node=self._node.name,
            boot_id=self._node.boot_id,
            agent_epoch=self._epoch,
            sequence=self._sequence,
            anchor=read_anchor(self._node.proc),
            dictionary_hash="" if columns is None else self.dictionary.hash,
            values=values,
            ranks=tuple(tick.ranks.values()),
            gpus=tick.gpus,
            events=tuple(map(self._event, tick.facts)),
        )

    def _column(self, columns: Iterable[Column]) -> bytes:
        """Give the values in the dictionary's order, NaN where there is none now.

        A series stays in the dictionary while its source is not asked, so that a slow source makes no new dictionary at
        each of its turns; one that was not read for long goes when a new one comes.
        """
        now_ns = self._node.monotonic_ns()
        values = array("d", self._blank)
        new: dict[Series, float] = {}
        for column in columns:
            placed = self._placed.get(id(column.series)) or self._place(column.series)
            placed.read_ns = now_ns
            for at, value in zip(placed.places, column.values, strict=True):
                values[at] = value
            for at in placed.unplaced:
                new[column.series[at]] = column.values[at]
        values.pop()  # where those without a place went
        if not new.keys() <= self._left_out:
            values = self._extend(new, values, now_ns)
        if sys.byteorder == "big":
            values.byteswap()
        return values.tobytes()

    def _place(self, series: tuple[Series, ...]) -> _Placed:
        """Look up where these series are in the column; once, as long as dictionary and series stay."""
        if len(self._placed) >= PLACED_MAX:
            self._note_read()
        nowhere = len(self._index)
        places = [self._index.get(each, nowhere) for each in series]
        placed = _Placed(series, places, [at for at, place in enumerate(places) if place == nowhere])
        self._placed[id(series)] = placed
        return placed

    def _note_read(self) -> None:
        """Keep when each series was last read, and forget who had them."""
        for placed in self._placed.values():
            for place in placed.places:
                if place < len(self._read_ns):
                    self._read_ns[place] = max(self._read_ns[place], placed.read_ns)
        self._placed.clear()

    def _extend(self, new: dict[Series, float], column: array[float], now_ns: int) -> array[float]:
        """Make a dictionary that has the new series too, within the limit; give the column in its order."""
        self._note_read()
        oldest_ns = now_ns - int(SERIES_KEEP_SECONDS * 1e9)
        read_ns = {each: self._read_ns[at] for each, at in self._index.items() if self._read_ns[at] >= oldest_ns}
        room = max(0, SERIES_MAX - len(read_ns))
        self._left_out = frozenset(sorted(new)[room:])
        self.series_dropped = len(self._left_out)
        values = {each: column[self._index[each]] for each in read_ns} | new
        read_ns |= dict.fromkeys(sorted(new)[:room], now_ns)
        series = tuple(sorted(read_ns))
        self._index = {each: at for at, each in enumerate(series)}
        self._read_ns = [read_ns[each] for each in series]
        self._blank = array("d", [_NAN]) * (len(series) + 1)
        self.dictionary = make_dictionary(series)
        return array("d", [values[each] for each in series])

    def _event(self, fact: Fact) -> Event:
        self._events += 1
        boot = self._node.boot_id
        name = fact.identity or f"{self._epoch}-{self._events}"
        return Event(
            id=f"{boot}-{name}",
            kind=fact.kind,
            text=fact.text,
            fields=fact.fields,
            is_drill=fact.is_drill,
            age_seconds=max(0.0, (self._node.monotonic_ns() - fact.monotonic_ns) / 1e9),
            monotonic_ns=fact.monotonic_ns,
            realtime_ns=fact.realtime_ns,
        )


def make_dictionary(series: tuple[Series, ...]) -> Dictionary:
    """Give the dictionary of `series`; equal series have equal hashes, on every agent."""
    return Dictionary(hash=digest(msgspec.msgpack.encode(series), 16), series=series)
