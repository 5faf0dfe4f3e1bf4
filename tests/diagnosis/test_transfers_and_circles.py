"""Transfers between two ranks, circles of waits, operations that run beside their caller: who is named?"""

import pytest
from instep_agent.wire import CollectiveEntry
from instep_diagnosis.detectors.habits import departs_from_habit
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import HangSettings, StallReason, detect_stall
from instep_diagnosis.verdict import Cause, Certainty

from tests.diagnosis.scenarios import Scenario, group

SETTINGS = HangSettings()
USER_STACK = [("load_batch", "/srv/job/train.py", 88), ("main", "/srv/job/train.py", 120)]
WAIT_STACK = [("wait", "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", 1), *USER_STACK]


def stall_of(scenario):
    return detect_stall(scenario.job(), SETTINGS)


def verdict_of(scenario):
    stall = stall_of(scenario)
    assert stall is not None
    return localise_hang(scenario.job(), stall, SETTINGS)


def named(scenario):
    return [suspect.rank for suspect in verdict_of(scenario).suspects]


def pair(source, target, entered, *, at, done=None, age=4.0):
    """The place of rank `at` in the transfers from `source` to `target`, as the record has it."""
    op = "send" if at == source else "recv"
    return group(entered, done=entered if done is None else done, age=age, op=op, members=(source, target),
                 key=f"00000000000000{source}{target}", description="p2p pp")  # fmt: skip


def between(first, second, *, seq=511, done=510, age=4.0):
    """A place in the group of two ranks side by side."""
    return group(seq, done=done, age=age, members=(first, second), key=f"000000000000aa{first}{second}",
                 description="tp")  # fmt: skip


# Transfers ------------------------------------------------------------------------------------------------------------


def pipeline(guilty, *, seconds=4.0):
    """Four stages; the one that sleeps has received and not sent, so that those behind wait for it one by one."""
    job = Scenario()
    for rank in range(4):
        places = []
        if rank > 0:
            is_late = rank > guilty
            places.append(pair(rank - 1, rank, 8 if is_late else 7, at=rank, done=7, age=seconds))
        if rank < 3:
            places.append(pair(rank, rank + 1, 7, at=rank, age=seconds + 1))
            # Those before the guilty one wait for its gradients.
            is_early = rank < guilty
            places.append(pair(rank + 1, rank, 4 if is_early else 3, at=rank, done=3, age=seconds))
        if rank > 0:
            places.append(pair(rank, rank - 1, 3, at=rank, age=seconds + 1))
        job.sits(rank, phase="forward", seconds=seconds).in_groups(rank, *places)
    return job


@pytest.mark.parametrize("guilty", range(4))
def test_the_stage_that_does_not_send_is_named_and_those_behind_it_are_not(guilty):
    assert named(pipeline(guilty)) == [guilty]
    verdict = verdict_of(pipeline(guilty).dumped(guilty, *USER_STACK))
    assert (verdict.certainty, verdict.cause) == (Certainty.CONFIRMED, Cause.USER_CODE)
    assert verdict.confidence >= 0.95  # which peer it is, is on record


@pytest.mark.parametrize("guilty", range(4))
def test_stages_that_wait_for_a_moment_are_no_stall(guilty):
    assert stall_of(pipeline(guilty, seconds=0.3)) is None


def test_a_transfer_that_both_ends_have_entered_accuses_neither():
    job = Scenario()
    for rank in (0, 1):
        job.sits(rank, phase="forward").in_groups(rank, pair(0, 1, 8, at=rank, done=7))
    stall = stall_of(job)
    assert stall is not None
    assert (stall.reason, stall.suspects) == (StallReason.SYMMETRIC, ())
    assert named(job) == []


def test_a_send_that_has_arrived_unseen_does_not_blame_its_receiver():
    """The receiver has gone on and waits for the sleeper; the sender has not looked whether its send is complete."""
    job = Scenario().sits(1, phase="forward").sits(0, phase="forward")
    job.in_groups(0, pair(0, 1, 8, at=0, done=7), pair(1, 0, 3, at=0))
    job.in_groups(1, pair(0, 1, 9, at=1, done=8)).dumped(0, *USER_STACK)
    assert named(job) == [0]


