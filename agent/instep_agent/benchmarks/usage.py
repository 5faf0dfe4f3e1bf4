"""What a process and its permanent children cost: CPU by the kernel's own clock of the process, memory by its maps."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

_SCHEDULED_CLOCK = 2
NOT_PERMANENT = {"py-spy"}
"""Started on order for seconds; it is not counted."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a group of processes."""

    pss_bytes: int
    """Shared pages divided among all that have them."""
    alone_bytes: int
    """The same if nobody outside the group had these files open: what the group costs on a node of its own."""
    rss_bytes: int
    """Summed over the processes; pages that they share count more than once."""


def group_of(pid: int) -> list[int]:
    """Give a process and all that come of it, without those that are not permanent."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(OSError):
            if Path(f"/proc/{one}/comm").read_text().strip() in NOT_PERMANENT:
                continue
            found.append(one)
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Give the CPU time of a process with all its threads, those that have ended included; 0 when it is gone."""
    try:
        return time.clock_gettime((~pid) << 3 | _SCHEDULED_CLOCK)
    except OSError:
        return 0.0


def ended_children_seconds(pid: int) -> float:
    """Give the CPU time of a process's children that have ended and were waited for; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def memory(pids: list[int]) -> Memory:
    """Give what the processes hold together."""
    pss = alone = rss = 0
    shared: dict[tuple[str, str], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            for place, sizes in _maps(pid):
                pss += sizes.get("Pss", 0)
                rss += sizes.get("Rss", 0)
                alone += sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0)
                both = sizes.get("Shared_Clean", 0) + sizes.get("Shared_Dirty", 0)
                shared[place] = max(shared.get(place, 0), both)
    return Memory(pss * 1024, (alone + sum(shared.values())) * 1024, rss * 1024)


def _maps(pid: int) -> list[tuple[tuple[str, str], dict[str, int]]]:
    """Give each mapping's place (file with offset, or address) with its sizes in KiB."""
    found: list[tuple[tuple[str, str], dict[str, int]]] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            name = words[5] if len(words) > 5 else ""
            found.append(((name, words[2]) if name.startswith("/") else (name, words[0]), {}))
        elif len(words) == 3 and words[2] == "kB":
            found[-1][1][words[0].rstrip(":")] = int(words[1])
    return found
