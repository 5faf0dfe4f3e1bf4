"""Who keeps a stalled job waiting: every fault class names the right rank, and its healthy twin names nobody."""

import msgspec
import pytest
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import HangSettings, detect_stall
from instep_diagnosis.verdict import Cause, Certainty, Kind, Owner, StuckAt

from tests.diagnosis.scenarios import XID_79, Scenario, group

SETTINGS = HangSettings()
TP01, TP23, DP02, DP13 = ((0, 1), (2, 3), (0, 2), (1, 3))
KEYS = {TP01: "00000000000000a1", TP23: "00000000000000a2", DP02: "00000000000000b1", DP13: "00000000000000b2"}
USER_STACK = [("load_batch", "/srv/job/train.py", 88), ("main", "/srv/job/train.py", 120)]


def verdict_of(scenario):
    job = scenario.job()
    stall = detect_stall(job, SETTINGS)
    assert stall is not None
    return localise_hang(job, stall, SETTINGS)


def place(ranks, entered, *, done=None, age=4.0, op="all_reduce"):
    name = ("tp" if ranks in (TP01, TP23) else "dp") + "".join(map(str, ranks))
    return group(entered, done=done, age=age, op=op, members=ranks, key=KEYS[ranks], description=name)


def test_a_stopped_rank_is_named_in_one_sentence():
    verdict = verdict_of(Scenario().waits(0, 1, 3, seconds=3.1).sits(2, phase="forward", process="stopped"))
    assert verdict.summary == (
        "Rank 2 on node-b never entered all_reduce seq 511 of group default (0-3); ranks 0, 1, 3 have waited 3.1 s; "
        "its process is stopped (SIGSTOP)."
    )
    assert (verdict.kind, verdict.cause, verdict.certainty) == (Kind.HANG, Cause.STOPPED, Certainty.CONFIRMED)
    assert (verdict.seq, verdict.op, verdict.waiting_ranks) == (511, "all_reduce", (0, 1, 3))
    assert [suspect.rank for suspect in verdict.suspects] == [2]
    assert verdict.confidence >= 0.95
    assert not verdict.is_node_at_fault
    assert verdict.stuck_at is StuckAt.HOST


@pytest.mark.parametrize(
    ("frames", "answers", "gil", "cause"),
    [
        (USER_STACK, True, False, Cause.USER_CODE),
        (USER_STACK, False, True, Cause.GIL_HELD),
        ([("sleep_forever", "/srv/job/faults.py", 3)], True, True, Cause.USER_CODE),
    ],
)
@pytest.mark.parametrize("is_withheld", [False, True])
@pytest.mark.parametrize("culprit", range(4))
def test_a_rank_in_its_own_code_is_named_with_its_line(frames, answers, gil, cause, is_withheld, culprit):
    peers = [rank for rank in range(4) if rank != culprit]
    job = Scenario().waits(*peers).sits(culprit, phase="forward").dumped(culprit, *frames, answers=answers, gil=gil)
    verdict = verdict_of(job.withhold_process_state() if is_withheld else job)
    assert [suspect.rank for suspect in verdict.suspects] == [culprit]
    assert verdict.cause is cause
    assert f"{frames[0][1].rsplit('/')[-1]}:{frames[0][2]} in {frames[0][0]}" in verdict.summary
    assert verdict.owner is Owner.JOB


def test_library_frames_are_not_the_users():
    frames = [("wait", "/usr/lib/python3.11/threading.py", 3), *USER_STACK]
    verdict = verdict_of(Scenario().waits(0, 1, 3).sits(2, phase="forward").dumped(2, *frames))
    assert "train.py:88 in load_batch" in verdict.summary


@pytest.mark.parametrize(
    "file",
    [
        "/venv/lib/python3.11/site-packages/torch/serialization.py",
        "/venv/lib/python3.11/site-packages/torch/distributed/checkpoint/state_dict_saver.py",
        "/venv/lib/python3.11/site-packages/torch/utils/data/dataloader.py",
        "/venv/lib/python3.11/site-packages/torch/_dynamo/convert_frame.py",
        "/venv/lib/python3.11/site-packages/torch/_inductor/async_compile.py",
    ],
)
def test_a_rank_that_saves_loads_or_compiles_is_a_suspect_at_most(file):
    job = Scenario().waits(0, 1, 3).sits(2, phase="user").dumped(2, ("save", file, 1), *USER_STACK)
    verdict = verdict_of(job)
    assert verdict.certainty is Certainty.SUSPECT
    assert not verdict.is_node_at_fault


