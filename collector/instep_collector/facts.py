"""Events of nodes as facts that detectors can join with ranks, kept for as long as they can explain anything."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from instep_agent.wire import Event, GpuReport
from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.kernel_line import (
    LINE_CHARACTERS_MAX,
    STATEMENT_LINES_MAX,
    LineKind,
    read_kernel_line,
    read_kernel_lines,
)
from msgspec.structs import replace

FACTS_MAX = 512
"""Of one node; the oldest go first."""
FACT_SECONDS = 600.0
STATEMENT_SECONDS = 2.0
"""The driver writes the lines of one statement at once; a later line belongs to no earlier statement."""
FRESH_MAX = 10_000
FRESH_TAKEN_MAX = 200
"""In one look: each costs about 0.1 ms, and frames wait meanwhile."""
NODES_MAX = 20_000
GPU_CHARACTERS_MAX = 100
OF_OWN_GPU = frozenset({"gpu_event", "gpu_lost", "gpu_back", "gpu_recovery", "gpu_reading"})
"""Kinds of events whose fields name a GPU of their own node; those of NCCL name one of another."""

_pci = re.compile(r"\b([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2})(?:\.[0-7])?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """One event and when it happened, on the server's monotonic clock."""

    event: Event
    at: float
    boot_id: str


class FactBook:
    """Recent events by node."""

    def __init__(self) -> None:
        self._events: dict[str, deque[KeptEvent]] = {}
        self._seen: dict[str, set[str]] = {}
        self._fresh: deque[tuple[str, KeptEvent]] = deque(maxlen=FRESH_MAX)

    def add(self, node: str, event: Event, at: float, *, boot_id: str = "") -> bool:
        """Keep an event that happened at `at`; False when it was there already."""
        if node not in self._seen and len(self._seen) >= NODES_MAX:
            return False
        seen = self._seen.setdefault(node, set())
        if event.id in seen:
            return False
        kept = self._events.setdefault(node, deque())
        if len(kept) >= FACTS_MAX:
            seen.discard(kept.popleft().event.id)
        kept.append(_whole(KeptEvent(event, at, boot_id), kept))
        seen.add(event.id)
        self._fresh.append((node, kept[-1]))
        return True

    def fresh_nodes(self) -> set[str]:
        """Return the nodes of the facts that `take_fresh` would return."""
        return {node for node, _ in islice(self._fresh, FRESH_TAKEN_MAX)}

    def take_fresh(self, now: float, gpus: dict[str, tuple[GpuReport, ...]]) -> list[NodeFact]:
        """Return the facts added since the last call, oldest first; in a storm the others come with the next call."""
        taken = [self._fresh.popleft() for _ in range(min(len(self._fresh), FRESH_TAKEN_MAX))]
        return [as_fact(node, kept, now, gpus.get(node, ())) for node, kept in taken]

    def facts(self, nodes: Iterable[str], now: float, gpus: dict[str, tuple[GpuReport, ...]]) -> list[NodeFact]:
        """Return the recent facts of some nodes, each joined with the GPU that it names."""
        return [
            as_fact(node, kept, now, gpus.get(node, ()))
            for node in sorted(nodes)
            for kept in self._events.get(node, ())
            if now - kept.at <= FACT_SECONDS
        ]


def _whole(new: KeptEvent, kept: deque[KeptEvent]) -> KeptEvent:
    """Return a kernel line that ends a statement of several with the whole statement as its text, any other as is."""
    event = new.event
    if event.kind != "kernel_line" or "NVRM:" not in event.text or _pci.search(event.text):
        return new
    lines = [one.event for one in _lines_before(new, kept)]
    address = list(read_kernel_lines([*(line.text for line in lines), event.text]))[-1].pci
    opening = [number for number, line in enumerate(lines) if address and address in line.text.lower()]
    if address is None or not opening:
        return new
    parts = [line.text for line in lines[opening[-1] :] if _is_part(line.text)]
    text = " ".join((*parts, event.text))[:LINE_CHARACTERS_MAX]
    return KeptEvent(replace(event, text=text, fields=event.fields | {"pci": address}), new.at, new.boot_id)


def _lines_before(new: KeptEvent, kept: deque[KeptEvent]) -> list[KeptEvent]:
    """Return the kernel lines of the same boot shortly before this one, oldest first."""
    found: list[KeptEvent] = []
    for one in reversed(kept):
        if len(found) >= STATEMENT_LINES_MAX or abs(new.at - one.at) > STATEMENT_SECONDS or one.boot_id != new.boot_id:
            break
        if one.event.kind == "kernel_line":
            found.append(one)
    return found[::-1]


def _is_part(text: str) -> bool:
    """Whether a line between a statement's first and last may belong to it: the driver's, and no fault by itself."""
    return "NVRM:" in text and read_kernel_line(text).kind is LineKind.NONE


def as_fact(node: str, kept: KeptEvent, now: float, gpus: tuple[GpuReport, ...]) -> NodeFact:
    """Return an event as a fact; its GPU is filled in when the text names the PCI address of one the node has, else as
    the event names it itself: one that was lost is on no list any more.
    """
    event = kept.event
    own = event.fields if event.kind in OF_OWN_GPU else {}
    uuid = own.get("uuid")
    gpu = gpu_named(f"{event.text} {event.fields.get('pci', '')}", gpus)
    gpu = gpu or next((one for one in gpus if uuid and one.uuid == uuid), None)
    return NodeFact(
        event_id=event.id,
        node=node,
        kind=event.kind,
        text=event.text,
        age_seconds=max(0.0, now - kept.at),
        gpu=gpu.uuid if gpu else own.get("uuid", "")[:GPU_CHARACTERS_MAX],
        gpu_index=gpu.index if gpu else _index(own.get("gpu", "")),
        is_drill=event.is_drill,
        boot_id=kept.boot_id,
        fields=dict(event.fields),
    )


def _index(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else None


def gpu_named(text: str, gpus: tuple[GpuReport, ...]) -> GpuReport | None:
    """Return the GPU whose PCI address a line names, or None.

    >>> gpu_named("NVRM: Xid (PCI:0000:3B:00): 79", (GpuReport(index=1, uuid="GPU-a", pci="0000:3b:00"),)).index
    1
    """
    addresses = {short_address(match) for match in _pci.findall(text)}
    return next((gpu for gpu in gpus if short_address(gpu.pci) in addresses), None)


def short_address(address: str) -> str:
    """Return a PCI address in lower case with a four-digit domain: drivers write four digits or eight, with a
    function or not.

    >>> short_address("00000000:3B:00.0")
    '0000:3b:00'
    """
    domain, _, rest = address.lower().partition(".")[0].partition(":")
    return f"{domain[-4:]:0>4}:{rest}"
