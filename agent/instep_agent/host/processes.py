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
    with Process(pid, started_ticks, namespace=namespace, proc=proc) as process:
        return process.look()


class Process:
    """One process that is looked at again and again; its `stat` is held open, which is most of a look's cost.

    Close it, or use it in a `with`. An open `stat` stays that of its process, whoever gets the number afterwards.
    """

    def __init__(self, pid: int, started_ticks: int, *, namespace: int = 0, proc: Path = PROC) -> None:
        self._pid, self._started_ticks, self._namespace, self._proc = pid, started_ticks, namespace, proc
        self._descriptor = -1
        self._is_in_ours = False

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self) -> ProcessLook:
        """Give its state, as `look_at` does."""
        if not self._is_in_ours:  # a reader stays in its own namespace for life: asked until it is known
            self._is_in_ours = self._namespace in (0, pid_namespace(self._proc))
        if not self._is_in_ours:
            return ProcessLook("unknown")
        try:
            if self._descriptor < 0:
                self._descriptor = _open_stat(self._pid, self._proc)
            fields = _fields(os.pread(self._descriptor, STAT_BYTES_MAX, 0))
            if int(fields[19]) != self._started_ticks:
                return ProcessLook("gone")
            cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
            return ProcessLook(_STATES.get(fields[0], "unknown"), cpu_seconds)
        except (FileNotFoundError, ProcessLookupError):
            return ProcessLook("gone")
        except (OSError, ValueError, IndexError):
            return ProcessLook("unknown")

    def close(self) -> None:
        """Let go of it; the next look opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


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
        data = _read_stat(pid, proc)
        name_end = data.rindex(b")")
        name = data[data.index(b"(") + 1 : name_end].decode("utf-8", "replace")
        return name, _STATES.get(chr(data[name_end + 2]), "unknown")
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
    return _fields(_read_stat(pid, proc))


def _read_stat(pid: int, proc: Path) -> bytes:
    descriptor = _open_stat(pid, proc)
    try:
        return os.read(descriptor, STAT_BYTES_MAX)
    finally:
        os.close(descriptor)


def _open_stat(pid: int, proc: Path) -> int:
    # Many times a second where there are many processes: joining paths with pathlib cost more than the reading.
    return os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)


def _fields(data: bytes) -> list[str]:
    return data[data.rindex(b")") + 2 :].decode("ascii", "replace").split()
