"""Sources in child processes: a driver that hangs or crashes costs its own source a turn, and nobody else anything."""

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from fake_accelerator import FakeAccelerator, RememberingAccelerator, WatchingAccelerator
from instep_agent.running import child, isolation
from instep_agent.running.notes import Notes
from instep_agent.running.runner import Runner
from made_nodes import Clock, node_at

LONG_SECONDS = 20.0


class Agent:
    """A runner whose clock stands still while real children work."""

    def __init__(self, tmp_path, *sources):
        self.clock, self.frames, self.dictionaries = Clock(), [], []
        self.runner = Runner(
            node_at(tmp_path, self.clock), sources, self._deliver, clock_seconds=lambda: self.clock.seconds
        )

    def _deliver(self, frame, dictionary):
        self.frames.append(frame)
        self.dictionaries.append(dictionary)

    def after(self, seconds):
        self.clock.seconds += seconds
        self.runner.run_due()

    def until(self, condition):
        """Let children work, the agent's clock standing still, until it holds."""
        deadline = time.monotonic() + LONG_SECONDS
        while not condition():
            assert time.monotonic() < deadline, [(one.name, one.outcome, one.detail) for one in self.runner.states]
            self.runner.wait(0.05)
            self.runner.run_due()

    def turns(self, name, count):
        self.until(lambda: self.state(name).turns_total >= count)

    def state(self, name):
        return next(one for one in self.runner.states if one.name == name)

    def events(self):
        return [(event.kind, event.fields.get("source", "")) for frame in self.frames for event in frame.events]

    def values(self):
        samples = self.runner.snapshot.samples
        return {sample.name: sample.value for sample in samples if sample.name.startswith("instep_fake")}


@pytest.fixture
def agent(tmp_path):
    made = []

    def make(*sources):
        made.append(Agent(tmp_path, *sources))
        return made[-1]

    yield make
    for one in made:
        one.runner.close()


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_gone(*pids):
    deadline = time.monotonic() + LONG_SECONDS
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.005)


