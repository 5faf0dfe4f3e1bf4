"""Ranks that are read from their records anew, and which process each of them is."""

import contextlib
import os
from dataclasses import replace

import pytest
from instep_agent.node import Node
from instep_agent.ranks.recorded import recorded_ranks
from made_records import new_writer


@pytest.fixture
def node(tmp_path):
    """A node with two attempts of a run, another run, and what is no record."""
    with contextlib.ExitStack() as writers:
        for run, attempt, rank in (("run", 0, 0), ("run", 1, 0), ("run", 1, 1), ("other", 0, 0)):
            writers.enter_context(contextlib.closing(new_writer(tmp_path, rank, run=run, attempt=attempt)))
        (tmp_path / "node-a/run/1/7").touch()
        (tmp_path / "node-a/run/1/8").symlink_to(tmp_path / "node-a/run/1/0")
        yield Node("node-a", record_root=tmp_path)


def test_the_newest_attempt_of_each_run_is_read(node):
    found = sorted((one.identity.run, one.identity.attempt, one.identity.rank) for one in recorded_ranks(node))
    assert found == [("other", 0, 0), ("run", 1, 0), ("run", 1, 1)]
    assert list(recorded_ranks(Node("elsewhere", record_root=node.record_root))) == []


def test_an_empty_or_oddly_numbered_attempt_hides_no_rank(node):
    before = {(one.identity.run, one.identity.attempt) for one in recorded_ranks(node)}
    for name in ("2", "007", "٣", "x"):
        (node.record_root / "node-a/run" / name).mkdir()
    assert {(one.identity.run, one.identity.attempt) for one in recorded_ranks(node)} == before


def test_a_process_is_the_rank_by_number_start_and_user(node):
    rank, me = next(recorded_ranks(node)), os.getpid()
    assert rank.is_process(me, node)
    assert not rank.is_process(os.getppid(), node), "another process"
    assert not replace(rank, owner=rank.owner + 1).is_process(me, node), "a record may name anybody's process"
    later = replace(rank.header, pid_start_ticks=rank.header.pid_start_ticks + 1)
    assert not replace(rank, header=later).is_process(me, node), "the number is another process's by now"
    inside = replace(rank.header, pid=me + 1)
    assert not replace(rank, header=inside).is_process(me, node), "its number in its own namespace is another one"