def test_a_stopped_process_is_a_hang_even_inside_a_save():
    job = Scenario().waits(0, 1, 3).sits(2, phase="checkpoint", process="stopped")
    job.dumped(2, ("save", "/venv/lib/python3.11/site-packages/torch/serialization.py", 1))
    assert verdict_of(job).certainty is Certainty.CONFIRMED


def test_a_rank_that_waits_for_the_culprit_elsewhere_is_a_victim():
    """TP×DP on 2×2: rank 3 sleeps; rank 2 waits for it in its TP group; rank 0 waits for rank 2, rank 1 for 0 and 3."""
    job = Scenario()
    job.sits(3, phase="forward").in_groups(3, place(TP23, 90, done=90), place(DP13, 20, done=20))
    job.sits(2, phase="wait").in_groups(2, place(TP23, 91, done=90), place(DP02, 20, done=20))
    job.sits(0, phase="wait").in_groups(0, place(TP01, 95, done=95), place(DP02, 21, done=20))
    job.sits(1, phase="wait").in_groups(1, place(TP01, 95, done=95), place(DP13, 21, done=20))
    verdict = verdict_of(job)
    assert [suspect.rank for suspect in verdict.suspects] == [3]


def test_a_rank_that_skipped_a_collective_and_waits_elsewhere_is_outvoted():
    job = Scenario().waits(0, 1, 3, seq=511)
    job.sits(2, phase="wait").in_groups(2, group(510, done=510), place(TP23, 91, done=90))
    for rank in (0, 1, 3):
        extra = [place(TP23, 90, done=90)] if rank == 3 else []
        job.in_groups(rank, group(511, done=510, age=4.0), *extra)
    verdict = verdict_of(job)
    assert [suspect.rank for suspect in verdict.suspects] == [2]
    assert (verdict.cause, verdict.owner) == (Cause.SKIPPED_COLLECTIVE, Owner.JOB)
    assert verdict.seq == 511
    assert verdict.waiting_ranks == (0, 1, 3)


def test_two_ranks_that_wait_for_one_another_are_a_tie():
    def other(entered, done):
        return group(entered, done=done, age=4.0, members=TP23, key="00000000000000c1")

    job = Scenario()
    job.sits(2, phase="wait").in_groups(2, place(TP23, 91, done=90), other(20, 20))
    job.sits(3, phase="wait").in_groups(3, place(TP23, 90, done=90), other(21, 20))
    verdict = verdict_of(job)
    assert {suspect.rank for suspect in verdict.suspects} == {2, 3}
    assert all(suspect.confidence <= 0.5 for suspect in verdict.suspects)


@pytest.mark.parametrize("culprit", range(4))
@pytest.mark.parametrize(("op", "payload"), [("all_gather", 4096), ("all_reduce", 8192)])
def test_another_operation_or_size_is_a_bug_of_the_minority(culprit, op, payload):
    job = Scenario().waits(0, 1, 2, 3)
    job.in_groups(culprit, group(511, done=510, age=4.0, op=op, payload=payload))
    verdict = verdict_of(job)
    assert [suspect.rank for suspect in verdict.suspects] == [culprit]
    assert (verdict.cause, verdict.owner) == (Cause.MISMATCHED_COLLECTIVE, Owner.JOB)
    assert not verdict.is_node_at_fault


def test_two_against_two_is_a_tie():
    job = Scenario().waits(0, 1, 2, 3)
    for rank in (2, 3):
        job.in_groups(rank, group(511, done=510, age=4.0, op="barrier"))
    verdict = verdict_of(job)
    assert {suspect.rank for suspect in verdict.suspects} == {0, 1, 2, 3}
    assert verdict.confidence <= 0.5