def test_a_rank_that_receives_from_any_source_is_no_culprit_while_a_sender_sleeps():
    waiting = group(9, done=8, age=4.0, op="recv_any_source", members=(0,), key="00000000000000ff", description="p2p")
    job = Scenario().waits(1, 3).sits(2, phase="forward").sits(0, phase="forward")
    job.in_groups(0, waiting, group(510, done=510)).in_groups(2, group(510, done=510))
    assert named(job) == [2]


def test_a_rank_that_no_longer_receives_from_any_source_is_waited_for_by_those_who_send():
    taken = group(9, done=9, age=5.0, op="recv_any_source", members=(0,), key="00000000000000ff", description="p2p")
    job = Scenario().sits(0, phase="forward").in_groups(0, taken)
    for rank in (1, 2, 3):
        job.sits(rank, phase="forward").in_groups(rank, pair(rank, 0, 4, at=rank, done=3))
    assert named(job) == [0]


def end_of_a_pause(*, arrived_ago):
    """Rank 0 has just sent what rank 1 waited for; rank 1's report is a moment older, and rank 2 waits for rank 1."""
    job = Scenario().sits(0, phase="forward", seconds=arrived_ago).sits(1, phase="forward").sits(2, phase="forward")
    job.in_groups(0, pair(0, 1, 8, at=0, done=7, age=arrived_ago))
    job.in_groups(1, pair(0, 1, 8, at=1, done=7), pair(1, 2, 7, at=1))
    return job.in_groups(2, pair(1, 2, 8, at=2, done=7))


@pytest.mark.parametrize("report_age_seconds", [0.0, 0.9])
def test_a_rank_that_can_go_on_since_a_moment_only_is_not_accused(report_age_seconds):
    """Reports of several ranks and nodes are never of one moment."""
    job = end_of_a_pause(arrived_ago=report_age_seconds / 2).last_heard(1, report_age_seconds)
    assert stall_of(job) is None


def test_a_rank_that_could_go_on_for_long_is():
    assert named(end_of_a_pause(arrived_ago=3.0)) == [1]


# Circles --------------------------------------------------------------------------------------------------------------

TENSOR, LOSS = "000000000000aa01", "00000000000000d0"
STEP = [(TENSOR, "all_reduce", 4096), (TENSOR, "all_reduce", 4), (LOSS, "all_reduce", 8)]


def calls(job, rank, *sequence):
    numbers: dict[str, int] = {}
    entries = []
    for key, op, size in sequence:
        numbers[key] = numbers.get(key, 0) + 1
        entries.append(CollectiveEntry(group_key=key, seq=numbers[key], op=op, payload_bytes=size,
                                       entered_age_seconds=4.0))  # fmt: skip
    return job.sits(rank, phase="backward", collectives=tuple(entries))


@pytest.mark.parametrize("skipper", [0, 1])
def test_a_rank_that_leaves_its_only_partner_behind_is_named_though_it_stands_with_the_majority(skipper):
    """The partner is the one missing where all others are; what each has always done tells who left something out."""
    partner = 1 - skipper
    job = Scenario().waits(skipper, 2, 3)
    job.in_groups(skipper, group(511, done=510, age=4.0), between(0, 1, seq=40, done=40))
    job.sits(partner, phase="wait").in_groups(partner, group(510, done=510), between(0, 1, seq=41, done=40))
    calls(job, skipper, *STEP * 3, STEP[0], STEP[2])
    calls(job, partner, *STEP * 3, *STEP[:2])
    for rank in (2, 3):
        calls(job, rank, *STEP * 4)
    verdict = verdict_of(job)
    assert [(s.rank, s.cause) for s in verdict.suspects] == [(skipper, Cause.SKIPPED_COLLECTIVE)]
    assert f"Rank {skipper} skipped all_reduce seq 41 of group tp" in verdict.summary


def test_where_every_rank_does_something_new_the_smaller_side_is_named_as_before():
    new = ("000000000000ee00", "all_reduce", 64)
    job = Scenario().waits(0, 1, 3)
    job.sits(2, phase="wait").in_groups(2, group(510, done=510), between(2, 3, seq=41, done=40))
    job.in_groups(3, group(511, done=510, age=4.0), between(2, 3, seq=40, done=40))
    for rank in range(4):
        calls(job, rank, *STEP * 3, STEP[0], new)
    assert named(job) == [2]


