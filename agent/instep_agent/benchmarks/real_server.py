"""A real `instep server` with its SQLite database in the benchmark's folder, and what is stored in it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from instep_agent.benchmarks.ports import free_port
from instep_agent.benchmarks.receiver import Stored
from instep_agent.errors import ConfigurationInvalid

READY_SECONDS_MAX = 60.0
POLL_SECONDS = 0.01
"""So often the store is asked whether an event is in it; what is measured is late by no more than that."""
_EVENTS = "SELECT id, kind, text, fields, node, realtime, received_at FROM events ORDER BY rowid"
_NEW = "SELECT rowid, id, kind, text, fields, node, realtime, received_at FROM events WHERE rowid > ? ORDER BY rowid"


class RealServer:
    """`start` it; `kill` ends it as a crash does, and `start` then goes on with the same folder and port."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs yet; state and log will be in `folder`."""
        self._folder = folder / "server"
        self._log = folder / "server.log"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._store: sqlite3.Connection | None = None
        self._read_until = 0
        self.token = ""
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server and wait until it takes frames. Raise `ConfigurationInvalid` when it does not come up."""
        command = [sys.executable, "-m", "instep", "server", "--listen", f"127.0.0.1:{self._port}"]
        command += ["--state-dir", str(self._folder), "--json-ready"]
        environment = {**os.environ, "INSTEP_DIE_WITH_PARENT": str(os.getpid())}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        line = _first_line(self._process.stdout)
        if not line:
            self.kill()
            said = self._log.read_text(errors="replace").strip().splitlines()[-2:]
            raise ConfigurationInvalid(f"`instep server` does not start: {' | '.join(said) or 'it said nothing'}.")
        self.token = Path(json.loads(line)["token_file"]).read_text().strip()
        if self._store is None:
            self._store = sqlite3.connect(f"file:{self._folder / 'instep.db'}?mode=ro", uri=True)

    def kill(self) -> None:
        """End it at once, with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        """End it and let go of its store."""
        self.kill()
        if self._store is not None:
            self._store.close()
            self._store = None

    def wait_for_event(self, text: str, timeout_seconds: float, *, kind: str = "") -> int | None:
        """Give when an event with this text could first be read from the store, in nanoseconds of the monotonic clock.

        None when there was none within the time. Only events that no earlier call has passed over are looked at.
        """
        until_seconds = time.monotonic() + timeout_seconds
        while time.monotonic() < until_seconds:
            for number, *row in self._rows(_NEW, self._read_until):
                self._read_until = number
                stored = _stored(row)
                if text in stored.text and kind in ("", stored.kind):
                    return time.monotonic_ns()
            time.sleep(POLL_SECONDS)
        return None

    def stored(self) -> list[Stored]:
        """Give every event that is in the store, in the order in which they came into it."""
        return [_stored(row) for row in self._rows(_EVENTS)]

    def counted(self, name: str) -> float:
        """Give the sum of the series of `instep_<name>` on the server's own page, 0 when it has none."""
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            lines = answer.read().decode().splitlines()
        starts = (f"instep_{name} ", f"instep_{name}{{")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(starts))

    def _rows(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        assert self._store is not None
        with contextlib.suppress(sqlite3.OperationalError):  # locked for a moment while a killed server's log is read
            return self._store.execute(query, values).fetchall()
        return []


def _stored(row: Sequence[Any]) -> Stored:
    id, kind, text, fields, node, at_seconds, kept_at_seconds = row
    return Stored(id, kind, text, json.loads(fields), node, at_seconds, kept_at_seconds)


def _first_line(output: IO[bytes]) -> str:
    """Give what the server says once it is ready; empty when it ended, or said nothing for too long."""
    poller = select.poll()
    poller.register(output, select.POLLIN)
    return output.readline().decode() if poller.poll(READY_SECONDS_MAX * 1e3) else ""
