"""Watches the GPU health readings of every frame, and makes an event of what they begin to say.

What they mean is `instep_diagnosis.gpu_readings`' business; here is what changed. A frame costs one look whether the
same few values were there before, since health hardly ever changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isnan

import numpy as np
import numpy.typing as npt
from instep_agent.wire import Dictionary, Event, Frame
from instep_diagnosis.gpu_readings import (
    HOLD_SECONDS,
    KIND,
    Counter,
    Reading,
    ReadingFault,
    actions_asked,
    errors_counted,
    faults_told,
    is_read,
    remembered,
    rises,
)

NODES_MAX = 20_000
DICTIONARIES_MAX = 4096
SERIES_MAX = 512
"""Health readings of one node."""
WORD_MAX = 80
LOOKS_MAX = 8
"""Sources have intervals of their own, so that frames with and without their readings alternate."""
REPEAT_SECONDS = 60.0
"""Errors that go on are told once in this time for each GPU, with how many there were."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a dictionary has the readings of health."""

    hash: str
    places: npt.NDArray[np.intp]
    series: tuple[tuple[str, dict[str, str]], ...]


@dataclass(slots=True)
class Look:
    """Values that say nothing new, and when they were seen last."""

    counters: tuple[Counter, ...]
    """Of which there is a reading among them, of no more than was told."""
    at_ns: int


@dataclass(slots=True)
class NodeHealth:
    """What one node's readings said last."""

    boot_id: str
    dictionary_hash: str = ""
    values: dict[int, float] = field(default_factory=dict)
    """By number of the series: the newest reading."""
    looks: dict[bytes, Look] = field(default_factory=dict)
    known: set[ReadingFault] = field(default_factory=set)
    """Of which anything was read in this boot."""
    since_ns: dict[ReadingFault, int] = field(default_factory=dict)
    """What is so → since when, on the node's monotonic clock."""
    told: set[ReadingFault] = field(default_factory=set)
    rises: dict[ReadingFault, int] = field(default_factory=dict)
    """How often each became so while it was watched."""
    newest_ns: int = 0
    """When its newest frame was made, on its monotonic clock."""
    counted: dict[Counter, float] = field(default_factory=dict)
    """Errors that were told, or of before."""
    counted_ns: dict[Counter, int] = field(default_factory=dict)
    """When each counter was last read with no more than these."""
    rose_ns: dict[ReadingFault, int] = field(default_factory=dict)
    """When errors were last told."""
    asked: set[str] = field(default_factory=set)
    """GPUs (UUID, else index) whose driver asks for something, as it was told or read last."""
    is_quiet: bool = False
    """Errors that were counted wait to be told."""

    @property
    def is_waiting(self) -> bool:
        """Whether something is so that was not told yet, or may be over without being told."""
        return self.is_quiet or bool(self.asked) or len(self.told) < len(self.since_ns)


class GpuHealth:
    """The GPU health of every node, as its frames say."""

    def __init__(self) -> None:
        self._columns: OrderedDict[str, Columns] = OrderedDict()
        self._nodes: dict[str, NodeHealth] = {}

    def events(self, frame: Frame, dictionary: Dictionary | None) -> tuple[Event, ...]:
        """Return what a frame's readings begin to say; nothing for what they said before."""
        columns = self._columns_of(dictionary) if dictionary is not None and frame.values else None
        if not frame.events and (columns is None or not columns.series):
            return ()
        node = self._nodes.get(frame.node)
        if node is None or node.boot_id != frame.boot_id:
            if node is None and len(self._nodes) >= NODES_MAX:
                return ()
            node = self._nodes[frame.node] = NodeHealth(frame.boot_id)
        _note_asked(node, frame.events)
        return () if columns is None else _said(node, frame, columns)

    def expect_asked(self, node: str, boot_id: str, gpu: str) -> None:
        """Know that a GPU's driver asks for something, of which no frame told this server."""
        if node in self._nodes or len(self._nodes) < NODES_MAX:
            _keep_asked(self._nodes.setdefault(node, NodeHealth(boot_id)), gpu, is_asked=True)

    def _columns_of(self, dictionary: Dictionary) -> Columns:
        found = self._columns.get(dictionary.hash)
        if found is None:
            all_series = ((number, name, dict(labels)) for number, (name, labels) in enumerate(dictionary.series))
            named = [(number, (name, labels)) for number, name, labels in all_series if is_read(name, labels)]
            places = np.array([number for number, _ in named[:SERIES_MAX]], np.intp)
            found = self._columns[dictionary.hash] = Columns(
                dictionary.hash, places, tuple(series for _, series in named[:SERIES_MAX])
            )
            if len(self._columns) > DICTIONARIES_MAX:
                self._columns.popitem(last=False)
        return found


def _said(node: NodeHealth, frame: Frame, columns: Columns) -> tuple[Event, ...]:
    """Return what the readings of a frame begin to say."""
    if frame.anchor.monotonic_ns < node.newest_ns:  # It comes late: what it says is not so any more.
        return ()
    node.newest_ns = frame.anchor.monotonic_ns
    values = np.frombuffer(frame.values, dtype="<f8")[columns.places]
    bytes_said = values.tobytes()
    look = node.looks.get(bytes_said) if node.dictionary_hash == columns.hash else None
    if look is not None and not node.is_waiting:
        look.at_ns = node.newest_ns
        return ()
    readings = [Reading(*series, float(value)) for series, value in zip(columns.series, values, strict=True)]
    counted = errors_counted(readings)
    _keep(node, columns, readings)
    events = (
        *_begun(node, faults_told(readings), frame),
        *_risen(node, counted, frame),
        *_asked_no_more(node, actions_asked(readings), frame),
    )
    told = tuple(counter for counter, value in counted.items() if node.counted.get(counter) == value)
    node.looks[bytes_said] = Look(told, node.newest_ns)
    return events


