"""Dumps that are lost: what is still seen is told, what is not is unknown, and one lost file is no proof."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_diagnosis.detectors.confidence import OUTVOTED
from instep_diagnosis.simulation.hangs import DEVICE_FAULTS, Fault, hang_case
from instep_diagnosis.simulation.scoring import degraded
from instep_diagnosis.verdict import StuckAt
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.finding import Finding
from instep_diagnosis.wait_graph.history import Progress
from instep_diagnosis.wait_graph.judge import localise, localise_uncalibrated
from instep_diagnosis.wait_graph.recorder import Entry, GroupName, RecorderDump

from tests.diagnosis.wait_graph.test_seeded_hangs import renumbered

WORLD = GroupName("0", "default_pg", (0, 1, 2, 3))
ONE, OTHER, CROSS = GroupName("1", "dp", (0, 1)), GroupName("2", "dp", (2, 3)), GroupName("3", "tp", (1, 2))
DONE, BEGUN, CALLED = Progress.COMPLETED, Progress.STARTED, Progress.ENTERED

Call = tuple[GroupName, int, Progress]


def dump(*calls: Call, op: str = "all_reduce", is_gloo: bool = False, is_timed: bool = False) -> RecorderDump:
    """One rank's dump of these calls in this order; all are of one operation."""
    entries = tuple(
        Entry(
            record_id=number, pg_id=int(group.name), name=group.name, description=group.description, seq=seq, op=op,
            progress=progress, signature=(op, "8 elements", "Float"), is_timed=is_timed, op_id=seq,
        )
        for number, (group, seq, progress) in enumerate(calls, 1)
    )  # fmt: skip
    return RecorderDump(entries, tuple({group.name: group for group, *_ in calls}.values()), is_gloo=is_gloo)


def judged(*dumps: RecorderDump | None) -> Finding:
    """The finding on dumps in the order of ranks; None is a lost one."""
    return localise(assemble({rank: one for rank, one in enumerate(dumps) if one is not None}))


BOTH = (WORLD, 1, DONE)


def test_one_lost_dump_that_all_wait_for_is_named_and_what_else_it_could_be_is_said():
    waiting = dump(BOTH, (WORLD, 2, CALLED))
    finding = judged(waiting, waiting, None, waiting)
    assert (finding.culprits, finding.is_tied) == ((2,), False)
    assert any("Were its evidence only lost" in line for line in finding.evidence)


def test_beside_another_lost_dump_one_wait_accuses_nobody_and_says_where_to_look_first():
    healthy = dump(BOTH, (OTHER, 1, DONE))
    finding = judged(dump(BOTH, (ONE, 1, CALLED)), None, healthy, None)
    assert (finding.culprits, finding.is_hang, finding.kind) == ((), True, StuckAt.UNKNOWN)
    assert finding.verdict.startswith("Rank 1 left nothing to read") and "look there first" in finding.verdict


def test_beside_another_lost_dump_two_waits_for_the_same_rank_name_it():
    beside = dump(BOTH, (OTHER, 1, DONE), (CROSS, 1, CALLED))
    assert judged(dump(BOTH, (ONE, 1, CALLED)), None, beside, None).culprits == (1,)


def test_a_rank_without_a_dump_that_took_part_in_something_later_is_not_absent():
    waiting = dump(BOTH, (WORLD, 2, CALLED))
    later = dump(BOTH, (WORLD, 2, CALLED), (CROSS, 1, DONE))
    assert judged(waiting, None, later, waiting).culprits == ()
    # Its twin: what they did together came before, and it has not been seen since.
    earlier = dump(BOTH, (CROSS, 1, DONE), (WORLD, 2, CALLED))
    assert judged(waiting, None, earlier, waiting).culprits == (1,)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_device_that_has_not_begun_is_not_waiting_for_the_rank_whose_dump_is_lost(lost):
    pair = GroupName("0", "default_pg", (0, 1))
    for progress, culprit, kind in ((CALLED, 1 - lost, StuckAt.DEVICE), (BEGUN, lost, StuckAt.HOST)):
        dumps: list[RecorderDump | None] = [dump((pair, 1, DONE), (pair, 2, progress), is_timed=True)] * 2
        dumps[lost] = None
        finding = judged(*dumps)
        assert (finding.culprits, finding.kind) == ((culprit,), kind)


