"""A supervisor killed with -9: its ranks end, what it kept stays, and the next `instep run` goes on exactly."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from instep.local.ports import free_port
from instep_trainer.train.losses import read_losses

from tests.trainer.run import supervisors
from tests.trainer.run.supervisors import Node, Supervisor, is_alive, rank_pid, wait_for

pytestmark = pytest.mark.real
STEPS = 160
RANKS = {"node-a": (0, 1), "node-b": (2, 3)}
SHAPE = ("--layers", "2", "--width", "32", "--heads", "2", "--sequence-length", "16", "--batch-size", "2")


class Job:
    """A 4-rank training on two nodes, each with its supervisor."""

    def __init__(self, node: Node) -> None:
        self.node, self.out = node, node.folder / "out"
        self.endpoint = f"127.0.0.1:{free_port()}"

    def start(self, name: str) -> Supervisor:
        options = ("--nnodes", "2", "--rdzv-endpoint", self.endpoint, "--node-name", name, "--nproc-per-node", "2")
        more = ("--max-restarts", "3", "--node-rank", str([*RANKS].index(name)), "-m")
        return self.node.start("instep_trainer.train", *arguments(self.out), options=(*options, *more))

    def pids(self, name: str, attempt: int) -> list[int]:
        return [rank_pid(self.node.root, name, "run-1", attempt, rank) for rank in RANKS[name]]

    def makes(self, attempt: int, log: Path, *, steps: int) -> int:
        """Wait until an attempt has made so many steps; return the last one in the log of losses."""
        wait_for(lambda: len(self.steps(attempt)) >= steps, f"{steps} steps of attempt {attempt}", log)
        return self.steps(attempt)[-1]

    def steps(self, attempt: int) -> list[int]:
        path = self.out / "losses.jsonl"
        text = path.read_text() if path.exists() else ""
        return [int(step) for step in re.findall(rf'{{"step":(\d+),.*"attempt":{attempt}}}', text)]


def arguments(out: Path) -> list[str]:
    return [*SHAPE, "--steps", str(STEPS), "--out", str(out), "--checkpoint-every-disk", "0"]


def kill(supervisor: Supervisor, pids: list[int]) -> None:
    """Kill it and see its ranks end."""
    assert all(is_alive(pid) for pid in pids)
    os.kill(supervisor.process.pid, signal.SIGKILL)
    wait_for(lambda: not any(is_alive(pid) for pid in pids), "the end of its ranks", supervisor.log)


def test_the_next_run_resumes_exactly_after_a_member_and_after_the_coordinator_was_killed(tmp_path: Path) -> None:
    with supervisors.node(tmp_path) as node:
        job = Job(node)
        first = job.start("node-a")
        first.says("coordinates run")
        member = job.start("node-b")

        job.makes(0, first.log, steps=20)
        kill(member, job.pids("node-b", 0))
        first.says("rank 2 on node-b ended with -9")
        wait_for(lambda: not any(is_alive(pid) for pid in job.pids("node-a", 0)), "the peers' end", first.log)
        last = job.steps(0)[-1]
        assert (node.root / "node-b" / "run-1" / "0" / "2").exists()
        assert list((node.root / "node-b" / "run-1" / "checkpoint").iterdir())
        member = job.start("node-b")
        job.makes(1, first.log, steps=20)
        assert last - 1 <= job.steps(1)[0] - 1 <= last
        first.says(f"attempt 1 opens (node-a: ranks [0, 1], node-b: ranks [2, 3]; standing by: none), resuming "
                   f"after step {job.steps(1)[0] - 1}")  # fmt: skip

        kill(first, job.pids("node-a", 1))
        member.says("coordinates run")
        wait_for(lambda: not any(is_alive(pid) for pid in job.pids("node-b", 1)), "the peers' end", member.log)
        last = job.steps(1)[-1]
        second = job.start("node-a")
        assert (second.ends(), member.ends()) == (0, 0), member.said
        assert last - 1 <= job.steps(2)[0] - 1 <= last
        losses = read_losses(job.out / "losses.jsonl")

        twin = node.start(
            "instep_trainer.train",
            *arguments(tmp_path / "twin"),
            options=("--rdzv-id", "twin", "--nproc-per-node", "4", "-m"),
        )
        assert twin.ends() == 0
        assert losses == read_losses(tmp_path / "twin" / "losses.jsonl")
        assert sorted(losses) == list(range(1, STEPS + 1))


def test_a_member_that_is_taken_out_is_no_fault_and_the_run_goes_on_when_a_node_takes_its_place(tmp_path: Path) -> None:
    with supervisors.node(tmp_path) as node:
        job = Job(node)
        first = job.start("node-a")
        first.says("coordinates run")
        member = job.start("node-b")
        job.makes(0, first.log, steps=10)
        member.process.send_signal(signal.SIGTERM)
        assert member.ends() == 130
        first.says("node node-b leaves the run")
        member = job.start("node-b")
        first.says("attempt 1 opens")
        assert (first.ends(), member.ends()) == (0, 0), member.said
        assert sorted(read_losses(job.out / "losses.jsonl")) == list(range(1, STEPS + 1))
        assert "on node-b ended with" not in first.log.read_text()
