"""Which faults stand, and what ends each: never the time alone."""

from dataclasses import replace
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_diagnosis import latching
from instep_diagnosis.catalogues import sxid_catalogue, xid_catalogue
from instep_diagnosis.catalogues.rules import return_rule
from instep_diagnosis.kernel_faults import assess, overruled
from instep_diagnosis.kernel_line import read_kernel_line
from instep_diagnosis.latching import (
    FaultSeen,
    GpuReset,
    LatchState,
    NodeBooted,
    RecoveryStated,
    Repaired,
    action_for,
    latched,
    standing,
)

NONE = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
RESET = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
REBOOT = "GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)"


def fault(code, text="something"):
    return assess(read_kernel_line(f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=7, name=python, {text}"))


def xid(code, at, text="something", **changed):
    return replace(FaultSeen("node-a", "GPU-1", fault(code, text), at, boot_id="boot-1"), **changed)


def after(*events):
    return reduce(latched, events, LatchState())


def classes(state, node="node-a", gpu=None):
    return sorted(latch.key.fault_class for latch in standing(state, node, gpu))


def test_a_fatal_fault_stands_however_long_nothing_is_heard():
    state = after(xid(79, 1.0), xid(43, 1e9), NodeBooted("node-a", "boot-1", 1e9))
    assert classes(state) == ["xid-79"]


@pytest.mark.parametrize("code", [13, 31, 43, 45, 109, 121, 137])
def test_what_is_no_standing_fault_does_not_stand(code):
    assert classes(after(xid(code, 1.0))) == []


ENDS = [
    ("reset", GpuReset("node-a", "GPU-1", 9.0)),
    ("reset", GpuReset("node-a", "", 9.0)),
    ("reboot", NodeBooted("node-a", "boot-2", 9.0)),
    ("person", Repaired("node-a", "GPU-1", 9.0)),
    ("person", Repaired("node-a", "", 9.0)),
    ("recovery-none", xid(154, 9.0, NONE)),
    ("recovery-none", RecoveryStated("node-a", "GPU-1", 0, 9.0)),
]


@pytest.mark.parametrize("code", [code for code, row in xid_catalogue().rows.items() if row.clears])
@pytest.mark.parametrize(("by", "event"), ENDS)
def test_each_event_ends_exactly_what_the_row_says(code, by, event):
    state = after(NodeBooted("node-a", "boot-1", 0.0), xid(code, 1.0))
    assert classes(state) == [f"xid-{code}"]
    assert classes(latched(state, event)) == ([] if by in xid_catalogue().rows[code].clears else [f"xid-{code}"])


@pytest.mark.parametrize(
    "event",
    [
        GpuReset("node-a", "GPU-2", 9.0),
        GpuReset("node-b", "", 9.0),
        GpuReset("node-a", "GPU-1", 0.5),
        NodeBooted("node-b", "boot-2", 9.0),
        NodeBooted("node-a", "boot-1", 9.0),
        Repaired("node-a", "GPU-2", 9.0),
        Repaired("node-a", "GPU-1", 9.0, is_drill=True),
        xid(154, 9.0, NONE, gpu="GPU-2"),
        RecoveryStated("node-a", "GPU-2", 0, 9.0),
    ],
)
def test_events_of_elsewhere_or_before_end_nothing(event):
    assert "xid-95" in classes(latched(after(xid(95, 1.0)), event))


def test_a_pending_remap_is_over_with_the_reset():
    assert classes(after(xid(63, 1.0), GpuReset("node-a", "GPU-1", 2.0))) == []
    assert classes(after(xid(63, 1.0), xid(154, 2.0, NONE))) == ["xid-63"]


def test_a_cancelling_code_ends_its_partner_and_nothing_else():
    assert classes(after(xid(163, 1.0), xid(95, 1.0), xid(162, 2.0))) == ["xid-95"]
    assert classes(after(xid(163, 1.0), xid(162, 2.0, gpu="GPU-2"))) == ["xid-163"]


def test_a_switch_that_cooled_down_is_no_longer_hot():
    hot, cool = (
        FaultSeen("node-a", "", assess(read_kernel_line(f"nvidia-nvswitch0: SXid (PCI:0000:0a:00.0): {code}, x")), at)
        for code, at in ((10004, 1.0), (10005, 2.0))
    )
    assert sxid_catalogue().rows[10004].clears
    assert classes(after(hot)) == ["sxid-10004"]
    assert classes(after(hot, cool)) == []


def test_duplicates_are_one_fault_with_a_count():
    (latch,) = standing(after(*(xid(95, float(at)) for at in (3, 1, 2))), "node-a")
    assert (latch.count, latch.first_seconds, latch.last_seconds) == (3, 1.0, 3.0)


def test_one_event_delivered_twice_counts_once():
    (latch,) = standing(after(xid(95, 1.0, event_id="e"), xid(95, 1.0, event_id="e")), "node-a")
    assert latch.count == 1


def test_a_new_boot_id_in_a_line_is_a_reboot():
    state = after(xid(79, 1.0), xid(45, 50.0, boot_id="boot-2"))
    assert classes(state) == []


def test_a_late_line_of_an_earlier_boot_does_not_stand():
    assert classes(after(xid(45, 1.0), NodeBooted("node-a", "boot-2", 50.0), xid(79, 2.0))) == []


def test_a_late_line_from_before_the_reset_does_not_stand():
    assert classes(after(GpuReset("node-a", "GPU-1", 9.0), xid(95, 8.0))) == []
    assert classes(after(GpuReset("node-a", "GPU-1", 9.0), xid(95, 10.0))) == ["xid-95"]


def test_a_fault_that_keeps_coming_back_needs_a_person():
    events = []
    for turn in range(return_rule().count + 1):
        events += [GpuReset("node-a", "GPU-1", 100.0 * turn), xid(95, 100.0 * turn + 50)]
    (latch,) = standing(after(*events), "node-a")
    assert (latch.clears, latch.action) == (("person",), "contact-support")
    last = latch.last_seconds
    assert classes(after(*events, GpuReset("node-a", "GPU-1", last + 1), xid(154, last + 2, NONE))) == ["xid-95"]
    assert classes(after(*events, Repaired("node-a", "GPU-1", last + 1))) == []


def test_the_same_faults_far_apart_need_no_person():
    window = return_rule().window_seconds
    times = [3 * turn * window for turn in range(4)]
    events = [event for at in times for event in (xid(95, at), GpuReset("node-a", "", at + 1))]
    (latch,) = standing(after(*events, xid(95, 99 * window)), "node-a")
    assert "reset" in latch.clears


def test_the_driver_overrules_the_table():
    assert action_for(after(xid(95, 1.0)), "node-a", "GPU-1") == "reset-gpu"
    assert action_for(after(xid(95, 1.0), xid(154, 1.1, REBOOT)), "node-a", "GPU-1") == "reboot-node"
    assert action_for(after(xid(79, 1.0), RecoveryStated("node-a", "GPU-1", 1, 2.0)), "node-a", "GPU-1") == "reset-gpu"
    assert action_for(after(xid(95, 1.0), xid(154, 1.1, RESET), xid(154, 2.0, NONE)), "node-a", "GPU-1") == "none"
    assert action_for(after(), "node-a", "GPU-1") == "none"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ("fatal", "reset-gpu")),
        (0, ("warning", "none")),
        (2, ("fatal", "reboot-node")),
        (99, ("fatal", "reset-gpu")),
    ],
)
def test_what_nvml_says_overrules_one_fault(value, expected):
    found = overruled(fault(95), value)
    assert (found.severity, found.action) == expected


