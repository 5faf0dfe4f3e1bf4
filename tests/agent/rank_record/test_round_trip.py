"""What a rank writes is what a reader says."""

import math
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_agent import wire
from instep_agent.host.processes import Process, start_ticks
from instep_agent.rank_record import (
    CompletedSource,
    Op,
    Phase,
    RecordReader,
    RecordTaken,
    group_key,
    read_record,
    record_path,
    report,
)
from instep_agent.rank_record.layout import STEP_YARDSTICK_NS_MAX
from instep_agent.rank_record.members import from_runs, to_runs
from made_records import new_writer, report_of


def test_gives_back_identity_and_heartbeat(tmp_path):
    writer = new_writer(tmp_path, 2, cluster="c", gpu="GPU-1", mesh=(("dp", 1), ("pp", 0)), is_annotated=True)
    writer.heartbeat(17, 1, Phase.forward)
    said = report_of(writer)
    assert (said.step, said.micro_step, said.phase) == (17, 1, "forward")
    assert (said.rank, said.gpu, said.mesh, said.is_annotated) == (2, "GPU-1", (("dp", 1), ("pp", 0)), True)
    assert said.pid == os.getpid()
    assert said.process_state == "running"
    assert said.cpu_seconds > 0
    assert writer.path == record_path(tmp_path, node="node-a", run="run", attempt=0, rank=2)


def test_says_startup_before_the_first_heartbeat(tmp_path):
    assert report_of(new_writer(tmp_path)).phase == "startup"


def test_a_phase_keeps_its_beginning_over_heartbeats(tmp_path):
    writer = new_writer(tmp_path)
    writer.heartbeat(0, 0, Phase.data)
    since = read_record(writer.path).heartbeat.phase_since_ns
    writer.heartbeat(1, 0, Phase.data, cpu_ns=5)
    beat = read_record(writer.path).heartbeat
    assert beat.phase_since_ns == since < beat.monotonic_ns
    assert beat.cpu_ns == 5


def test_a_group_that_was_declared_and_never_used_is_observed_at_zero(tmp_path):
    writer = new_writer(tmp_path)
    writer.declare_group([0, 2], "dp", 1)
    (group,) = report_of(writer).groups
    assert group == wire.GroupReport(
        key=group_key([0, 2], "dp", 1),
        description="dp",
        ordinal=1,
        size=2,
        members=(0, 2),
        entered_seq=0,
        returned_seq=0,
        completed_seq=None,
    )


def test_tells_entered_returned_and_completed_apart(tmp_path):
    writer = new_writer(tmp_path)
    group = writer.declare_group(range(4), "world")
    first = writer.enter(group, 1, Op.all_reduce, 100)
    second = writer.enter(group, 2, Op.broadcast, 200)
    writer.returned(first)
    (said,) = report_of(writer).groups
    assert (said.entered_seq, said.returned_seq, said.completed_seq) == (2, 1, None)
    assert (said.op, said.payload_bytes) == ("broadcast", 200)
    writer.returned(second)
    writer.completed(first, CompletedSource.polled)
    (said,) = report_of(writer).groups
    assert (said.entered_seq, said.returned_seq, said.completed_seq) == (2, 2, 1)


def test_collectives_are_reported_only_when_the_rank_is_silent(tmp_path):
    writer = new_writer(tmp_path)
    group = writer.declare_group(range(4), "world")
    writer.returned_completed(writer.enter(group, 1, Op.all_reduce, 100))
    writer.enter(group, 2, Op.barrier, 0)
    assert report_of(writer).collectives == ()
    late = report_of(writer, after_seconds=2.0)
    assert [(entry.seq, entry.op, entry.is_completed) for entry in late.collectives] == [
        (1, "all_reduce", True),
        (2, "barrier", False),
    ]
    assert late.heartbeat_age_seconds == pytest.approx(2.0, abs=0.5)


def test_completion_that_nobody_observes_is_not_observed(tmp_path):
    writer = new_writer(tmp_path)
    writer.returned(writer.enter(writer.declare_group(range(4)), 1, Op.all_reduce, 1))
    assert report_of(writer, after_seconds=2.0).collectives[0].is_completed is None


def test_the_ring_keeps_the_last_collectives_in_order_and_forgets_the_token_of_an_old_one(tmp_path):
    writer = new_writer(tmp_path, collectives=16)
    group = writer.declare_group(range(4))
    tokens = [writer.enter(group, seq, Op.all_reduce, seq) for seq in range(1, 41)]
    writer.completed(tokens[0], CompletedSource.wait)
    record = read_record(writer.path)
    assert [entry.seq for entry in record.collectives] == list(range(25, 41))
    assert all(entry.completed_ns is None for entry in record.collectives)


