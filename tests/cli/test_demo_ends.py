"""Whatever ends the demo, nothing of it is left: asserted by a scan of all processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
GONE_SECONDS_MAX = 30.0


def started_by(marker: str) -> list[int]:
    """Pids of processes whose environment carries the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                if marker.encode() in environment and state != "Z":
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_of_a_demo_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    marker = f"INSTEP_TEST_MARK={os.getpid()}-{number}"
    name, _, value = marker.partition("=")
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "instep", "demo", "--seed", "1"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, name: value},
            start_new_session=True,
        )
    try:
        wait_until(lambda: len(started_by(marker)) >= 8, "its server, agents, supervisors and ranks are there")
        demo.send_signal(number)
        demo.wait(GONE_SECONDS_MAX)
        wait_until(lambda: not started_by(marker), "all of them are gone")
    finally:
        for pid in started_by(marker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        demo.wait()
    if number != signal.SIGKILL:
        assert demo.returncode == 130
        assert "everything it started is gone" in (tmp_path / "out").read_text()


def wait_until(seen, what: str) -> None:
    until = time.monotonic() + GONE_SECONDS_MAX
    while not seen():
        assert time.monotonic() < until, f"not within {GONE_SECONDS_MAX:.0f} s: {what}"
        time.sleep(0.1)
