"""How long the threads of each rank wait for a processor: a rank may be slow although its GPU is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from instep_agent.errors import Absent, SourceFailed
from instep_agent.folders import names
from instep_agent.host.processes import start_ticks
from instep_agent.metric import counter, gauge
from instep_agent.node import Node
from instep_agent.ranks.places import RankProcess, RankTable
from instep_agent.wire import Sample

THREADS_MAX = 1024
"""Of one rank; further threads are not read."""


@dataclass(slots=True)
class _Watched:
    """One rank: what each thread's counters were, and what all have come to since the rank was first seen."""

    started_ticks: int
    threads: dict[str, tuple[int, int]] = field(default_factory=dict)
    running_ns: int = 0
    waiting_ns: int = 0
    is_known: bool = False

    def add(self, threads: dict[str, tuple[int, int]]) -> None:
        """Add what came since the last time; a thread that has ended takes nothing away."""
        if self.is_known:
            for thread, (running, waiting) in threads.items():
                before = self.threads.get(thread, (0, 0))
                self.running_ns += max(0, running - before[0])
                self.waiting_ns += max(0, waiting - before[1])
        self.threads, self.is_known = threads, True


class RankCpu:
    """Time that all threads of each rank ran, and waited for a core, from `/proc/<pid>/task/<tid>/schedstat`.

    Counted from when the agent first saw the rank. Ranks come from the table that `rank_records` keeps.
    """

    name = "rank_cpu"
    interval_seconds = 10.0
    deadline_seconds = 1.0
    child = ""
    rights = "sees the ranks' processes: the node's pid namespace (`hostPID`), or its /proc and `proc`"
    metrics = (
        counter("instep_rank_cpu_seconds_total", "Time that the rank's threads ran, since the agent saw it first."),
        counter(
            "instep_rank_cpu_wait_seconds_total",
            "Time that the rank's threads could have run but had no core, since the agent saw it first.",
        ),
        gauge("instep_rank_threads", "Threads of the rank.", is_on_page=False),
    )

    def __init__(self, table: RankTable) -> None:
        self._table = table
        self._watched: dict[tuple[str, int, int], _Watched] = {}

    def collect(self, node: Node) -> Iterator[Sample]:
        """Yield the counters of each rank. Raise `Absent` without ranks, `SourceFailed` if the kernel keeps none."""
        ranks = list(self._table.processes())
        self._watched = {key: self._watched.get(key, _Watched(one.started_ticks)) for key, one in _by_key(ranks)}
        if not ranks:
            raise Absent("No rank whose process can be seen runs on this node.")
        for key, rank in _by_key(ranks):
            if start_ticks(rank.pid, node.proc) != rank.started_ticks:
                continue
            threads = _threads(node.proc / str(rank.pid) / "task")
            watched = self._watched[key]
            watched.add(threads)
            labels = (("job", rank.job), ("rank", str(rank.rank)), ("run", rank.run))
            yield Sample(name="instep_rank_cpu_seconds_total", labels=labels, value=watched.running_ns / 1e9)
            yield Sample(name="instep_rank_cpu_wait_seconds_total", labels=labels, value=watched.waiting_ns / 1e9)
            yield Sample(name="instep_rank_threads", labels=labels, value=float(len(threads)))


def _by_key(ranks: list[RankProcess]) -> list[tuple[tuple[str, int, int], RankProcess]]:
    return [((one.run, one.attempt, one.rank), one) for one in ranks]


def _threads(folder: Path) -> dict[str, tuple[int, int]]:
    """Give nanoseconds run and waited by thread; a thread that ends meanwhile is left out."""
    found = {}
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the rank has just ended
        return {}
    try:
        for thread in names(descriptor, THREADS_MAX):
            if (counters := _schedstat(thread, descriptor)) is not None:
                found[thread] = counters
    finally:
        os.close(descriptor)
    return found


def _schedstat(thread: str, folder: int) -> tuple[int, int] | None:
    try:
        descriptor = os.open(f"{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError as error:
        try:
            os.stat(thread, dir_fd=folder)
        except OSError:
            return None
        raise SourceFailed(
            "Cannot read schedstat of a thread (no such file): this kernel was built without CONFIG_SCHED_INFO."
        ) from error
    except OSError:
        return None
    try:
        running, waiting, _ = os.read(descriptor, 128).split()
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return int(running), int(waiting)