def test_a_group_beyond_the_table_is_named_as_not_observed(tmp_path):
    writer = new_writer(tmp_path, groups=1)
    writer.declare_group([0], "a")
    assert writer.declare_group([1], "b") is None
    assert writer.declare_group([1], "b") is None
    token = writer.enter(None, 1, Op.all_reduce, 4)
    writer.returned(token)
    writer.completed(token, CompletedSource.wait)
    writer.returned_completed(token)
    said = report_of(writer)
    assert said.unobserved == (f"group:{group_key([1], 'b', 0)}",)
    assert len(said.groups) == 1


def test_declaring_a_group_again_gives_the_same_slot(tmp_path):
    writer = new_writer(tmp_path)
    assert writer.declare_group([0, 1], "dp") == writer.declare_group((0, 1), "dp")
    assert writer.declare_group([0, 1], "dp", 1) == 1


def test_members_that_do_not_fit_are_reported_as_unknown(tmp_path):
    writer = new_writer(tmp_path, world_size=10_000)
    members = [n * n for n in range(300)]
    writer.declare_group(members, "é" * 40)
    (group,) = report_of(writer).groups
    assert (group.members, group.size) == (None, 300)
    assert group.description == "é" * 32


def test_steps_are_given_once_and_the_newest_survive_an_overrun(tmp_path):
    writer = new_writer(tmp_path, steps=8)
    with RecordReader(writer.path) as reader:
        writer.finish_step(1, 0.5, cpu_seconds=0.25, is_skipped=True)
        assert reader.read().steps == (wire.StepReport(step=1, wall_seconds=0.5, cpu_seconds=0.25, is_skipped=True),)
        assert reader.read().steps == ()
        for step in range(2, 30):
            writer.finish_step(step, 0.5)
        assert [step.step for step in reader.read().steps] == list(range(22, 30))
        writer.finish_step(30, 0.5)
        assert [step.step for step in reader.read().steps] == [30]


@pytest.mark.parametrize(("written_ns", "said"), [(0, None), (3_500, 3.5e-6), (10**9, STEP_YARDSTICK_NS_MAX * 1e-9)])
def test_a_step_tells_its_yardstick_beside_its_flags(tmp_path, written_ns, said):
    writer = new_writer(tmp_path)
    writer.finish_step(1, 0.5, yardstick_ns=written_ns, is_skipped=True)
    (step,) = read_record(writer.path).steps
    assert step.yardstick_seconds == (None if said is None else pytest.approx(said))
    assert step.is_skipped


def test_identity_changes_reach_a_reader_that_is_open(tmp_path):
    writer = new_writer(tmp_path)
    with RecordReader(writer.path) as reader:
        for number in range(3):
            writer.update_identity(mesh=(("tp", number),))
            assert reader.read().identity.mesh == (("tp", number),)


def test_an_identity_beyond_its_limits_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="not acceptable"):
        new_writer(tmp_path, mesh=tuple((f"d{n}", n) for n in range(9)))
    with pytest.raises(ValueError, match="cannot name a folder"):
        new_writer(tmp_path, run="../other")
    assert list(tmp_path.rglob("*")) == []


def test_a_second_claimant_gets_a_clear_error(tmp_path):
    new_writer(tmp_path)
    with pytest.raises(RecordTaken, match="second writer"):
        new_writer(tmp_path)


def test_the_file_is_its_owners_only(tmp_path):
    assert new_writer(tmp_path).path.stat().st_mode & 0o777 == 0o600


def test_a_forked_child_writes_nothing(tmp_path):
    writer = new_writer(tmp_path)
    group = writer.declare_group([0, 1])
    token = writer.enter(group, 1, Op.all_reduce, 8)
    before = writer.path.read_bytes()
    pid = os.fork()
    if pid == 0:
        writer.heartbeat(99, 0, Phase.user)
        writer.completed(token, CompletedSource.wait)
        writer.finish_step(1, 1.0)
        writer.update_identity(gpu="7")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert writer.path.read_bytes() == before
    writer.heartbeat(1, 0, Phase.user)
    assert read_record(writer.path).heartbeat.step == 1


def test_a_fork_that_bypasses_the_hooks_stops_writing_at_its_first_step(tmp_path, monkeypatch):
    writer = new_writer(tmp_path)
    before = writer.path.read_bytes()
    monkeypatch.setattr("instep_agent.rank_record.writer.os.getpid", lambda: 1)
    writer.finish_step(1, 1.0)
    writer.heartbeat(5, 0, Phase.data)
    assert writer.path.read_bytes() == before


def test_writes_after_close_do_nothing(tmp_path):
    writer = new_writer(tmp_path)
    writer.close()
    before = writer.path.read_bytes()
    writer.heartbeat(3, 0, Phase.data)
    writer.close()
    assert writer.path.read_bytes() == before


