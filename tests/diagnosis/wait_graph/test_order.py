"""Calls in another order, over two groups: each rank guilty in turn."""

from __future__ import annotations

import pytest
from instep_diagnosis.verdict import Cause, StuckAt
from instep_diagnosis.wait_graph.history import Call, Group, History, Progress, RankHistory
from instep_diagnosis.wait_graph.judge import localise

GROUPS = {
    "world": Group("world", "world", tuple(range(6))),
    **{f"tp{pair}": Group(f"tp{pair}", "tp", (2 * pair, 2 * pair + 1)) for pair in range(3)},
}


def call(group: str, *, done: bool = False) -> Call:
    progress = Progress.COMPLETED if done else Progress.ENTERED
    return Call(group, 1, "all_reduce", progress, ("all_reduce", "64 elements", "Float"))


def job(calls: dict[int, list[Call]]) -> History:
    ranks = {rank: RankHistory(rank, tuple(of_rank)) for rank, of_rank in calls.items()}
    return History(tuple(range(6)), GROUPS, ranks)


def in_order(rank: int) -> list[Call]:
    return [call(f"tp{rank // 2}", done=True), call("world")]


@pytest.mark.parametrize("guilty", range(6))
def test_a_rank_that_went_into_the_later_group_first_is_named_and_its_partner_is_not(guilty):
    calls = {rank: in_order(rank) for rank in range(6)}
    calls[guilty] = [call("world")]
    calls[guilty ^ 1] = [call(f"tp{guilty // 2}")]
    finding = localise(job(calls))
    assert (finding.culprits, finding.kind, finding.is_tied) == ((guilty,), StuckAt.HOST, False)
    assert finding.cause is Cause.SKIPPED_COLLECTIVE


@pytest.mark.parametrize("guilty", range(6))
def test_a_rank_that_launched_both_in_the_other_order_is_named(guilty):
    # NCCL: all hosts have run ahead, so that everybody has launched everything.
    calls = {rank: in_order(rank) for rank in range(6)}
    calls[guilty ^ 1] = [call(f"tp{guilty // 2}"), call("world")]
    calls[guilty] = [call("world"), call(f"tp{guilty // 2}")]
    finding = localise(job(calls))
    assert (finding.kind, finding.cause) == (StuckAt.HOST, Cause.MISMATCHED_COLLECTIVE)
    assert (finding.culprits, finding.is_tied) == ((guilty,), False)


@pytest.mark.parametrize("late", range(6))
def test_the_healthy_order_with_one_late_rank_is_no_fault_of_the_script(late):
    calls = {rank: in_order(rank) for rank in range(6)}
    calls[late] = [call(f"tp{late // 2}", done=True)]
    finding = localise(job(calls))
    assert (finding.culprits, finding.cause) == ((late,), Cause.UNKNOWN)


def test_without_other_pairs_the_two_are_a_tie():
    groups = {"a": Group("a", "a", (0, 1)), "b": Group("b", "b", (0, 1))}
    ranks = {0: RankHistory(0, (call("a"),)), 1: RankHistory(1, (call("b"),))}
    finding = localise(History((0, 1), groups, ranks))
    assert (finding.culprits, finding.is_tied) == ((0, 1), True)
