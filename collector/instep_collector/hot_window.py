"""The last minutes of every node's samples, as arrays: what the detectors and the page read.

Arrays: `N` nodes, `T` ticks, `S` series of one node. One float32 ring (T, S) per node, since agents differ in their
series; a frame is one contiguous write (40 times faster than series-major).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from instep_agent.wire import Dictionary

from instep_collector.errors import Refused

TICKS = 120
SERIES_MAX = 20_000
"""Of one node: 9.6 MB of ring."""
DICTIONARIES_MAX = 4096
NODES_MAX = 20_000

Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class NodeRing:
    """One node's ring and the names of its columns."""

    dictionary: Dictionary
    values_TS: Floats
    at_T: npt.NDArray[np.float64]
    """Monotonic receipt time of each row; NaN is a row not yet written."""
    next_row: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One series over a stretch of time, oldest first."""

    name: str
    labels: dict[str, str]
    times: npt.NDArray[np.float64]
    """Monotonic."""
    values: Floats
    """NaN where there was no reading."""


class HotWindow:
    """Rings by node, and the dictionaries that name their columns."""

    def __init__(self, ticks: int = TICKS) -> None:
        self._ticks = ticks
        self._dictionaries: dict[str, Dictionary] = {}
        self._rings: dict[str, NodeRing] = {}

    def learn(self, dictionary: Dictionary) -> None:
        """Remember a dictionary by its hash; the oldest unused one goes when there are too many."""
        if len(dictionary.series) > SERIES_MAX:
            raise Refused(413, f"The dictionary names {len(dictionary.series)} series: at most {SERIES_MAX} are taken.")
        if not dictionary.hash or len(dictionary.hash) > 128:
            raise Refused(400, "The dictionary's hash must have 1 to 128 characters.")
        self._dictionaries.pop(dictionary.hash, None)
        while len(self._dictionaries) >= DICTIONARIES_MAX:
            self._dictionaries.pop(next(iter(self._dictionaries)))
        self._dictionaries[dictionary.hash] = dictionary

    def knows(self, dictionary_hash: str) -> bool:
        """Whether frames that name this dictionary can be read; the empty one has no series."""
        return not dictionary_hash or dictionary_hash in self._dictionaries

    def dictionary(self, dictionary_hash: str) -> Dictionary | None:
        """Return the dictionary of a hash, None where it is not known."""
        return self._dictionaries.get(dictionary_hash)

    def check(self, dictionary_hash: str, values: bytes) -> None:
        """Refuse values that do not fit their dictionary: 409 when it is unknown, 400 when the length differs."""
        if not self.knows(dictionary_hash):
            raise Refused(
                409, "The dictionary is not known here: send it to /ingest/v1/dictionary, then the frame again."
            )
        expected = len(self._dictionaries[dictionary_hash].series) if dictionary_hash else 0
        if len(values) != 8 * expected:
            raise Refused(400, f"values has {len(values)} bytes: {expected} series need {8 * expected}.")

    def write(self, node: str, dictionary_hash: str, values: bytes, *, at: float) -> None:
        """Put one frame's values (checked before) into the node's ring."""
        dictionary = self._dictionaries.get(dictionary_hash)
        if dictionary is None or not values:
            return
        ring = self._rings.get(node)
        if ring is None or ring.dictionary.hash != dictionary_hash:
            if ring is None and len(self._rings) >= NODES_MAX:
                return
            ring = self._rings[node] = self._new_ring(dictionary)
        with np.errstate(over="ignore", invalid="ignore"):
            ring.values_TS[ring.next_row] = np.frombuffer(values, dtype="<f8")
        ring.at_T[ring.next_row] = at
        ring.next_row = (ring.next_row + 1) % self._ticks

    def series(self, node: str, name: str, labels: dict[str, str]) -> tuple[npt.NDArray[np.float64], Floats]:
        """Return (times, values) of one series, oldest first; empty when the node does not have it."""
        ring = self._rings.get(node)
        wanted = (name, tuple(sorted(labels.items())))
        if ring is None:
            return np.empty(0), np.empty(0, np.float32)
        for column, (have, have_labels) in enumerate(ring.dictionary.series):
            if (have, tuple(sorted(have_labels))) == wanted:
                order = np.roll(np.arange(self._ticks), -ring.next_row)
                order = order[~np.isnan(ring.at_T[order])]
                return ring.at_T[order], ring.values_TS[order, column]
        return np.empty(0), np.empty(0, np.float32)

    def readings(self, node: str, names: frozenset[str], *, since: float, until: float) -> list[Reading]:
        """Return the series of these names over a stretch; those without any reading in it are left out."""
        ring = self._rings.get(node)
        if ring is None:
            return []
        order = np.roll(np.arange(self._ticks), -ring.next_row)
        at_T = ring.at_T[order]
        order = order[(at_T >= since) & (at_T <= until)]  # A row that was not written yet is NaN: false.
        times = ring.at_T[order]
        columns = np.array(
            [column for column, (name, _) in enumerate(ring.dictionary.series) if name in names], np.intp
        )
        values_TS = ring.values_TS[order[:, None], columns]
        known_TS = ~np.isnan(values_TS)
        found = []
        for place, column in enumerate(columns):
            known_T = known_TS[:, place]
            if known_T.any():
                name, labels = ring.dictionary.series[int(column)]
                found.append(Reading(name, dict(labels), times[known_T], values_TS[known_T, place]))
        return found

    def latest(self, node: str) -> dict[str, float]:
        """Return the newest reading of each series by its text form, without those that had none."""
        ring = self._rings.get(node)
        if ring is None:
            return {}
        row = ring.values_TS[ring.next_row - 1]
        return {
            name + str(dict(labels) or ""): float(value)
            for (name, labels), value in zip(ring.dictionary.series, row, strict=True)
            if not np.isnan(value)
        }

    def _new_ring(self, dictionary: Dictionary) -> NodeRing:
        shape = (self._ticks, len(dictionary.series))
        return NodeRing(dictionary, np.full(shape, np.nan, np.float32), np.full(self._ticks, np.nan))