def test_a_rank_one_operation_ahead_in_the_same_group_skipped_one():
    """Steps go all_reduce, all_reduce, barrier; rank 2 leaves the barrier out, so its next bucket meets it."""
    job = Scenario().waits(0, 1, 3, seq=512, op="barrier", payload=0)
    job.sits(2, phase="wait").in_groups(2, group(512, done=511, age=4.0, op="all_reduce"))
    history = [(507, "all_reduce", 4096), (508, "all_reduce", 4096), (509, "barrier", 0), (510, "all_reduce", 4096)]
    for rank in range(4):
        last = (512, "all_reduce", 4096) if rank == 2 else (512, "barrier", 0)
        job.called(rank, *history, (511, "all_reduce", 4096), last)
    verdict = verdict_of(job)
    assert [suspect.rank for suspect in verdict.suspects] == [2]
    assert verdict.cause is Cause.SKIPPED_COLLECTIVE
    assert verdict.seq == 512


def test_a_collective_that_all_entered_blames_nobody():
    verdict = verdict_of(Scenario().waits(0, 1, 2, 3))
    assert (verdict.suspects, verdict.cause, verdict.stuck_at) == ((), Cause.DEVICE, StuckAt.DEVICE)


def test_unless_a_fatal_line_names_a_gpu():
    job = Scenario().waits(0, 1, 2, 3, seconds=4.0).kernel_line("node-b", XID_79, ago=4.5, gpu="GPU-3")
    verdict = verdict_of(job)
    assert [(s.rank, s.cause) for s in verdict.suspects] == [(3, Cause.GPU_FAULT)]
    assert verdict.is_node_at_fault
    assert "Xid 79" in verdict.summary


def test_a_receive_without_its_peer_on_record_blames_the_only_rank_that_does_not_wait():
    job = Scenario().waits(1, 2, 3, op="recv", seq=7)
    job.sits(0, phase="forward", process="running").in_groups(0, group(None, op=""))
    verdict = verdict_of(job)
    assert [suspect.rank for suspect in verdict.suspects] == [0]
    assert verdict.confidence < 0.95


def test_a_receive_names_its_peer_where_it_is_on_record():
    job = Scenario().sits(3, phase="wait").in_groups(3, group(7, done=6, age=4.0, op="recv 3<-2"))
    job.sits(2, phase="wait").in_groups(2, group(6, done=5, age=4.0, op="recv 2<-1"))
    job.sits(1, phase="forward").in_groups(1, group(5, done=5, op="send 1->2"))
    assert [suspect.rank for suspect in verdict_of(job).suspects] == [1]


def test_a_rank_in_a_receive_has_not_entered_the_collective_and_is_no_culprit():
    job = Scenario().waits(0, 1)
    job.sits(3, phase="wait").in_groups(3, group(7, done=6, age=4.0, op="recv 3<-2"))
    job.sits(2, phase="forward").in_groups(2, group(510, done=510))
    assert [suspect.rank for suspect in verdict_of(job).suspects] == [2]


def test_two_stopped_ranks_are_both_named():
    job = Scenario().waits(0, 1).sits(2, phase="forward", process="stopped").sits(3, phase="forward", process="stopped")
    verdict = verdict_of(job)
    assert {suspect.rank for suspect in verdict.suspects} == {2, 3}
    assert verdict.confidence >= 0.95


def test_ranks_nothing_is_known_of_are_asked_for_and_not_accused():
    verdict = verdict_of(Scenario().waits(0, 1, 3).never_heard(2))
    assert (verdict.suspects, verdict.certainty, verdict.confidence) == ((), Certainty.SUSPECT, 0.0)
    assert "nothing fresh is known of rank 2" in verdict.summary


def test_members_need_not_be_on_record():
    job = Scenario().waits(0, 1, 3, members=None)
    job.sits(2, phase="forward", process="stopped").in_groups(2, group(510, done=510, members=None))
    assert [suspect.rank for suspect in verdict_of(job).suspects] == [2]