@pytest.fixture
def many_files():
    """So many open files that those that follow have numbers that select() does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("A process may not open 4,096 files here.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1200)]
    yield
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_child_works_for_an_agent_that_holds_many_files_open(many_files, agent, tmp_path):
    it = agent(FakeAccelerator(tmp_path / "fake"))
    it.after(0)
    it.turns("fake_state", 1)
    it.after(1)
    it.turns("fake_state", 2)
    assert it.values()["instep_fake_turns_total"] == 2.0


def test_a_source_in_a_child_is_read_like_any_other(agent, tmp_path):
    source = FakeAccelerator(tmp_path / "fake")
    it = agent(source)
    it.after(0)
    it.turns("fake_state", 1)
    it.after(1)
    it.turns("fake_state", 2)
    it.after(1)
    assert it.values() == {"instep_fake_temperature_celsius": 41.0, "instep_fake_turns_total": 2.0}
    assert source.pid() not in (os.getpid(), it.runner.children._keeper_pid)
    assert source.turns == 0, "the agent's own copy was never asked"
    frame, dictionary = it.frames[-1], it.dictionaries[-1]
    column = dict(zip(dictionary.series, struct.unpack(f"<{len(dictionary.series)}d", frame.values), strict=True))
    assert column["instep_fake_temperature_celsius", (("device", "3"),)] == 41.0


@pytest.mark.parametrize("mode", ["absent", "failed"])
def test_what_a_source_says_in_a_child_keeps_its_meaning(agent, tmp_path, mode):
    source = FakeAccelerator(tmp_path / "fake")
    source.set("mode", mode)
    it = agent(source)
    it.after(0)
    it.turns("fake_state", 1)
    assert (it.state("fake_state").outcome, it.state("fake_state").detail) == (mode, f"The driver is {mode}.")
    assert it.events() == ([("source_failed", "fake_state")] if mode == "failed" else [])


def test_a_stuck_driver_is_named_with_its_call_and_its_child_is_killed(agent, tmp_path, caplog):
    stuck = FakeAccelerator(tmp_path / "fake")
    stuck.set("mode", "hang fake_state")
    beside = FakeAccelerator(tmp_path / "other", "other_state", "other")
    it = agent(stuck, beside)
    it.after(0)
    it.until(lambda: (tmp_path / "fake/fake_state.pid").exists())
    it.turns("other_state", 1)
    it.after(stuck.deadline_seconds)
    it.turns("other_state", 2)
    assert it.state("fake_state").outcome == "", "its first turn may take longer: the driver loads"
    it.until(lambda: it.runner.children._children["fake"].progress.read()[1] == "fakeDeviceGetTemperature device 3")
    it.after(isolation.START_GRACE_SECONDS)
    (event,) = [event for frame in it.frames for event in frame.events]
    assert event.kind == "source_stuck"
    assert {key: event.fields[key] for key in ("source", "child", "call", "ending")} == {
        "source": "fake_state",
        "child": "fake",
        "call": "fakeDeviceGetTemperature device 3",
        "ending": "deadline",
    }
    assert "fakeDeviceGetTemperature device 3" in event.text
    assert it.state("fake_state").outcome == "stuck"
    assert it.state("other_state").outcome == "ok"
    wait_gone(stuck.pid())


def test_a_stuck_source_comes_back_and_says_so(agent, tmp_path, caplog):
    source = FakeAccelerator(tmp_path / "fake")
    source.set("mode", "hang fake_state")
    it = agent(source)
    it.after(0)
    it.until(lambda: (tmp_path / "fake/fake_state.pid").exists())
    it.after(10)
    assert it.values() == {}, "what a stuck driver said before is not shown as if it were now"
    source.set("mode", "fine")
    it.after(1)
    it.turns("fake_state", 1)
    assert it.events() == [("source_stuck", "fake_state"), ("source_recovered", "fake_state")]
    assert it.state("fake_state").failures_total == it.state("fake_state").deadline_misses_total == 1


def test_a_driver_that_stays_stuck_is_asked_ever_less_often_and_said_once(agent, tmp_path, caplog):
    source = FakeAccelerator(tmp_path / "fake")
    source.set("mode", "hang fake_state")
    it = agent(source)
    started = []
    for losses in range(9):
        it.after(1)
        while it.runner.children.starts["fake"] == losses:
            it.after(1)
        started.append(it.clock.seconds)
        child = it.runner.children._children["fake"]
        it.until(lambda child=child: child.pid)
        it.after(isolation.START_GRACE_SECONDS + source.deadline_seconds)
        it.until(lambda: it.runner.children.unkillable["fake"] == 0)
    waits = [later - earlier - 8 for earlier, later in pairwise(started)]
    assert waits[:6] == pytest.approx([0, 1, 3, 7, 15, 31], abs=1.01)
    assert waits[6:] == pytest.approx([59, 59], abs=1.01)
    assert it.events() == [("source_stuck", "fake_state")]


def test_a_driver_that_crashes_is_the_same_finding_with_its_signal(agent, tmp_path, caplog):
    source = FakeAccelerator(tmp_path / "fake")
    source.set("mode", "crash fake_state")
    it = agent(source)
    it.after(0)
    it.until(lambda: it.state("fake_state").outcome)
    (event,) = [event for frame in it.frames for event in frame.events]
    assert (event.kind, event.fields["ending"]) == ("source_stuck", "SIGSEGV")
    assert event.fields["call"] == "fakeDeviceGetTemperature device 3"
    source.set("mode", "fine")
    it.after(1)
    it.turns("fake_state", 1)
    assert it.events()[1] == ("source_recovered", "fake_state")


def test_sources_of_one_child_are_asked_together_and_answer_one_after_the_other(agent, tmp_path):
    sources = [FakeAccelerator(tmp_path / name, name) for name in ("fake_state", "fake_health")]
    it = agent(*sources)
    it.after(0)
    it.turns("fake_health", 1)
    it.after(1)
    assert list(it.runner.children._children["fake"].asked) == ["fake_state", "fake_health"]
    it.turns("fake_health", 2)
    assert it.state("fake_state").turns_total == 2
    assert sources[0].pid() == sources[1].pid()


def test_sources_of_one_child_go_on_while_one_of_them_is_held_back(agent, tmp_path, caplog):
    bad = FakeAccelerator(tmp_path / "fake", "bad")
    good = FakeAccelerator(tmp_path / "fake", "good")
    bad.set("mode", "crash bad")
    it = agent(bad, good)
    it.after(0)
    it.until(lambda: it.state("bad").outcome == "stuck")
    for _ in range(8):
        it.after(1)
        it.until(lambda: not it.runner.children._children["fake"].asked)
    assert it.state("good").turns_total >= 4, "all but those in the second after each crash"
    assert (it.state("good").outcome, it.state("bad").outcome) == ("ok", "stuck")
    assert it.events() == [("source_stuck", "bad")]


def test_what_a_driver_calls_out_arrives_without_being_asked_for(agent, tmp_path):
    source = WatchingAccelerator(tmp_path / "fake")
    it = agent(source)
    it.after(0)
    it.turns("fake_state", 1)
    source.set("call", "Xid 79")
    it.until(lambda: ("fake_event", "") in it.events())
    assert it.state("fake_state").turns_total == 1, "the clock stood still: nobody asked"
    assert it.values()["instep_fake_temperature_celsius"] == 41.0


def test_a_child_whose_source_rests_no_more_listens_again_at_its_interval(monkeypatch):
    ours, its = socket.socketpair()
    with ours, its:
        monkeypatch.setattr(child.time, "monotonic", lambda: 100.0)
        requests = child._Requests(its)
        ours.send(b"calm 104.000\nbusy 104.000\n")
        for name, moment_seconds in (("calm", 102.0), ("busy", 101.0)):
            assert requests.next(0.0) == name
            requests.expect(name, moment_seconds)
        assert requests.free_seconds() == pytest.approx(1.0)
        monkeypatch.setattr(child.time, "monotonic", lambda: 101.5)
        assert requests.free_seconds() == pytest.approx(0.5)  # what is overdue is no cause to look again and again
        monkeypatch.setattr(child.time, "monotonic", lambda: 105.0)
        assert requests.free_seconds() == 0.0


def test_a_driver_that_crashes_between_two_turns_is_named_too(agent, tmp_path, caplog):
    source = WatchingAccelerator(tmp_path / "fake")
    it = agent(source)
    it.after(0)
    it.turns("fake_state", 1)
    source.set("call", "crash")
    it.until(lambda: it.state("fake_state").outcome == "stuck")
    (event,) = [event for frame in it.frames for event in frame.events]
    assert (event.fields["ending"], event.fields["call"]) == ("SIGABRT", "fakeEventSetWait")


def test_no_third_process_is_started_beside_two_that_cannot_be_killed(agent, tmp_path, monkeypatch, caplog):
    source = FakeAccelerator(tmp_path / "fake")
    source.set("mode", "hang fake_state")
    monkeypatch.setattr("instep_agent.running.child.Keeper.kill", lambda *_: None)  # the kernel does not let go of them
    it = agent(source)
    child = it.runner.children._children["fake"]
    for _ in range(60):
        it.after(1)
        it.until(lambda: not child.is_running or (child.pid and child.progress.read()[1]))
    assert it.runner.children.starts["fake"] == 2
    assert it.events() == [("source_stuck", "fake_state"), ("child_unkillable", "")]
    assert "2 processes of child fake cannot be killed" in it.state("fake_state").detail
    source.set("mode", "fine")
    os.kill(source.pid(), signal.SIGKILL)
    wait_gone(source.pid())
    it.until(lambda: it.runner.children.unkillable["fake"] == 1)
    it.after(1)
    it.turns("fake_state", 1)
    assert it.events()[2:] == [("source_recovered", "fake_state")]


def test_an_agent_that_holds_many_files_open_has_children_all_the_same(agent, tmp_path):
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, min(most, 4096)), most))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        it = agent(FakeAccelerator(tmp_path / "fake"))
        it.after(0)
        it.turns("fake_state", 1)
        assert it.values()["instep_fake_temperature_celsius"] == 41.0
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def test_a_keeper_that_is_killed_is_replaced(agent, tmp_path, caplog):
    source = FakeAccelerator(tmp_path / "fake")
    it = agent(source)
    it.after(0)
    it.turns("fake_state", 1)
    first = source.pid()
    os.kill(it.runner.children._keeper_pid, signal.SIGKILL)
    it.until(lambda: it.events() == [("child_lost", "")])
    wait_gone(first)
    it.after(1)
    it.turns("fake_state", 2)
    assert source.pid() != first


def test_where_the_agent_is_the_first_process_it_reaps_what_a_killed_keeper_leaves(tmp_path):
    """As in a container, where orphans become children of process 1."""
    program = f"""