def test_a_drill_stands_labelled_and_touches_no_real_fault():
    drill = xid(95, 1.0, is_drill=True)
    state = after(drill, xid(95, 2.0))
    assert [latch.key.is_drill for latch in standing(state, "node-a")] == [True, False]
    ended = latched(state, xid(154, 3.0, NONE, is_drill=True))
    assert [latch.key.is_drill for latch in standing(ended, "node-a")] == [False]
    over = latched(state, Repaired("node-a", "", 3.0, is_drill=True))
    assert [latch.key.is_drill for latch in standing(over, "node-a")] == [False]
    assert action_for(after(drill), "node-a", "GPU-1") == "none"


def test_an_event_that_the_driver_injected_is_a_drill():
    text = "RLW_RSPCOL Fatal XC0 i1 Link 00 (0x00000005 0x00000002 0x0 0x0)"
    (latch,) = standing(after(xid(145, 1.0, text)), "node-a")
    assert latch.key.is_drill


def repeated(code, times, text="something", **changed):
    return [xid(code, at, text, **changed) for at in times]


HOURS = [3600.0 * hour for hour in range(3)]


def test_memory_faults_of_one_gpu_alone_raise_a_suspicion():
    state = after(*repeated(31, HOURS))
    assert classes(state) == ["xid-31-repeated"]
    (latch,) = standing(state, "node-a")
    assert (latch.severity, latch.action, latch.clears) == ("warning", "contact-support", ("person",))
    assert classes(latched(state, GpuReset("node-a", "GPU-1", 1e6))) == ["xid-31-repeated"]
    assert classes(latched(state, Repaired("node-a", "GPU-1", 1e6))) == []


