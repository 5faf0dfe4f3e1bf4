"""The component that copies the kernel log: its command, run here, feeds the agent's source through a named pipe."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from instep_agent.errors import Absent
from instep_agent.node import Fact, Node
from instep_agent.sources.kernel_log import KernelLog

from tests.deploy.manifests import container, one, pod

OLD = "NVRM: Xid (PCI:0000:41:00): 48, pid=1234, DBE (double bit error)"
XID = "NVRM: Xid (PCI:0000:41:00): 79, pid=1234, GPU has fallen off the bus."
QUIET = "systemd[1]: Started Session 1 of User somebody."
SECONDS_MAX = 20.0


class Kernel:
    """A file in the place of /dev/kmsg, and the component's container at work on it."""

    def __init__(self, folder: Path) -> None:
        self.root, node = folder / "host", folder / "node"
        (self.root / "dev").mkdir(parents=True), node.mkdir()
        self.pipe, self._log, self._sequence = self.root / "dev/kmsg", node / "kmsg", 100
        self.says(OLD)
        program = folder / "copy_kernel_log.py"
        program.write_text(one("overlays/full", "ConfigMap", "instep-kernel-log")["data"][program.name])
        _python, *words = container("overlays/full", "DaemonSet", "instep-agent", "kernel-log")["command"]
        places = {"/copier": folder, "/node": node, "/kernel-log": self.root / "dev"}
        moved = [
            word.replace(place, str(here), 1)
            for word in words
            for place, here in places.items()
            if word.startswith(f"{place}/")
        ]
        assert len(moved) == len(words) == 3
        self.copier = subprocess.Popen([sys.executable, *moved])

    def says(self, line: str) -> None:
        """Log one more record, now."""
        self._sequence += 1
        with self._log.open("a") as log:
            log.write(f"4,{self._sequence},{time.monotonic_ns() // 1000},-;{line}\n SUBSYSTEM=pci\n")

    def until_copied(self) -> None:
        """Wait until the pipe is there: what is logged from then on is copied."""
        end = time.monotonic() + SECONDS_MAX
        while not self.pipe.is_fifo() and time.monotonic() < end:
            time.sleep(0.01)
        assert self.pipe.is_fifo()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    try:
        made.until_copied()
        yield made
    finally:
        made.copier.kill()
        made.copier.wait(10)


@contextlib.contextmanager
def agent(kernel: Kernel) -> Iterator[Callable[[str], list[str]]]:
    """The agent's source; a function that logs a line, and gives what the source tells until it tells of that line."""
    source, node = KernelLog(), Node("node-a", kernel.root)

    def told_after(line: str) -> list[str]:
        kernel.says(line)
        found: list[str] = []
        end = time.monotonic() + SECONDS_MAX
        while line not in found and time.monotonic() < end:
            with contextlib.suppress(Absent):
                found += [reading.text for reading in source.collect(node) if isinstance(reading, Fact)]
            time.sleep(0.01)
        return found

    try:
        list(source.collect(node))  # opens the pipe, without which nothing is copied
        yield told_after
    finally:
        source.close()


def test_a_fault_in_the_kernel_log_reaches_the_agent_and_older_ones_do_not(kernel: Kernel):
    with agent(kernel) as told_after:
        kernel.says(QUIET)
        assert told_after(XID) == [XID]


def test_what_is_logged_while_the_agent_is_away_waits_for_it(kernel: Kernel):
    with agent(kernel) as told_after:
        assert told_after(XID) == [XID]
    first, second = (XID.replace("41", bus) for bus in ("42", "43"))
    kernel.says(first)
    with agent(kernel) as told_after:
        assert told_after(second) == [first, second]
    assert kernel.copier.poll() is None


def test_the_agent_sees_the_pipe_where_its_source_looks():
    mounts = {
        mount["mountPath"]: mount["name"]
        for mount in container("overlays/full", "DaemonSet", "instep-agent", "agent")["volumeMounts"]
    }
    assert mounts["/host/dev"] == "kernel-log"
    assert mounts["/host/dev/shm"] == "shm"
    assert "/host/dev/kmsg" not in mounts
    volumes = {volume["name"]: volume for volume in pod("overlays/full", "DaemonSet", "instep-agent")["volumes"]}
    assert "emptyDir" in volumes["kernel-log"]