def test_another_process_reads_while_the_writer_writes(tmp_path):
    """No reading is ever a mixture: step, micro step and CPU time of each heartbeat are equal by construction."""
    writer = new_writer(tmp_path)
    stop = multiprocessing.get_context("fork").Event()
    reader = multiprocessing.get_context("fork").Process(target=_check_heartbeats, args=(writer.path, stop))
    reader.start()
    deadline = time.monotonic() + 1.0
    number = 0
    while time.monotonic() < deadline:
        number += 1
        writer.heartbeat(number, number, Phase.data, cpu_ns=number)
    stop.set()
    reader.join(20)
    assert reader.exitcode == 0


def _check_heartbeats(path, stop):
    with RecordReader(path) as reader:
        while not stop.is_set():
            beat = reader.read().heartbeat
            if beat.step and not beat.step == beat.micro_step == beat.cpu_ns:
                os._exit(1)
    os._exit(0)


def test_a_reused_process_number_is_gone(tmp_path):
    writer = new_writer(tmp_path)
    stat = tmp_path / "proc" / str(os.getpid()) / "stat"
    stat.parent.mkdir(parents=True)
    stat.write_text(f"{os.getpid()} (a) b) S " + " ".join(["1"] * 40))
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").write_text("")
    record = read_record(writer.path)
    looking = {
        "now_monotonic_ns": time.monotonic_ns(),
        "boot_id": record.header.anchor.boot_id,
        "proc": tmp_path / "proc",
    }
    said = report(record, **looking)
    assert said.process_state == "unknown", "another pid namespace says nothing"
    os.unlink(tmp_path / "proc/self/ns/pid")
    os.symlink("/proc/self/ns/pid", tmp_path / "proc/self/ns/pid")
    said = report(record, **looking)
    assert said.process_state == "gone"


@given(members=st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_member_runs_round_trip(members):
    assert from_runs(to_runs(members), len(members)) == tuple(members)


@given(st.text("0123456789-:,x ", max_size=40), st.integers(-1, 20))
def test_member_runs_of_any_text_give_the_stated_number_or_nothing(text, size):
    members = from_runs(text, size)
    assert members is None or len(members) == size


_seconds = st.floats(0, 1e6)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_history_reads_back(tmp_path_factory, data):
    """Random interleavings of all writes, held against a plain model."""
    writer = new_writer(tmp_path_factory.mktemp("root"), groups=3, steps=4, collectives=4)
    groups = [writer.declare_group([0, n + 1], "g") for n in range(3)]
    entered, returned, completed, open_tokens, steps = [0] * 3, [0] * 3, [None] * 3, [], []
    for _ in range(data.draw(st.integers(0, 25))):
        action = data.draw(st.sampled_from(["enter", "return", "complete", "step", "beat"]))
        if action == "enter":
            g = data.draw(st.integers(0, 2))
            entered[g] += 1
            open_tokens.append((writer.enter(groups[g], entered[g], Op.send, g), g, entered[g]))
            open_tokens = open_tokens[-4:]
        elif action in ("return", "complete") and open_tokens:
            token, g, seq = data.draw(st.sampled_from(open_tokens))
            if action == "return":
                writer.returned(token)
                returned[g] = max(returned[g], seq)
            else:
                writer.completed(token, CompletedSource.event)
                completed[g] = max(completed[g] or 0, seq)
        elif action == "step":
            wall, wait = data.draw(_seconds), data.draw(_seconds)
            steps.append(wire.StepReport(step=len(steps), wall_seconds=wall, wait_seconds=wait))
            writer.finish_step(steps[-1].step, steps[-1].wall_seconds, wait_seconds=steps[-1].wait_seconds)
        else:
            writer.heartbeat(len(steps), 0, Phase.user)
    said = report_of(writer)
    assert [group.entered_seq for group in said.groups] == entered
    assert [group.returned_seq for group in said.groups] == returned
    assert [group.completed_seq for group in said.groups] == completed
    assert said.steps == tuple(steps[-4:])


def test_not_a_number_is_not_observed(tmp_path):
    writer = new_writer(tmp_path)
    writer.finish_step(1, 1.0, cpu_seconds=-1.0, starved_seconds=math.inf, tokens=-5)
    writer.finish_step(2, math.nan)
    assert report_of(writer).steps == (wire.StepReport(step=1, wall_seconds=1.0),)


def test_a_process_that_is_looked_at_again_and_again_is_seen_to_stop_and_to_end():
    with subprocess.Popen(["sleep", "60"]) as child:
        with Process(child.pid, start_ticks(child.pid)) as process:
            assert process.look().state in ("running", "sleeping", "uninterruptible")
            child.send_signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            assert process.look().state == "stopped"
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert process.look().state == "zombie"
            child.wait()
            assert process.look().state == "gone"
        with Process(child.pid, 1) as process:
            assert process.look().state == "gone"
