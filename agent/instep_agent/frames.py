"""From the readings of one tick to the message on the wire: numbers in one column, their names in a dictionary."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from instep_agent.clocks import read_anchor
from instep_agent.node import Fact, Node
from instep_agent.wire import Dictionary, Event, Frame, GpuReport, RankReport, Sample

SERIES_MAX = 4096
"""Further series of one agent are not sent: labels must not grow without bound."""
_Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class Tick:
    """What was read since the last frame."""

    ranks: dict[tuple[str, int, int], RankReport] = field(default_factory=dict)
    gpus: tuple[GpuReport, ...] | None = None
    facts: list[Fact] = field(default_factory=list)

    def add_rank(self, report: RankReport) -> None:
        """Keep the newest report of a rank, with the steps of those it replaces."""
        key = (report.run, report.attempt, report.rank)
        before = self.ranks.get(key)
        if before is not None and before.steps:
            report = msgspec.structs.replace(report, steps=before.steps + report.steps)
        self.ranks[key] = report


class FrameBuilder:
    """Numbers the frames of one run of the agent and knows the current dictionary."""

    def __init__(self, node: Node, *, cluster: str = "") -> None:
        self._node = node
        self._cluster = cluster
        self._epoch = secrets.token_hex(6)
        self._sequence = 0
        self._events = 0
        self.dictionary = make_dictionary(())

    def build(self, tick: Tick, samples: Sequence[Sample]) -> Frame:
        """Give the next frame; `dictionary` is the one it refers to."""
        values = {(sample.name, sample.labels): sample.value for sample in samples}
        series = tuple(sorted(values))[:SERIES_MAX]
        if series != self.dictionary.series:
            self.dictionary = make_dictionary(series)
        self._sequence += 1
        return Frame(
            cluster=self._cluster,
            node=self._node.name,
            boot_id=self._node.boot_id,
            agent_epoch=self._epoch,
            sequence=self._sequence,
            anchor=read_anchor(self._node.proc),
            dictionary_hash=self.dictionary.hash,
            values=struct.pack(f"<{len(series)}d", *(values[each] for each in series)),
            ranks=tuple(tick.ranks.values()),
            gpus=tick.gpus,
            events=tuple(map(self._event, tick.facts)),
        )

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


def make_dictionary(series: tuple[_Series, ...]) -> Dictionary:
    """Give the dictionary of `series`; equal series have equal hashes, on every agent."""
    digest = blake2b(msgspec.msgpack.encode(series), digest_size=16).hexdigest()
    return Dictionary(hash=digest, series=series)
