"""Supervisors as real processes for tests: started, listened to, and gone at the end with all that they started."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from instep_agent.rank_record import RankRecordError, read_record

from tests.trainer import launch

SCRIPTS = Path(__file__).parent / "scripts"
WAITS = SCRIPTS / "waits.py"
EVENT_SECONDS_MAX = 40.0
MARK = "SUPERVISOR_TEST"
FAST = ("--rank-start", "exec")
"""Scripts without torch need no process that has imported it."""


@dataclass
class Supervisor:
    """One `instep run`."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, words: str, *, times: int = 1) -> None:
        """Wait until it has said this so many times."""
        wait_for(lambda: self.said.count(words) >= times, f"{words!r} ({times} times) in:", self.log)

    def ends(self) -> int:
        """Wait for its end, and return its exit status."""
        wait_for(lambda: self.process.poll() is not None, "the end of the supervisor:", self.log)
        return self.process.returncode

    @property
    def last_line(self) -> str:
        return self.said.splitlines()[-1]


class Node:
    """Starts supervisors over one record root. Use it in a `with`."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.mark = secrets.token_hex(8)
        self._started: list[Supervisor] = []

    def start(self, script: Path | str, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> Supervisor:
        log = self.folder / f"supervisor-{len(self._started)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                launch.command(self.root, script, *arguments, options=options),
                env=launch.environment(**variables) | {MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(Supervisor(process, log))
        return self._started[-1]

    def waiting(self, *more: str, options: tuple[str, ...] = (), **variables: str) -> Supervisor:
        """Start a supervisor of two ranks that wait for a word."""
        return self.start(
            WAITS, str(self.folder), *more, options=("--nproc-per-node", "2", *FAST, *options), **variables
        )

    def pids(self, attempt: int, ranks: tuple[int, ...] = (0, 1)) -> dict[int, list[int]]:
        """Wait until the ranks of an attempt have said that they are there; their pids, each with its child's."""
        files = {rank: self.folder / f"rank-{attempt}-{rank}" for rank in ranks}
        wait_for(lambda: all(file.exists() for file in files.values()), f"ranks of attempt {attempt}", self.last_log)
        return {rank: [int(pid) for pid in file.read_text().split()] for rank, file in files.items()}

    def end(self, how: str = "0") -> None:
        """Give the waiting ranks their word."""
        (self.folder / "end.new").write_text(how)
        (self.folder / "end.new").rename(self.folder / "end")

    @property
    def was_started(self) -> bool:
        """Whether any rank ever ran."""
        return any(self.folder.glob("rank-*"))

    @property
    def last_log(self) -> Path:
        return self._started[-1].log

    def left_over(self) -> list[int]:
        """Processes that carry this node's mark, beside none."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and is_alive(int(entry.name)):
                with contextlib.suppress(OSError):
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        for supervisor in self._started:
            with contextlib.suppress(ProcessLookupError):
                supervisor.process.kill()
            supervisor.process.wait()
        try:
            wait_for(lambda: not self.left_over(), "the end of every process of the test")
        finally:
            for pid in self.left_over():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def node(folder: Path) -> Iterator[Node]:
    """A node whose supervisors end with it."""
    with launch.record_root() as root:
        one = Node(folder, root)
        try:
            yield one
        finally:
            one.close()


def wait_for(seen: Callable[[], bool], what: str, log: Path | None = None) -> None:
    """Wait for an event; fail with what was awaited and the end of a log."""
    until = time.monotonic() + EVENT_SECONDS_MAX
    while not seen():
        if time.monotonic() > until:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-25:]) if log is not None else ""
            raise AssertionError(f"not within {EVENT_SECONDS_MAX:.0f} s: {what}\n{end}")
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def rank_pid(root: Path, name: str, run: str, attempt: int, rank: int) -> int:
    """The pid in a rank's record, once it is there."""
    path = root / name / run / str(attempt) / str(rank)
    pids: list[int] = []

    def is_there() -> bool:
        with contextlib.suppress(RankRecordError, OSError):
            pids.append(read_record(path).header.pid)
        return bool(pids)

    wait_for(is_there, f"the record {path}")
    return pids[-1]
