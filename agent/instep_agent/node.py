"""What a source is given and what it gives: the node with its injected roots and clocks, and the kinds of reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from instep_agent.clocks import boot_id
from instep_agent.metric import Metric
from instep_agent.wire import GpuReport, RankReport, Sample


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its name comes from one setting, never from the host name; every file is read beneath `root`."""

    name: str
    root: Path = Path("/")
    record_root: Path = Path("/dev/shm/instep")
    proc_root: Path | None = None
    """Where the process table is when not in `<root>/proc`: an agent may see it through its own /proc only."""
    monotonic_ns: Callable[[], int] = time.monotonic_ns
    realtime_ns: Callable[[], int] = time.time_ns

    @property
    def proc(self) -> Path:
        """The node's process table."""
        return self.root / "proc" if self.proc_root is None else self.proc_root

    @property
    def driver(self) -> Path:
        """What the GPU driver tells of itself, under the file system's root."""
        return self.root / "proc/driver"

    @property
    def boot_id(self) -> str:
        """This boot of the node."""
        return _boot_id(self.root, self.proc_root)


@lru_cache(maxsize=8)
def _boot_id(root: Path, proc_root: Path | None) -> str:
    """Ask by the two paths that a node keeps: making and hashing a new one cost a fifth of a look at a rank."""
    return boot_id(Node("", root, proc_root=proc_root).proc)


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that happened at a moment of the node's clocks; becomes a `wire.Event`."""

    kind: str
    text: str
    monotonic_ns: int
    realtime_ns: int
    fields: dict[str, str] = field(default_factory=dict)
    is_drill: bool = False
    identity: str = ""
    """Unique within this boot, where the fact has such a name: then a restarted agent reports it under the same id."""


Reading = Sample | Fact | RankReport | GpuReport


class Source(Protocol):
    """Reads one thing on one node. The runner times it, reports its success, and goes on when it fails.

    A source may also state `rights`, one sentence on what it needs beyond plain files that everybody may read (such as
    "reads /dev/kmsg: CAP_SYSLOG"), and `is_rate = True` when its first turn has nothing to compare with. One in the
    agent's own thread may have `wake_descriptor() -> int`: a descriptor that becomes readable when there is something
    to collect, or -1; then it is asked at once, and otherwise only every second. It may also have
    `last_words(node) -> Iterator[Fact]`: what it has counted and not said yet, asked for when the agent stops. One in a
    child may have `watch(node, timeout_seconds)` (`instep_agent.running.isolation`). An attribute `rest_seconds` says
    after a turn how long after it was asked there will be nothing new; its interval counts where that is longer.
    """

    @property
    def name(self) -> str:
        """Name in metrics, logs and configuration."""

    @property
    def interval_seconds(self) -> float:
        """How often it is asked."""

    @property
    def deadline_seconds(self) -> float:
        """How long one turn may take. Past it the source is a finding, and one that runs in a child loses its child."""

    @property
    def child(self) -> str:
        """Name of the child process that runs it, for whatever a driver may never answer; empty is the agent itself.

        Sources that name the same child share it, one after the other.
        """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric that its samples may carry; the runner drops a sample that is not in this list and says so."""

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield what is there now. Raise `Absent` where there is no such thing, `SourceFailed` when it cannot look."""


def rights_of(source: Source) -> str:
    """Give what a source needs beyond files that everybody may read, empty when nothing."""
    return str(getattr(source, "rights", ""))


def wake_descriptor(source: Source) -> int:
    """Give the descriptor that becomes readable when a source has something to say, -1 when it has none."""
    found = getattr(source, "wake_descriptor", None)
    return int(found()) if found is not None else -1
