"""What the kernel says about a process, told apart from a later process with the same number."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_STATES = {
    "R": "running",
    "S": "sleeping",
    "I": "sleeping",
    "T": "stopped",
    "t": "stopped",
    "D": "uninterruptible",
    "Z": "zombie",
    "X": "gone",
    "x": "gone",
}
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
PROCESSES_MAX = 65_536
STAT_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class ProcessLook:
    """One look at a process: its state as in `wire.RankReport.process_state`, and its CPU seconds where known."""

    state: str
    cpu_seconds: float | None = None


def look_at(pid: int, started_ticks: int, *, namespace: int = 0, proc: Path = PROC) -> ProcessLook:
    """Give the state of process `pid` that started at `started_ticks`; `gone` also when the number is another's by now.

    A pid counts in the pid namespace it was taken in; seen from another one it says nothing, so the state is `unknown`.
    """
    if namespace and namespace != pid_namespace(proc):
        return ProcessLook("unknown")
    try:
        fields = _stat_fields(pid, proc)
        if int(fields[19]) != started_ticks:
            return ProcessLook("gone")
        return ProcessLook(_STATES.get(fields[0], "unknown"), (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND)
    except (FileNotFoundError, ProcessLookupError):
        return ProcessLook("gone")
    except (OSError, ValueError, IndexError):
        return ProcessLook("unknown")


def start_ticks(pid: int, proc: Path = PROC) -> int:
    """Give when a process started, in clock ticks since boot; 0 where it cannot be read."""
    try:
        return int(_stat_fields(pid, proc)[19])
    except (OSError, ValueError, IndexError):
        return 0


def owner_of(pid: int, proc: Path = PROC) -> int | None:
    """Give the real user of a process; None where it cannot be read. The owner of /proc/<pid> would be root's for a
    process that may not be dumped.
    """
    try:
        with (proc / str(pid) / "status").open(encoding="utf-8", errors="replace") as lines:
            return next((int(line.split()[1]) for line in lines if line.startswith("Uid:")), None)
    except (OSError, ValueError, IndexError):
        return None


def ids_by_start(proc: Path = PROC) -> dict[int, list[int]]:
    """Give the processes by when they started, in clock ticks since boot; empty when there is no process table.

    A process in a container has another number on the node than in its own namespace; its start is the same in both.
    """
    found: dict[int, list[int]] = {}
    try:
        numbers = process_ids(proc)
    except OSError:
        return found
    for pid in numbers:
        if ticks := start_ticks(pid, proc):
            found.setdefault(ticks, []).append(pid)
    return found


def process_ids(proc: Path = PROC) -> list[int]:
    """Give the numbers of all processes, at most `PROCESSES_MAX`; raise OSError when the table cannot be read."""
    with os.scandir(proc) as entries:
        return [int(name) for name in islice((e.name for e in entries if e.name.isdecimal()), PROCESSES_MAX)]


def name_and_state(pid: int, proc: Path = PROC) -> tuple[str, str] | None:
    """Give the name that the kernel keeps of a process, 15 characters, and its state; None when it has ended."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
        name_end = text.rindex(")")
        return text[text.index("(") + 1 : name_end], _STATES.get(text[name_end + 2], "unknown")
    except (OSError, ValueError, IndexError):
        return None


def is_known_as(pid: int, number: int, namespace: int, proc: Path = PROC) -> bool:
    """Whether process `pid` has this number in this pid namespace, as far as that may be looked at."""
    with contextlib.suppress(OSError):  # needs the rights of a debugger; the number then has to do
        if (proc / str(pid) / "ns/pid").stat().st_ino != namespace:
            return False
    try:
        with (proc / str(pid) / "status").open(encoding="utf-8", errors="replace") as lines:
            numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [str(pid)])
    except OSError:
        return False
    return numbers[-1:] == [str(number)]


def pid_namespace(proc: Path = PROC) -> int:
    """Give the inode number of the reader's own pid namespace; 0 where it cannot be read."""
    try:
        return os.stat(f"{proc}/self/ns/pid").st_ino  # noqa: PTH116  as below
    except OSError:
        return 0


def _stat_fields(pid: int, proc: Path) -> list[str]:
    """Give the fields of `stat` from the state on: the name before it may itself contain blanks and brackets."""
    # Twice a second for each rank: joining paths with pathlib cost more than the reading.
    descriptor = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, STAT_BYTES_MAX).decode(errors="replace")
    finally:
        os.close(descriptor)
    return text[text.rindex(")") + 2 :].split()
