"""A thousand made-up jobs with one fault each: the verdict on their dumps is the truth, or the tied pair with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_diagnosis.simulation.accuracy import WRONG, grade, main
from instep_diagnosis.simulation.hangs import CALL_FAULTS, DEVICE_FAULTS, HOST_FAULTS, Fault, HangCase, hang_case
from instep_diagnosis.simulation.programs import LAYOUTS
from instep_diagnosis.verdict import StuckAt
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.finding import Finding
from instep_diagnosis.wait_graph.judge import localise
from instep_diagnosis.wait_graph.recorder import RecorderDump


def judged(case: HangCase) -> Finding:
    return localise(assemble(case.dumps))


@pytest.mark.parametrize("first", range(0, 1_000, 250))
def test_names_the_guilty_rank_of_each_of_a_thousand_jobs_and_no_innocent_one(first):
    wrong, tally = [], Counter()
    for seed in range(first, first + 250):
        case = hang_case(seed, world_size_max=32)
        finding = judged(case)
        tally[grade(case, finding)] += 1
        if grade(case, finding) == WRONG:
            wrong.append((seed, case.layout, case.fault.value, case.culprits, finding.culprits, finding.verdict))
    assert wrong == []
    assert tally["tied"] <= 1, tally


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fault", list(Fault))
def test_each_fault_in_each_layout_is_told_from_the_others(fault, layout):
    for seed in range(3):
        try:
            case = hang_case(seed, world_size_max=16, fault=fault, layout=layout)
        except ValueError:
            continue  # Such as transfers alone, which no wrong collective can be put into.
        finding = judged(case)
        assert grade(case, finding) != WRONG, (seed, finding)
        assert finding.kind in kinds_of(fault), (seed, finding)


def kinds_of(fault: Fault) -> set[StuckAt]:
    if fault in DEVICE_FAULTS:
        return {StuckAt.DEVICE}
    return {StuckAt.HOST} if fault in (*HOST_FAULTS, *CALL_FAULTS) else {StuckAt.UNKNOWN}


def test_five_hundred_and_twelve_ranks_are_judged_alike():
    for seed in range(6):
        case = hang_case(seed, world_size_max=512)
        finding = judged(case)
        assert grade(case, finding) != WRONG, (seed, finding.verdict)


@pytest.mark.parametrize("fault", [*HOST_FAULTS[:2], Fault.DEVICE_LAG])
def test_two_victims_without_dumps_change_nothing(fault):
    for seed in range(12):
        case = hang_case(seed, world_size_max=32, fault=fault)
        victims = [rank for rank in range(case.world_size - 1) if rank not in case.culprits]
        lost = set(victims[seed % 3 :: 5][:2])
        finding = localise(assemble({rank: dump for rank, dump in case.dumps.items() if rank not in lost}))
        assert finding.culprits == case.culprits, (seed, lost, finding.verdict)


def test_the_same_seed_makes_the_same_job():
    assert hang_case(7) == hang_case(7)
    assert hang_case(7) != hang_case(8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_ranks_renumbered_and_dumps_in_another_order_move_the_answer_along(seed):
    case, random = hang_case(seed, world_size_max=16), Random(seed)
    new = random.sample(range(case.world_size), case.world_size)
    before = judged(case)
    moved = {new[rank]: renumbered(dump, new, random) for rank, dump in case.dumps.items()}
    after = localise(assemble(dict(random.sample(sorted(moved.items()), len(moved)))))
    if case.fault is Fault.DEAD and not any(dump.groups for dump in case.dumps.values()):
        return  # Raw dumps do not say how many ranks there are: the dead one may now be the last.
    assert after.culprits == tuple(sorted(new[rank] for rank in before.culprits))
    assert (after.kind, after.cause, after.is_tied) == (before.kind, before.cause, before.is_tied)


def renumbered(dump: RecorderDump, new: list[int], random: Random) -> RecorderDump:
    """A dump with other global ranks, other local ids and, where members are listed, other local names of groups."""
    gap = random.randrange(1, 5)
    shift = random.randrange(5) if dump.groups else 0

    def name(old: str) -> str:
        return str(int(old) * gap + shift) if dump.groups else old

    groups = [replace(g, name=name(g.name), members=tuple(new[rank] for rank in g.members)) for g in dump.groups]
    return replace(
        dump,
        groups=tuple(random.sample(groups, len(groups))),
        entries=tuple(replace(e, name=name(e.name), pg_id=e.pg_id * gap) for e in dump.entries),
        statuses={pg_id * gap: standing for pg_id, standing in dump.statuses.items()},
    )


def test_the_benchmark_prints_every_fault_and_its_rate(capsys):
    assert main(["--cases", "30", "--ranks", "16"]) == 0
    said = capsys.readouterr().out
    assert "exact rank set: 100.00% of 30" in said
    assert all(fault.value in said for fault in Fault)


def test_a_finding_against_an_innocent_rank_is_graded_wrong():
    case = hang_case(3, world_size_max=16, fault=Fault.STOPPED, layout="ddp")
    finding = judged(case)
    innocent = next(rank for rank in range(case.world_size) if rank not in case.culprits)
    assert grade(case, finding) == "exact"
    assert grade(case, replace(finding, culprits=(innocent,))) == WRONG
    assert grade(case, replace(finding, culprits=(*case.culprits, innocent), is_tied=True)) == WRONG