def test_several_devices_that_have_not_begun_do_not_accuse_the_rank_whose_dump_is_lost():
    unbegun = dump(BOTH, (WORLD, 2, CALLED), is_timed=True)
    assert judged(unbegun, unbegun, None, unbegun).culprits == ()


def mixed_up(*, is_gloo: bool, after: int) -> Finding:
    """Rank 1 called another operation under seq 2, all went on, and so many calls later rank 0 is one behind."""
    dumps = {}
    for rank in range(4):
        ends = range(3, 3 + after + (rank != 0))
        one = dump(BOTH, (WORLD, 2, DONE), *((WORLD, seq, CALLED if seq == ends[-1] else DONE) for seq in ends))
        wrong = replace(one.entries[1], op="all_gather", signature=("all_gather", "8 elements", "Float"))
        entries = (one.entries[0], wrong, *one.entries[2:]) if rank == 1 else one.entries
        dumps[rank] = replace(one, entries=entries, is_gloo=is_gloo)
    return localise(assemble(dumps))


@pytest.mark.parametrize("after", [1, 30])
def test_with_gloo_a_wrong_call_that_seems_done_is_to_blame_for_what_its_messages_mixed_up(after):
    assert mixed_up(is_gloo=True, after=after).culprits == (1,)


def test_what_devices_completed_under_one_number_has_held_up_nobody():
    assert mixed_up(is_gloo=False, after=1).culprits == (0,)


def test_a_majority_of_few_of_a_group_is_less_sure_than_one_of_all():
    group = GroupName("0", "default_pg", tuple(range(8)))
    right = dump((group, 1, DONE), (group, 2, CALLED))
    wrong = replace(right, entries=(right.entries[0], replace(right.entries[1], signature=("all_gather", "", ""))))
    dumps = {rank: wrong if rank == 3 else right for rank in range(8)}
    few = {rank: dumps[rank] for rank in (1, 3, 6)}
    sure, unsure = (localise_uncalibrated(assemble(some)) for some in (dumps, few))
    assert sure.culprits == unsure.culprits == (3,)
    assert sure.confidence == OUTVOTED and unsure.confidence == pytest.approx(OUTVOTED * 3 / 8, abs=1e-3)


def test_with_two_dumps_lost_hardly_anybody_innocent_is_named_and_most_culprits_are():
    tally: Counter[str] = Counter()
    for seed in range(300):
        case = hang_case(seed, world_size_max=32)
        random = Random(seed)
        if case.world_size < 5 or not all(one.groups for one in case.dumps.values()):
            continue
        gone = random.sample(sorted(case.dumps), 2 - (case.fault is Fault.DEAD))
        finding = localise(assemble({rank: one for rank, one in case.dumps.items() if rank not in gone}))
        is_innocent = not finding.is_tied and not set(finding.culprits) <= set(case.culprits)
        tally["exact"] += finding.culprits == case.culprits and not finding.is_tied
        tally["innocent"] += is_innocent
        tally["all"] += 1
        # Of those that are not absent only one in a broken device looks as if it were.
        assert not is_innocent or case.fault in DEVICE_FAULTS, (seed, case.fault, gone, finding.verdict)
    assert tally["all"] > 150
    assert tally["innocent"] <= 0.02 * tally["all"], tally
    assert tally["exact"] >= 0.75 * tally["all"], tally


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_ranks_renumbered_and_dumps_in_another_order_move_the_answer_along_where_dumps_are_lost(seed):
    case, random = degraded(hang_case(seed, world_size_max=16)), Random(seed)
    new = random.sample(range(case.world_size), case.world_size)
    before = localise(assemble(case.dumps))
    moved = {new[rank]: renumbered(one, new, random) for rank, one in case.dumps.items()}
    after = localise(assemble(dict(random.sample(sorted(moved.items()), len(moved)))))
    if not all(one.groups for one in case.dumps.values()):
        return  # Raw dumps do not say how many ranks there are: one without a dump may now be the last.
    assert after.culprits == tuple(sorted(new[rank] for rank in before.culprits))
    assert (after.kind, after.cause, after.is_tied) == (before.kind, before.cause, before.is_tied)
    assert after.confidence == before.confidence