def test_a_fatal_line_on_the_culprits_gpu_puts_the_node_at_fault():
    job = Scenario().waits(0, 1, 3).sits(2, phase="wait", process="running").kernel_line("node-b", XID_79, gpu="GPU-2")
    verdict = verdict_of(job)
    assert (verdict.kind, verdict.cause, verdict.owner) == (Kind.HANG, Cause.GPU_FAULT, Owner.NODE)
    assert verdict.is_node_at_fault
    assert any(item.source == "kernel-log" and item.fields["line"] == XID_79 for item in verdict.evidence)


@pytest.mark.parametrize(
    ("node", "gpu", "ago", "line"),
    [
        ("node-a", "GPU-0", 5.0, XID_79),
        ("node-b", "GPU-3", 5.0, XID_79),
        ("node-b", "GPU-2", 300.0, XID_79),
        ("node-b", "GPU-2", 5.0, XID_79.replace(" 79,", " 94,")),
        ("node-b", "GPU-2", 5.0, XID_79.replace(" 79,", " 45,")),
    ],
)
def test_lines_elsewhere_or_of_applications_do_not(node, gpu, ago, line):
    job = Scenario().waits(0, 1, 3).sits(2, phase="forward", process="stopped")
    job.kernel_line(node, line, ago=ago, gpu=gpu)
    verdict = verdict_of(job)
    assert not verdict.is_node_at_fault
    assert verdict.cause is Cause.STOPPED


def test_fewer_known_ranks_make_it_less_sure():
    sure = verdict_of(Scenario().waits(0, 1, 3).sits(2, phase="forward", process="stopped")).confidence
    less = verdict_of(Scenario().waits(0, 1).never_heard(3).sits(2, phase="forward", process="stopped")).confidence
    assert less < sure


RECV = [("recv", "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", 2500), *USER_STACK]


def test_a_rank_seen_inside_a_transfer_is_a_victim_of_the_one_outside():
    job = Scenario().waits(0, 1).sits(2, phase="forward").sits(3, phase="forward")
    job.dumped(2, *RECV).dumped(3, *USER_STACK)
    assert [suspect.rank for suspect in verdict_of(job).suspects] == [3]


def test_where_transfers_are_not_on_record_a_rank_inside_one_is_not_accused():
    job = Scenario().waits(0, 1, 3).sits(2, phase="forward", unobserved=("p2p",)).dumped(2, *RECV)
    verdict = verdict_of(job)
    assert (verdict.suspects, verdict.certainty) == ((), Certainty.SUSPECT)


def test_the_last_collective_of_a_rank_that_has_sent_since_is_in_its_ring():
    job = Scenario().waits(0, 1, 3).sits(2, phase="forward", process="stopped")
    job.in_groups(2, group(9, done=9, op="send"))
    job.called(2, (509, "all_reduce", 4096), (510, "all_reduce", 4096), (9, "send", 64))
    assert [suspect.rank for suspect in verdict_of(job).suspects] == [2]


def test_the_flight_recorder_is_a_second_witness():
    job = Scenario().waits(0, 1, 3).sits(2, phase="forward").dumped(2, *USER_STACK).dumped(0, ("wait", "x.py", 1))
    for rank, seq in ((0, 511), (2, 510)):
        text = (
            f'{{"entries": [{{"collective_seq_id": {seq}, "profiling_name": "gloo:all_reduce", '
            f'"process_group": ["0", "default"]}}]}}'
        )
        job.dumps[rank] = msgspec.structs.replace(job.dumps[rank], flight_recorder=text)
    lines = [item.text for item in verdict_of(job).evidence if item.source == "flight-recorder"]
    assert lines == [
        "Rank 2's flight recorder ends with all_reduce seq 510 of group default, rank 0's with all_reduce seq 511."
    ]


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"entries": 3}', '{"entries": [{"process_group": 1}]}', "{" * 5000]
)
def test_a_damaged_flight_recorder_says_nothing(text):
    job = Scenario().waits(0, 1, 3).sits(2, phase="forward").dumped(2, *USER_STACK)
    job.dumps[2] = msgspec.structs.replace(job.dumps[2], flight_recorder=text)
    verdict = verdict_of(job)
    assert [suspect.rank for suspect in verdict.suspects] == [2]
    assert not any(item.source == "flight-recorder" for item in verdict.evidence)
