"""Processes that the demo starts: each carries a mark, so that at the end a scan can prove that none is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from instep.main import DIE_WITH_PARENT

MARK = "INSTEP_DEMO"
END_SECONDS_MAX = 10.0


@dataclass(slots=True)
class Started:
    """One process of ours."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """Starts `instep VERB …` and ends whatever of it is left."""

    def __init__(self, mark: str, logs: Path, environment: dict[str, str]) -> None:
        self._mark, self._logs = mark, logs
        self._environment = {**os.environ, **environment, MARK: mark}
        self._started: list[Started] = []

    def start(self, name: str, *arguments: str, output: int | None = None, **variables: str) -> Started:
        """Start one verb of this very installation; its output goes to a log unless `output` says where."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "instep", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output if output is not None else file,
                stderr=file,
                start_new_session=True,
                env=self._environment | {DIE_WITH_PARENT: str(os.getpid())} | variables,
            )
        started = Started(name, process, log)
        self._started.append(started)
        return started

    def run(self, name: str, *arguments: str) -> None:
        """Run one verb to its end. Raise CalledProcessError when it fails."""
        started = self.start(name, *arguments)
        code = started.process.wait(timeout=60)
        if code:
            raise subprocess.CalledProcessError(code, arguments, stderr=tail(started.log))

    def newest(self, name: str) -> Started:
        """Return the newest process of that name."""
        return next(started for started in reversed(self._started) if started.name == name)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the newest process of that name, and wait for its end when it is SIGKILL."""
        process = self.newest(name).process
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait(END_SECONDS_MAX)

    def end(self, *names: str) -> None:
        """End the named ones, or all: SIGTERM, then SIGKILL."""
        chosen = [started for started in self._started if not names or started.name in names]
        for started in chosen:
            if started.process.poll() is None:
                started.process.terminate()
        until = time.monotonic() + END_SECONDS_MAX
        for started in chosen:
            try:
                started.process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()
            if started.process.stdout is not None:
                started.process.stdout.close()
        self._started = [started for started in self._started if started not in chosen]

    def left_over(self) -> list[int]:
        """Pids of processes that carry the mark, ours or anybody's child of ours."""
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted in (entry / "environ").read_bytes().split(b"\0") and not _is_zombie(entry):
                        found.append(int(entry.name))
        return found

    def kill_left_over(self) -> None:
        """End what the scan finds."""
        for pid in self.left_over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for a message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
