"""Two ranks have no majority: what each always called before tells which of them is wrong, as far back as the ring
goes; where it does not go back, both are named as tied."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_diagnosis.detectors.habits import surprise
from instep_diagnosis.simulation.hangs import CALL_FAULTS, Fault, HangCase, hang_case
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.judge import localise

STEP = ["gather", "gather", "scatter", "reduce", "loss"]


def pairs(fault: Fault, layout: str, *, count: int) -> list[HangCase]:
    """Jobs of two ranks with this fault, each rank guilty in some."""
    found = []
    for seed in range(10_000):
        try:
            case = hang_case(seed, world_size_max=2, fault=fault, layout=layout)
        except ValueError:
            continue
        found += [case] if case.world_size == 2 else []
        if len(found) >= count and {case.culprits for case in found} == {(0,), (1,)}:
            return found
    raise AssertionError(f"{fault} in {layout} makes too few pairs")


@pytest.mark.parametrize("layout", ["ddp", "fsdp", "tp"])
@pytest.mark.parametrize("fault", CALL_FAULTS)
def test_of_two_ranks_the_one_whose_call_is_new_is_named_whichever_it_is(fault, layout):
    for case in pairs(fault, layout, count=8):
        finding = localise(assemble(case.dumps))
        assert (finding.culprits, finding.is_tied) == (case.culprits, False), (case.seed, finding.verdict)


@pytest.mark.parametrize("fault", [Fault.WRONG_OP, Fault.WRONG_SIZE, Fault.WRONG_DTYPE])
def test_a_ring_without_a_past_makes_it_a_tie_of_both(fault):
    for case in pairs(fault, "ddp", count=6):
        cut = {
            rank: replace(dump, entries=tuple(e for e in dump.entries if e.progress < 2)[:1])
            for rank, dump in case.dumps.items()
        }
        finding = localise(assemble(cut))
        assert (finding.culprits, finding.is_tied) == ((0, 1), True), (case.seed, finding.verdict)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), keep=st.integers(8, 60), fault=st.sampled_from(CALL_FAULTS))
def test_a_ring_of_any_length_never_accuses_the_other_rank_of_a_pair(seed, keep, fault):
    # A ring that has lost even what is open leaves counters alone, which a device that lags could have left too.
    case = hang_case(seed, world_size_max=2, fault=fault, layout="ddp")
    cut = {rank: replace(dump, entries=dump.entries[-keep:]) for rank, dump in case.dumps.items()}
    finding = localise(assemble(cut))
    assert finding.culprits in ((), case.culprits, (0, 1)), finding.verdict
    assert finding.is_tied == (len(finding.culprits) > 1)


@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("at", range(1, 5))
@pytest.mark.parametrize("ahead", [0, 9])
def test_a_call_left_out_is_new_however_far_the_host_has_run_on(steps, at, ahead):
    calls = [*STEP * steps, *STEP[:at], *(STEP * 3)[at + 1 : at + 2 + ahead]]
    assert surprise(calls, len(STEP) * steps) >= len(STEP) * (steps - 1)
    assert not surprise([*STEP * steps, *(STEP * 3)[: at + 1 + ahead]], len(STEP) * steps)


def test_what_completed_long_ago_is_not_held_against_a_rank():
    calls = [*STEP * 2, "save", *STEP * 2]
    assert surprise(calls, len(STEP) * 2) >= len(STEP)
    assert not surprise(calls, len(STEP) * 3 + 1)


@pytest.mark.parametrize("present", range(2))
def test_a_rank_with_a_new_call_beside_a_peer_without_a_dump_is_one_of_a_tie(present):
    for case in pairs(Fault.WRONG_OP, "ddp", count=6):
        if case.culprits == (present,):
            finding = localise(assemble({present: case.dumps[present]}))
            assert (finding.culprits, finding.is_tied) == ((0, 1), True)


def test_a_new_call_explains_waits_rather_than_a_rank_without_a_dump():
    seen = 0
    for seed in range(40):
        case = hang_case(seed, world_size_max=16, fault=Fault.SWAPPED, layout="ddp")
        if case.world_size < 4:
            continue
        gone = next(rank for rank in range(case.world_size) if rank not in case.culprits)
        finding = localise(assemble({rank: dump for rank, dump in case.dumps.items() if rank != gone}))
        assert finding.culprits == case.culprits, (seed, finding.verdict)
        seen += 1
    assert seen > 5
