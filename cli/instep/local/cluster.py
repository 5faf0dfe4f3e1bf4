"""Starts and ends the simulated cluster; every part is the real one, only the machine is shared."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from instep.local.client import Client
from instep.local.ports import free_port
from instep.local.processes import Processes, Started, tail

READY_SECONDS_MAX = 60.0


class ClusterError(Exception):
    """Something of the local cluster did not come up; the sentence says what and shows the end of its log."""


class LocalCluster:
    """One server and some nodes. Use it in a `with`: whatever it started is gone at the end."""

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        gpus: Mapping[str, Sequence[str]] | None = None,
        with_server: bool = True,
        server_options: Sequence[str] = (),
    ) -> None:
        self.nodes = tuple(nodes)
        self.mark = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="instep-local-"))
        self.records = Path(tempfile.mkdtemp(prefix="instep-", dir="/dev/shm"))
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self._with_server = with_server
        self._server_options = server_options
        self._gpus = gpus or {}
        self.page_link = ""
        self.url = ""
        self.processes = Processes(
            self.mark, self.logs, {"INSTEP_RECORD_ROOT": str(self.records), "PYTHONUNBUFFERED": "1"}
        )

    def __enter__(self) -> LocalCluster:
        try:
            for node in self.nodes:
                self._make_node(node)
            if self._with_server:
                self.start_server()
                for node in self.nodes:
                    self.start_agent(node)
        except BaseException:  # also an interrupt; it goes on to whoever called
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> list[int]:
        """End everything; return the pids that a scan still found, which is a fault of ours."""
        self.processes.end()
        left = self.processes.left_over()
        self.processes.kill_left_over()
        shutil.rmtree(self.records, ignore_errors=True)
        if "INSTEP_KEEP" not in os.environ:
            shutil.rmtree(self.folder, ignore_errors=True)
        return left

    # Parts ------------------------------------------------------------------------------------------------------------

    def start_server(self, port: int = 0) -> None:
        """Start the server and wait until it answers."""
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        started = self.processes.start(
            "server",
            "server",
            "--listen",
            f"127.0.0.1:{port}",
            "--state-dir",
            str(self.folder / "state"),
            "--json-ready",
            *self._server_options,
            output=subprocess.PIPE,
        )
        ready = self._first_line(started)
        self.page_link = str(ready.get("page_link", ""))
        self.token_file = Path(str(ready["token_file"]))
        self.client = Client(self.url, self.token_file.read_text().strip())

    def start_agent(self, node: str) -> None:
        """Start one node's agent over its simulated root."""
        self.processes.start(
            f"agent-{node}",
            "agent",
            "--server",
            self.url,
            "--token-file",
            str(self.token_file),
            "--node",
            node,
            "--record-root",
            str(self.records),
            "--root",
            str(self.root(node)),
            "--proc",
            "/proc",
            "--spool",
            str(self.folder / "spool" / node),
        )

    def start_supervisor(
        self,
        node: str,
        endpoint: str,
        run: str,
        *,
        nnodes: str,
        per_node: int,
        options: Sequence[str] = (),
        script: Sequence[str],
    ) -> Started:
        """Start one node's `instep run` of a run."""
        server = ["--server", self.url, "--token-file", str(self.token_file)] if self.url else []
        return self.processes.start(
            f"run-{run}-{node}",
            "run",
            "--nnodes",
            nnodes,
            "--nproc-per-node",
            str(per_node),
            "--rdzv-id",
            run,
            "--rdzv-endpoint",
            endpoint,
            "--node-name",
            node,
            "--record-root",
            str(self.records),
            "--allow-drills",
            *server,
            *options,
            *script,
        )

    def inject(self, fault: str, node: str, **options: object) -> float:
        """Inject a fault; return the realtime at which it was done."""
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "instep",
                "inject",
                fault,
                "--node",
                node,
                "--record-root",
                str(self.records),
                *words,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise ClusterError(f"instep inject {fault} failed: {done.stderr.strip()}")
        return float(json.loads(done.stdout)["at"])

    def root(self, node: str) -> Path:
        """The node's simulated file system root."""
        return self.folder / "nodes" / node

    def kernel_log(self, node: str) -> Path:
        """Where the node's kernel speaks."""
        return self.root(node) / "dev" / "kmsg"

    def _make_node(self, node: str) -> None:
        (self.root(node) / "dev").mkdir(parents=True)
        self.kernel_log(node).touch()
        for minor, pci in enumerate(self._gpus.get(node, ())):
            folder = self.root(node) / "proc" / "driver" / "nvidia" / "gpus" / pci
            folder.mkdir(parents=True)
            uuid = f"GPU-{zlib.crc32(node.encode()):08x}-0000-0000-0000-{minor:012x}"
            (folder / "information").write_text(
                f"Model: \t\t Simulated\nIRQ:   \t\t 0\nGPU UUID: \t {uuid}\nBus Location: \t {pci}.0\n"
                f"Device Minor: \t {minor}\n"
            )

    def _first_line(self, started: Started) -> dict[str, Any]:
        """The server says that it accepts, in one line of JSON."""
        assert started.process.stdout is not None
        line = started.process.stdout.readline()
        if not line:
            raise ClusterError(f"The server did not start:\n{tail(started.log)}")
        return dict(json.loads(line))


def wait_until(seen: Any, seconds_max: float, *, every_seconds: float = 0.05) -> bool:
    """Ask until it is so, or the time is over."""
    until = time.monotonic() + seconds_max
    while time.monotonic() < until:
        if seen():
            return True
        time.sleep(every_seconds)
    return False
