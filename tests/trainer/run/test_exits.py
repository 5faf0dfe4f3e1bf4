"""How a run ends: its exit status, its sentences, and nothing left of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from instep.local.ports import free_port

from tests.trainer.run import supervisors
from tests.trainer.run.supervisors import is_alive, wait_for

pytestmark = pytest.mark.real


@pytest.fixture
def node(tmp_path: Path):
    with supervisors.node(tmp_path) as one:
        yield one


def test_a_script_that_finishes_on_every_rank_ends_the_run_with_0(node) -> None:
    run = node.waiting()
    node.pids(0)
    node.end()
    assert run.ends() == 0


@pytest.mark.parametrize("how", ["raise", "7"])
def test_a_script_that_fails_ends_the_run_once_and_for_all_by_default(node, how: str) -> None:
    run = node.waiting()
    node.pids(0)
    node.end(how)
    assert run.ends() == 1
    assert "rank 1 on node-a ended with exit status" in run.last_line
    assert "--max-restarts is 0" in run.last_line
    assert not list(node.folder.glob("rank-1-*"))


def test_a_killed_rank_is_noticed_and_its_attempt_follows(node) -> None:
    run = node.waiting("with-child", options=("--max-restarts", "1"))
    before = node.pids(0)
    os.kill(before[1][0], signal.SIGKILL)
    run.says("rank 1 on node-a ended with -9")
    after = node.pids(1)
    run.says("attempt 1 opens")
    assert not any(is_alive(pid) for pids in before.values() for pid in pids), "ranks and their children"
    node.end()
    assert run.ends() == 0
    assert not any(is_alive(pid) for pids in after.values() for pid in pids)


def test_the_budget_is_named_when_it_is_used_up(node) -> None:
    run = node.waiting(options=("--max-restarts", "1"))
    for attempt in (0, 1):
        os.kill(node.pids(attempt)[0][0], signal.SIGKILL)
    assert run.ends() == 1
    assert "1 of 1 restarts are used" in run.last_line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_ranks_and_their_children_and_the_run_with_130(node, number: signal.Signals) -> None:
    run = node.waiting("with-child", options=("--max-restarts", "3"))
    pids = [pid for pids in node.pids(0).values() for pid in pids]
    run.process.send_signal(number)
    assert run.ends() == 130
    assert not any(is_alive(pid) for pid in pids)
    assert not list(node.folder.glob("rank-1-*")), "an interrupt is no fault"


def test_an_interrupt_while_nodes_are_awaited_ends_the_run_at_once(node) -> None:
    run = node.waiting(options=("--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"))
    run.says("coordinates run")
    run.process.send_signal(signal.SIGINT)
    assert run.ends() == 130
    assert not node.was_started


def test_children_of_ranks_end_too_when_the_supervisor_is_killed(node) -> None:
    run = node.waiting("with-child")
    pids = [pid for pids in node.pids(0).values() for pid in pids]
    run.process.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in pids), "the end of ranks and their children", run.log)


def test_a_rank_goes_on_when_the_process_that_starts_ranks_is_killed(node) -> None:
    run = node.waiting(options=("--max-restarts", "1"))
    rank = node.pids(0)[0][0]
    zygote = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(zygote, signal.SIGKILL)
    node.pids(1)
    node.end()
    assert run.ends() == 0
