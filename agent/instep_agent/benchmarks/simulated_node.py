"""A node with eight GPUs, eight HCAs and eight ranks that work, and a real agent on it, as people start it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from instep_agent.benchmarks import stand_ins
from instep_agent.benchmarks.sink import Sink
from instep_agent.errors import ConfigurationInvalid

NODE = "bench-node"
RANKS = 8
START_SECONDS_MAX = 60.0
_AGENT = "import sys; from instep_agent.cli import main; sys.exit(main(sys.argv[1:]))"


class SimulatedNode:
    """Start it in a `with`; everything that it started ends there."""

    def __init__(self, *, library: Path | None = None, kernel_log: Path | None = None) -> None:
        """`kernel_log` is a real device; a file of the node's own without."""
        self._parts = contextlib.ExitStack()
        self._given_library, self._given_log = library, kernel_log

    def __enter__(self) -> SimulatedNode:
        self.folder = Path(self._parts.enter_context(tempfile.TemporaryDirectory(prefix="instep-bench-")))
        records = self._parts.enter_context(tempfile.TemporaryDirectory(prefix="instep-bench-", dir="/dev/shm"))
        try:
            self._build(Path(records))
        except BaseException:  # also an interrupt: what was started must not be left running
            self._parts.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def _build(self, records: Path) -> None:
        self.root = self.folder / "root"
        (self.root / "dev").mkdir(parents=True)
        self.kernel_log = self._given_log or self.root / "dev/kmsg"
        if self._given_log is not None:
            (self.root / "dev/kmsg").symlink_to(self._given_log)
        else:
            self.kernel_log.touch()
        stand_ins.sysfs_tree(self.root)
        self.scenario = stand_ins.scenario(self.folder / "scenario.txt")
        library = stand_ins.nvml_library(self.folder, self._given_library)
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "INSTEP_NVML_SCENARIO": str(self.scenario.path),
            "INSTEP_TOKEN": "bench",
        }
        self.sink = Sink()
        self._parts.callback(self.sink.close)
        for rank in range(RANKS):
            self.start("-m", "instep_agent.benchmarks.live_rank", str(records), NODE, str(rank), str(RANKS))
        self.port = free_port()
        options = ["--node", NODE, "--server", self.sink.url, "--root", self.root, "--proc", "/proc"]
        options += ["--record-root", records, "--listen", f"127.0.0.1:{self.port}", "--spool", self.folder / "spool"]
        self.agent = self.start("-c", _AGENT, *map(str, options))
        self._wait_until_it_sees_everything()

    def start(self, *arguments: str, program: str = sys.executable) -> subprocess.Popen[bytes]:
        """Start a process that ends with the node."""
        log = self._parts.enter_context((self.folder / "log").open("ab"))
        process = subprocess.Popen([program, *arguments], env=self.environment, stdout=log, stderr=log)
        self._parts.callback(_end, process)
        return process

    def page(self) -> str:
        """Give the agent's /metrics."""
        return scrape(self.port)

    def _wait_until_it_sees_everything(self) -> None:
        until_seconds = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < until_seconds and self.agent.poll() is None:
            with contextlib.suppress(OSError):
                if self.sink.ranks == RANKS and "instep_gpu_power_watts{" in self.page():
                    return
            time.sleep(0.2)
        said = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-3:]
        raise ConfigurationInvalid(f"The agent does not see the node: {' | '.join(said) or 'it said nothing'}.")


def scrape(port: int, timeout_seconds: float = 10.0) -> str:
    """Give the page of an exporter on this machine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout_seconds) as answer:
        return str(answer.read().decode())


def series_of(page: str) -> int:
    """Give how many series a page has.

    >>> series_of("# HELP a b\\na 1\\nb 2\\n")
    2
    """
    return sum(1 for line in page.splitlines() if line and not line.startswith("#"))


def free_port() -> int:
    """Give a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
