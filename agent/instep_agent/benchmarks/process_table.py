"""Which processes there are, each told from a later one of the same number by the moment of its start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_STATE, _START = 0, 19
"""Fields of /proc/<pid>/stat behind the name."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process; two of them are equal when they are the same one."""

    pid: int
    started_ticks: int
    """Since the boot, in the kernel's clock ticks."""
    is_zombie: bool = field(compare=False)


def process_table(pids: Iterable[int]) -> list[Process]:
    """Give those that exist."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found.append(Process(pid, int(fields[_START]), is_zombie=fields[_STATE] == "Z"))
    return found
