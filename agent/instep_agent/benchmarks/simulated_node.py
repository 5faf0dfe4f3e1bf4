"""A node with eight GPUs, eight HCAs and eight ranks that work, and a real agent on it, as people start it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from instep_agent.benchmarks import stand_ins
from instep_agent.benchmarks.ports import free_port, scrape
from instep_agent.benchmarks.receiver import Receiver
from instep_agent.benchmarks.scratch import scratch_folder
from instep_agent.benchmarks.sink import Sink
from instep_agent.errors import ConfigurationInvalid

NODE = "bench-node"
RANKS = 8
START_SECONDS_MAX = 60.0
_AGENT = "import sys; from instep_agent.cli import main; sys.exit(main(sys.argv[1:]))"


class SimulatedNode:
    """Start it in a `with`; everything that it started ends there."""

    def __init__(
        self,
        *,
        library: Path | None = None,
        kernel_log: Path | None = None,
        receiver: Callable[[Path], Receiver] = lambda _folder: Sink(),
        settings: str = "",
    ) -> None:
        """`kernel_log` is a real device; a file of the node's own without. `receiver` is made in the node's folder.

        `settings` is what stands in the agent's configuration file.
        """
        self._parts = contextlib.ExitStack()
        self._given_library, self._given_log = library, kernel_log
        self._new_receiver, self._settings = receiver, settings

    def __enter__(self) -> SimulatedNode:
        self.folder = self._parts.enter_context(scratch_folder())
        records = self._parts.enter_context(scratch_folder("/dev/shm"))
        try:
            self._build(records)
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
        }
        self.receiver = self._new_receiver(self.folder)
        self._parts.callback(self.receiver.close)
        self.receiver.start()
        for rank in range(RANKS):
            self.start("-m", "instep_agent.benchmarks.live_rank", str(records), NODE, str(rank), str(RANKS))
        self.spool = self.folder / "spool"
        self._records = records
        self.start_agent()
        self.wait_until_it_sees_everything()

    def start_agent(self) -> None:
        """Start the agent, once more when an earlier one has ended; it takes over that one's spool."""
        self.port = free_port()
        options = ["--node", NODE, "--server", self.receiver.url, "--root", self.root, "--proc", "/proc"]
        options += ["--record-root", self._records, "--listen", f"127.0.0.1:{self.port}", "--spool", self.spool]
        if self._settings:
            (self.folder / "agent.toml").write_text(self._settings)
            options += ["--config", self.folder / "agent.toml"]
        self.environment["INSTEP_TOKEN"] = self.receiver.token
        self.agent = self.start("-c", _AGENT, *map(str, options))

    def stop_agent(self) -> None:
        """End the agent as an administrator does, and wait until it has."""
        _end(self.agent)

    def start(self, *arguments: str, program: str = sys.executable) -> subprocess.Popen[bytes]:
        """Start a process that ends with the node."""
        log = self._parts.enter_context((self.folder / "log").open("ab"))
        process = subprocess.Popen([program, *arguments], env=self.environment, stdout=log, stderr=log)
        self._parts.callback(_end, process)
        return process

    def page(self) -> str:
        """Give the agent's /metrics."""
        return scrape(self.port)

    def wait_until_it_sees_everything(self) -> None:
        """Wait for all ranks and GPUs on the agent's page. Raise `ConfigurationInvalid` when they do not come."""
        until_seconds = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < until_seconds and self.agent.poll() is None:
            with contextlib.suppress(OSError):
                page = self.page()
                if page.count("instep_rank_step{") == RANKS and "instep_gpu_power_watts{" in page:
                    return
            time.sleep(0.2)
        said = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-3:]
        raise ConfigurationInvalid(f"The agent does not see the node: {' | '.join(said) or 'it said nothing'}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