def test_a_stage_that_left_out_a_send_is_named_not_the_one_that_waits_for_it():
    send, back = ("0000000000000001", "send", 1024), ("0000000000000010", "recv", 1024)
    job = Scenario()
    job.sits(0, phase="backward").in_groups(0, pair(0, 1, 11, at=0), pair(1, 0, 9, at=0, done=8))
    job.sits(1, phase="forward").in_groups(1, pair(0, 1, 12, at=1, done=11), pair(1, 0, 8, at=1))
    step = [*[send] * 4, *[back] * 4]
    calls(job, 0, *step * 2, send, send, send, back)
    calls(job, 1, *[(key, "recv" if op == "send" else "send", size) for key, op, size in [*step * 2, *[send] * 4]])
    assert named(job) == [0]


def test_a_rank_in_its_own_code_is_named_though_an_operation_beside_it_closes_a_circle():
    job = Scenario()
    circle = ((0, 2), (2, 3), (3, 1), (1, 0))
    for rank, peer in circle:
        first, second = sorted((rank, peer))
        others = [between(*sorted((other, rank)), seq=510, done=510) for other, target in circle if target == rank]
        job.sits(rank, phase="backward").in_groups(rank, between(first, second), *others)
        job.dumped(rank, *(USER_STACK if rank == 0 else WAIT_STACK))
    assert stall_of(job).reason is StallReason.DEADLOCK
    verdict = verdict_of(job)
    assert [(s.rank, s.cause) for s in verdict.suspects] == [(0, Cause.USER_CODE)]


def test_habits_are_unknown_of_a_rank_that_has_called_little():
    for made in range(2 * len(STEP)):
        job = calls(Scenario(), 0, *(STEP * 3)[:made], STEP[2])
        assert not departs_from_habit(job.reports[0].collectives)


@pytest.mark.parametrize("left_out", range(12))
def test_a_call_left_out_is_noticed_by_the_next_one_wherever_it_was(left_out):
    layers = [*[(TENSOR, "all_reduce", 4096)] * 9, *STEP[1:], ("00000000000000ab", "barrier", 0)]
    made = [*layers * 3, *layers[:left_out], *layers[left_out + 1 :], layers[0]][: 4 * len(layers)]
    assert departs_from_habit(calls(Scenario(), 0, *made).reports[0].collectives)
    assert not departs_from_habit(calls(Scenario(), 0, *layers * 20).reports[0].collectives)


# Operations beside their caller ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["evaluation", "checkpoint", "data"])
def test_a_pause_while_an_operation_runs_beside_it_closes_no_circle(phase):
    """Rank 0 sends without waiting and evaluates; rank 1, which shall receive, waits for rank 0 elsewhere."""
    job = Scenario().sits(0, phase=phase, phase_age_seconds=5.0)
    job.in_groups(0, pair(0, 1, 8, at=0, done=7, age=5.5), between(0, 1, seq=510, done=510))
    job.sits(1, phase="forward").in_groups(1, pair(0, 1, 7, at=1), between(0, 1))
    assert stall_of(job) is None


def test_a_collective_entered_in_the_pause_itself_is_waited_for():
    job = Scenario().sits(0, phase="evaluation", phase_age_seconds=6.0)
    job.in_groups(0, pair(0, 1, 8, at=0, done=7, age=5.5), between(0, 1, seq=510, done=510))
    job.sits(1, phase="forward").in_groups(1, pair(0, 1, 7, at=1), between(0, 1))
    assert stall_of(job).reason is StallReason.DEADLOCK


# Mismatch -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skipper", [0, 1])
def test_of_two_that_disagree_the_one_that_did_as_always_is_right(skipper):
    usual, other = ("000000000000aa01", "all_gather", 64), ("000000000000aa01", "all_reduce", 8)
    partner = 1 - skipper
    job = Scenario()
    for rank, op in ((partner, "all_gather"), (skipper, "all_reduce")):
        place = group(7, done=6, age=4.0, op=op, members=(0, 1), key=usual[0],
                      description="tp", payload=64 if op == "all_gather" else 8)  # fmt: skip
        job.sits(rank, phase="wait").in_groups(rank, place)
    calls(job, partner, *[usual, other] * 3, usual)
    calls(job, skipper, *[usual, other] * 3, other)
    verdict = verdict_of(job)
    assert [(s.rank, s.cause) for s in verdict.suspects] == [(skipper, Cause.SKIPPED_COLLECTIVE)]
