"""Watches the GPU health readings of every frame, and makes an event of what they begin to say.

What they mean is `instep_diagnosis.gpu_readings`' business; here is what changed. A frame costs one comparison of a few
values, since health hardly ever changes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from instep_agent.wire import Dictionary, Event, Frame
from instep_diagnosis.gpu_readings import HOLD_SECONDS, KIND, NAMES, Reading, ReadingFault, faults_told

NODES_MAX = 20_000
DICTIONARIES_MAX = 4096
SERIES_MAX = 512
"""Health readings of one node."""
WORD_MAX = 80


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a dictionary has the readings of health."""

    places: npt.NDArray[np.intp]
    series: tuple[tuple[str, dict[str, str]], ...]


@dataclass(slots=True)
class NodeHealth:
    """What one node's readings said last."""

    boot_id: str
    dictionary_hash: str = ""
    values: bytes = b""
    known: set[ReadingFault] = field(default_factory=set)
    """Of which anything was read in this boot."""
    since_ns: dict[ReadingFault, int] = field(default_factory=dict)
    """What is so → since when, on the node's monotonic clock."""
    told: set[ReadingFault] = field(default_factory=set)
    rises: dict[ReadingFault, int] = field(default_factory=dict)
    """How often each became so while it was watched."""

    @property
    def is_waiting(self) -> bool:
        """Whether something is so that was not told yet."""
        return len(self.told) < len(self.since_ns)


class GpuHealth:
    """The GPU health of every node, as its frames say."""

    def __init__(self) -> None:
        self._columns: OrderedDict[str, Columns] = OrderedDict()
        self._nodes: dict[str, NodeHealth] = {}

    def events(self, frame: Frame, dictionary: Dictionary | None) -> tuple[Event, ...]:
        """Return what a frame's readings begin to say; nothing for what they said before."""
        if dictionary is None or not frame.values:
            return ()
        columns = self._columns_of(dictionary)
        if not columns.series:
            return ()
        node = self._nodes.get(frame.node)
        if node is None or node.boot_id != frame.boot_id:
            if node is None and len(self._nodes) >= NODES_MAX:
                return ()
            node = self._nodes[frame.node] = NodeHealth(frame.boot_id)
        values = np.frombuffer(frame.values, dtype="<f8")[columns.places]
        said = values.tobytes()
        if not node.is_waiting and (node.dictionary_hash, node.values) == (dictionary.hash, said):
            return ()
        node.dictionary_hash, node.values = dictionary.hash, said
        readings = (Reading(*series, float(value)) for series, value in zip(columns.series, values, strict=True))
        return _begun(node, faults_told(readings), frame)

    def _columns_of(self, dictionary: Dictionary) -> Columns:
        found = self._columns.get(dictionary.hash)
        if found is None:
            named = [number for number, (name, _) in enumerate(dictionary.series) if name in NAMES][:SERIES_MAX]
            series = tuple((name, dict(labels)) for name, labels in (dictionary.series[each] for each in named))
            found = self._columns[dictionary.hash] = Columns(np.array(named, np.intp), series)
            if len(self._columns) > DICTIONARIES_MAX:
                self._columns.popitem(last=False)
        return found


def _begun(node: NodeHealth, said: dict[ReadingFault, str], frame: Frame) -> tuple[Event, ...]:
    """Return the faults that were so for long enough and were not told, and remember what was said."""
    now_ns, found = frame.anchor.monotonic_ns, []
    for fault, words in said.items():
        if not words:
            node.since_ns.pop(fault, None)
            node.told.discard(fault)
        elif fault not in node.since_ns:
            node.since_ns[fault] = now_ns
            node.rises[fault] = node.rises.get(fault, 0) + (fault in node.known)
        is_due = words and now_ns - node.since_ns[fault] >= HOLD_SECONDS[fault.fault] * 1e9
        if is_due and fault not in node.told:
            node.told.add(fault)
            found.append(_event(fault, words, node, frame))
        if len(node.known) < SERIES_MAX:
            node.known.add(fault)
    return tuple(found)


def _event(fault: ReadingFault, words: str, node: NodeHealth, frame: Frame) -> Event:
    rise = node.rises[fault]
    parts = (frame.boot_id[:WORD_MAX], KIND, fault.fault, (fault.uuid or fault.gpu)[:WORD_MAX])
    since_ns = node.since_ns[fault]
    fields = {"fault": fault.fault, "gpu": fault.gpu[:WORD_MAX], "uuid": fault.uuid[:WORD_MAX]}
    return Event(
        id=":".join((*parts, *(("drill",) if fault.is_drill else ()), str(rise))),
        kind=KIND,
        text=words[:1000],
        age_seconds=(frame.anchor.monotonic_ns - since_ns) / 1e9,
        monotonic_ns=since_ns,
        realtime_ns=frame.anchor.realtime_ns - (frame.anchor.monotonic_ns - since_ns),
        fields=fields | ({"is_new": "true"} if rise else {}),
        is_drill=fault.is_drill,
    )