import sys, pathlib, os, ctypes, signal
sys.path.insert(0, {str(Path(__file__).parent)!r})
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
from fake_accelerator import FakeAccelerator
from instep_agent.node import Node
from instep_agent.running.runner import Runner
source = FakeAccelerator(pathlib.Path({str(tmp_path)!r}) / "fake")
runner = Runner(Node("n"), [source], lambda *_: None)
first = 0
while runner.states[0].turns_total < 3:
    if runner.states[0].turns_total == 1 and not first:
        first = source.pid()
        os.kill(runner.children._keeper_pid, signal.SIGKILL)
    runner.wait(min(0.1, runner.run_due()))
print(pathlib.Path(f"/proc/{{first}}").exists())
runner.close()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.stdout == "False\n", run.stderr


def test_closing_leaves_no_process_and_no_descriptor_behind(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    source = FakeAccelerator(tmp_path / "fake")
    it = Agent(tmp_path, source)
    it.after(0)
    it.turns("fake_state", 1)
    keeper = it.runner.children._keeper_pid
    it.runner.close()
    assert is_gone(source.pid())
    assert not Path(f"/proc/{keeper}").exists(), "not even a zombie"
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_killed_agent_leaves_no_process_behind(tmp_path):
    program = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_accelerator import FakeAccelerator
from instep_agent.node import Node
from instep_agent.running.runner import Runner
runner = Runner(Node("n"), [FakeAccelerator(pathlib.Path({str(tmp_path)!r}) / "fake")], lambda *_: None)
while runner.states[0].turns_total < 1:
    runner.wait(min(0.1, runner.run_due()))
print(runner.children._keeper_pid, flush=True)
runner.wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        keeper = int(process.stdout.readline())
        child = int((tmp_path / "fake/fake_state.pid").read_text())
        process.kill()
    wait_gone(keeper, child)


def test_a_process_whose_sources_hand_on_what_they_know_ends_between_rare_turns(agent, tmp_path):
    source = RememberingAccelerator(tmp_path / "fake")
    it = agent(source)
    it.after(0)
    it.turns("fake_state", 1)
    first = source.pid()
    it.until(lambda: is_gone(first))
    it.after(source.interval_seconds)
    it.turns("fake_state", 2)
    assert source.pid() != first
    assert it.values()["instep_fake_turns_total"] == 2.0, "the second process knows of the first one's turn"
    assert it.events() == []
    assert it.runner.children.starts == {"fake": 1}
    assert it.runner.children.unkillable == {"fake": 0}


def test_a_process_that_only_itself_knows_something_lives_on(agent, tmp_path):
    source = RememberingAccelerator(tmp_path / "fake")
    source.set("temperature", "99")
    it = agent(source)
    for turns in (1, 2):
        it.after(source.interval_seconds)
        it.turns("fake_state", turns)
    it.after(source.interval_seconds / 2)
    assert not is_gone(source.pid())
    assert it.runner.children._children["fake"].starts_total == 1


def test_a_stuck_turn_of_a_process_that_had_rested_is_found_as_any_other(agent, tmp_path, caplog):
    source = RememberingAccelerator(tmp_path / "fake")
    it = agent(source)
    it.after(0)
    it.turns("fake_state", 1)
    first = source.pid()
    it.until(lambda: is_gone(first))
    source.set("mode", "hang fake_state")
    it.after(source.interval_seconds)
    it.until(lambda: source.pid() != first)
    it.after(source.deadline_seconds)
    assert it.events() == [("source_stuck", "fake_state")]
    wait_gone(source.pid())


def test_notes_that_were_being_written_when_their_process_died_are_left_alone(tmp_path):
    source, notes = RememberingAccelerator(tmp_path / "fake"), Notes()
    source.turns = 7
    notes.write([source])
    assert notes.may_end
    notes._page[-1] = notes._page[14] = 255
    source.turns = 0
    notes.recall([source])
    assert source.turns == 0


def test_without_sources_in_children_there_is_no_further_process(agent, tmp_path):
    source = FakeAccelerator(tmp_path / "fake", child="")
    it = agent(source)
    it.after(0)
    assert it.runner.children._keeper_pid == 0
    assert source.pid() == os.getpid()