def _keep(node: NodeHealth, columns: Columns, readings: Sequence[Reading]) -> None:
    """Remember the readings. Where one is another than before, or has another number, older looks are over."""
    for look in sorted(node.looks.values(), key=lambda look: look.at_ns):
        node.counted_ns |= dict.fromkeys(look.counters, look.at_ns)
    if node.dictionary_hash != columns.hash:
        node.dictionary_hash, node.values = columns.hash, {}
        node.looks.clear()
    fresh = {number: one.value for number, one in enumerate(readings) if not isnan(one.value)}
    if any(node.values.get(number) != value for number, value in fresh.items()) or len(node.looks) >= LOOKS_MAX:
        node.looks.clear()
    node.values |= fresh


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
            rise = node.rises[fault]
            fields = {"is_new": "true"} if rise else {}
            found.append(_event(fault, words, frame, since_ns=node.since_ns[fault], mark=str(rise), fields=fields))
        if len(node.known) < SERIES_MAX:
            node.known.add(fault)
    return tuple(found)


def _risen(node: NodeHealth, counted: dict[Counter, float], frame: Frame) -> tuple[Event, ...]:
    """Return the faults of which counters counted more, each once in REPEAT_SECONDS, and remember what was counted."""
    now_ns, found = frame.anchor.monotonic_ns, rises(node.counted, counted)
    by_fault: dict[ReadingFault, dict[Counter, float]] = {}
    for counter, rise in found.items():
        by_fault.setdefault(counter.fault, {})[counter] = rise
    quiet_ns = now_ns - int(REPEAT_SECONDS * 1e9)
    quiet = {fault for fault in by_fault if node.rose_ns.get(fault, quiet_ns) > quiet_ns}
    events = [_rise(fault, own, counted, node, frame) for fault, own in by_fault.items() if fault not in quiet]
    node.rose_ns |= dict.fromkeys(by_fault.keys() - quiet, now_ns)
    node.is_quiet = bool(quiet)
    if len(node.counted) <= SERIES_MAX:
        told = {counter: value for counter, value in counted.items() if counter.fault not in quiet}
        node.counted = remembered(node.counted, told)
    return tuple(events)


def _rise(
    fault: ReadingFault, own: dict[Counter, float], counted: dict[Counter, float], node: NodeHealth, frame: Frame
) -> Event:
    """Return what the counters of one fault counted. When exactly is not known: now at the latest."""
    now_ns = frame.anchor.monotonic_ns
    seconds = (now_ns - min(node.counted_ns.get(counter, now_ns) for counter in own)) / 1e9
    said = " and ".join(f"{counter.name} by {rise:.0f} to {counted[counter]:.0f}" for counter, rise in own.items())
    words = f"Within {seconds:.0f} s GPU {fault.gpu} counted errors that could not be corrected: {said}."
    fields = {"is_new": "true", "within_seconds": f"{seconds:.0f}"}
    return _event(fault, words, frame, since_ns=now_ns, mark=str(now_ns), fields=fields)


def _note_asked(node: NodeHealth, events: Iterable[Event]) -> None:
    """Remember what drivers ask for, as their agent tells."""
    for event in events:
        if event.kind == "gpu_recovery" and not event.is_drill:
            gpu = event.fields.get("uuid") or event.fields.get("gpu", "")
            _keep_asked(node, gpu, is_asked=event.fields.get("action") != "0")


def _keep_asked(node: NodeHealth, gpu: str, *, is_asked: bool) -> None:
    if not is_asked:
        node.asked.discard(gpu)
    elif len(node.asked) < SERIES_MAX:
        node.asked.add(gpu)


def _asked_no_more(node: NodeHealth, actions: dict[tuple[str, str], int], frame: Frame) -> Iterator[Event]:
    """Yield that a driver asks for nothing any more where nobody told it: a GPU is reset while its agent is stopped."""
    now_ns = frame.anchor.monotonic_ns
    for (gpu, uuid), action in actions.items():
        is_over = not action and (uuid or gpu) in node.asked
        _keep_asked(node, uuid or gpu, is_asked=bool(action))
        if is_over:
            yield Event(
                id=":".join((frame.boot_id[:WORD_MAX], "gpu_recovery", (uuid or gpu)[:WORD_MAX], str(now_ns))),
                kind="gpu_recovery",
                text=f"GPU {gpu[:WORD_MAX]} asks for nothing any more, as its reading says.",
                age_seconds=0.0,
                monotonic_ns=now_ns,
                realtime_ns=frame.anchor.realtime_ns,
                fields={"gpu": gpu[:WORD_MAX], "uuid": uuid[:WORD_MAX], "action": "0"},
            )


def _event(fault: ReadingFault, words: str, frame: Frame, *, since_ns: int, mark: str, fields: dict[str, str]) -> Event:
    """Return a fault as an event; `mark` tells it from others of the same fault in the same boot."""
    parts = (frame.boot_id[:WORD_MAX], KIND, fault.fault, (fault.uuid or fault.gpu)[:WORD_MAX])
    who = {"fault": fault.fault, "gpu": fault.gpu[:WORD_MAX], "uuid": fault.uuid[:WORD_MAX]}
    return Event(
        id=":".join((*parts, *(("drill",) if fault.is_drill else ()), mark)),
        kind=KIND,
        text=words[:1000],
        age_seconds=(frame.anchor.monotonic_ns - since_ns) / 1e9,
        monotonic_ns=since_ns,
        realtime_ns=frame.anchor.realtime_ns - (frame.anchor.monotonic_ns - since_ns),
        fields=who | fields,
        is_drill=fault.is_drill,
    )
