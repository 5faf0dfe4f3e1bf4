"""Two ranks have no majority: what each always called before tells which of them is wrong, as far back as the ring
goes; where it does not go back, both are named as tied."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_diagnosis.detectors.habits import surprise
from instep_diagnosis.simulation.hangs import CALL_FAULTS, Fault, HangCase, hang_case
from instep_diagnosis.verdict import Cause
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.history import Progress
from instep_diagnosis.wait_graph.judge import localise
from instep_diagnosis.wait_graph.recorder import Entry, GroupName, RecorderDump

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


STEP_NS = 40_000_000


def pipeline_of_gloo(*, stages: int, guilty: int, gap_ns: int) -> list[RecorderDump]:
    """One collective a step and transfers that are not listed; at the end one rank has called once more than all."""
    groups = (GroupName("0", "default_pg", tuple(range(stages))), GroupName("1", "pp", tuple(range(stages))))
    dumps = []
    for rank in range(stages):
        times = [STEP_NS * step for step in range(1, 21)]
        times += [times[-1] + gap_ns] if rank == guilty else []
        entries = tuple(
            Entry(
                record_id=seq, pg_id=0, name="0", description="default_pg", seq=seq, op="all_reduce",
                progress=Progress.COMPLETED if seq <= 20 else Progress.ENTERED,
                signature=("all_reduce", "1 elements", "Float"), op_id=seq, created_ns=time,
            )
            for seq, time in enumerate(times, 1)
        )  # fmt: skip
        dumps.append(RecorderDump(entries, groups, is_gloo=True))
    return dumps


@pytest.mark.parametrize("guilty", range(4))
def test_a_call_sooner_after_the_one_before_than_ever_is_one_too_many(guilty):
    dumps = pipeline_of_gloo(stages=4, guilty=guilty, gap_ns=STEP_NS // 4)
    finding = localise(assemble(dict(enumerate(dumps))))
    assert (finding.culprits, finding.is_tied, finding.cause) == ((guilty,), False, Cause.SKIPPED_COLLECTIVE)


@pytest.mark.parametrize("gap_ns", [STEP_NS, STEP_NS * 9 // 10])
def test_a_call_in_its_usual_time_accuses_those_that_have_not_called(gap_ns):
    finding = localise(assemble(dict(enumerate(pipeline_of_gloo(stages=4, guilty=1, gap_ns=gap_ns)))))
    assert (finding.culprits, finding.is_tied) == ((0, 2, 3), True)
    assert any("one call too many, rank 1 is to blame" in line for line in finding.evidence)


def test_without_times_nothing_is_too_early():
    dumps = pipeline_of_gloo(stages=4, guilty=1, gap_ns=1)
    timeless = [replace(dump, entries=tuple(replace(e, created_ns=0) for e in dump.entries)) for dump in dumps]
    assert localise(assemble(dict(enumerate(timeless)))).culprits == (0, 2, 3)


@pytest.mark.parametrize("guilty", range(2))
def test_of_two_stages_the_one_that_called_too_early_is_named_and_not_the_one_it_waits_for(guilty):
    early = pipeline_of_gloo(stages=2, guilty=guilty, gap_ns=STEP_NS // 4)
    assert localise(assemble(dict(enumerate(early)))).culprits == (guilty,)
    # Its twins: where it is not so clear both are tied, and in its usual time the call accuses the other.
    doubtful = localise(assemble(dict(enumerate(pipeline_of_gloo(stages=2, guilty=guilty, gap_ns=STEP_NS * 4 // 5)))))
    assert (doubtful.culprits, doubtful.is_tied) == ((0, 1), True)
    usual = localise(assemble(dict(enumerate(pipeline_of_gloo(stages=2, guilty=guilty, gap_ns=STEP_NS)))))
    assert (usual.culprits, usual.is_tied) == ((1 - guilty,), False)