def test_memory_faults_of_all_gpus_are_the_program():
    others = [replace(event, gpu="GPU-2", at_seconds=event.at_seconds + 1) for event in repeated(31, HOURS)]
    events = sorted([*repeated(31, HOURS), *others], key=lambda event: event.at_seconds)
    assert classes(after(*events)) == []


def test_one_burst_is_no_repetition():
    assert classes(after(*repeated(31, [second / 10 for second in range(50)]))) == []


def test_exceptions_must_be_of_one_unit():
    texts = [f"Graphics SM Warp Exception on (GPC {gpc}, TPC 5, SM 0): Out Of Range" for gpc in (9, 9, 9)]
    assert classes(after(*(xid(13, at, text) for at, text in zip(HOURS, texts, strict=True)))) == ["xid-13-repeated"]
    texts = [text.replace("GPC 9", f"GPC {number}") for number, text in enumerate(texts)]
    assert classes(after(*(xid(13, at, text) for at, text in zip(HOURS, texts, strict=True)))) == []


def test_repetitions_outside_the_window_do_not_count():
    assert classes(after(*repeated(31, [0.0, 1e6, 2e6]))) == []


def test_drills_are_no_repetition():
    assert classes(after(*repeated(31, HOURS, is_drill=True))) == []


def test_many_remapped_rows_ask_for_support():
    events = [xid(63, float(number)) for number in range(9)]
    assert classes(after(*events[:8])) == ["xid-63"]
    assert classes(after(*events)) == ["xid-63", "xid-63-repeated"]


def test_there_is_a_bound_and_it_is_counted(monkeypatch):
    monkeypatch.setattr(latching, "LATCHES_MAX", 2)
    state = after(*(xid(95, 1.0, gpu=f"GPU-{number}") for number in range(4)))
    assert (len(state.latches), state.refused) == (2, 2)


CODES = st.sampled_from([63, 79, 94, 95, 163, 162, 119])
PLACES = st.tuples(st.sampled_from(["node-a", "node-b"]), st.sampled_from(["GPU-1", "GPU-2"]))


@st.composite
def histories(draw):
    """Faults at different times, with at most one reset and one repair of each GPU."""
    faults = draw(st.lists(st.tuples(CODES, PLACES), max_size=8))
    events = [xid(code, 0.0, node=node, gpu=gpu, boot_id="") for code, (node, gpu) in faults]
    events += [GpuReset(*place, 0.0) for place in draw(st.lists(PLACES, unique=True, max_size=3))]
    events += [Repaired(*place, 0.0) for place in draw(st.lists(PLACES, unique=True, max_size=2))]
    times = draw(st.permutations(range(len(events))))
    return [replace(event, at_seconds=float(at)) for event, at in zip(events, times, strict=True)]


@given(histories(), st.randoms())
def test_the_order_of_arrival_changes_nothing(events, random):
    in_order = sorted(events, key=lambda event: event.at_seconds)
    shuffled = random.sample(events, len(events))
    assert set(after(*shuffled).latches) == set(after(*in_order).latches)


@given(histories())
def test_what_was_delivered_twice_stands_once(events):
    once = sorted(events, key=lambda event: event.at_seconds)
    assert set(after(*once, *once).latches) == set(after(*once).latches)


@given(histories())
def test_a_repair_of_everything_leaves_nothing(events):
    state = after(*events, Repaired("node-a", "", 1e9), Repaired("node-b", "", 1e9))
    assert state.latches == {}
