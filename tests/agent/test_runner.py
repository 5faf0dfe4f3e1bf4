"""The loop: who is asked when, what a failure does, and what leaves at once."""

import math
import os
import struct
import threading
from itertools import pairwise

import pytest
from instep_agent.errors import Absent, SourceFailed
from instep_agent.metric import gauge
from instep_agent.node import Fact
from instep_agent.running.repeating import Repeating
from instep_agent.running.runner import Runner
from instep_agent.uplink.frames import SERIES_MAX
from instep_agent.wire import GpuReport, RankReport, Sample, StepReport
from made_nodes import Clock, node_at


class Scripted:
    """A source that yields or raises what it is told."""

    deadline_seconds, child = 1.0, ""
    metrics = (gauge("x_bytes", "What these tests measure."),)

    def __init__(self, name, interval_seconds=1.0, *says):
        self.name, self.interval_seconds, self.says, self.asked = name, interval_seconds, list(says), 0

    def collect(self, node):
        self.asked += 1
        for said in self.says:
            if isinstance(said, Exception):
                raise said
            yield said


class Agent:
    """A runner on a clock that stands still."""

    def __init__(self, tmp_path, *sources, **intervals):
        self.clock, self.frames, self.dictionaries = Clock(), [], []
        self.runner = Runner(
            node_at(tmp_path, self.clock),
            sources,
            self._deliver,
            **intervals,
            cluster="c",
            clock_seconds=lambda: self.clock.seconds,
        )

    def _deliver(self, frame, dictionary):
        self.frames.append(frame)
        self.dictionaries.append(dictionary)

    def after(self, seconds):
        self.clock.seconds += seconds
        return self.runner.run_due()

    def values(self, at=-1):
        frame, dictionary = self.frames[at], self.dictionaries[at]
        assert frame.dictionary_hash == dictionary.hash
        return dict(zip(dictionary.series, struct.unpack(f"<{len(dictionary.series)}d", frame.values), strict=True))


def fact(text):
    return Fact("kernel_line", text, 9_999_000_000_000, 1)


def test_asks_each_source_at_its_own_interval(tmp_path):
    fast, slow = Scripted("fast", 0.5), Scripted("slow", 2.0)
    agent = Agent(tmp_path, fast, slow)
    for _ in range(8):
        agent.after(0.5)
    assert (fast.asked, slow.asked) == (8, 2)


def test_what_was_late_is_due_together_with_the_others_again(tmp_path):
    sources = [Scripted("fast", 0.5), Scripted("even", 1.0), Scripted("slow", 10.0)]
    agent = Agent(tmp_path, *sources)
    agent.clock.seconds = 100.0
    agent.runner.run_due()
    for seconds in (0.3, 0.27, 0.5):  # at 0.57 the fast one is late, at 1.07 the even one is too
        agent.after(seconds)
    assert {state.name: round(state.next_due_seconds, 6) for state in agent.runner.states} == {
        "fast": 101.5,
        "even": 102.0,
        "slow": 110.0,
    }
    agent.after(17.93)  # nobody was asked for long: the slow one waits half its interval at least
    assert agent.runner.states[2].next_due_seconds == pytest.approx(130.0)


def test_a_source_that_will_have_nothing_new_is_left_alone_so_long(tmp_path):
    source = Scripted("calm", 0.5)
    agent = Agent(tmp_path, source)
    source.rest_seconds = 2.0
    for _ in range(8):
        agent.after(0.5)
    assert source.asked == 2
    source.rest_seconds = 0.0
    for _ in range(8):
        agent.after(0.5)
    assert source.asked == 2 + 8


def test_those_that_rest_equally_long_rest_together(tmp_path):
    sources = [Scripted(f"source{at}", interval) for at, interval in enumerate((1.0, 1.0, 10.0))]
    agent = Agent(tmp_path, *sources)
    agent.runner.run_due()
    agent.after(1.0)
    for source, rest in zip(sources, (2.0, 3.0, 25.0), strict=True):
        source.rest_seconds = rest
    for _ in range(29):
        agent.after(1.0)
    dues = [state.next_due_seconds - agent.runner.states[0].asked_at_seconds for state in agent.runner.states]
    assert [source.asked for source in sources] == [17, 12, 2]
    assert dues == pytest.approx([2.0, 3.0, 20.0])


def test_a_frame_with_nothing_new_is_made_once_a_second(tmp_path):
    agent = Agent(tmp_path, Scripted("slow", 10.0), interval_seconds=0.25, values_interval_seconds=5.0)
    for _ in range(16):
        agent.after(0.25)
    assert len(agent.frames) == 4


def test_tells_how_long_it_may_sleep(tmp_path):
    assert Agent(tmp_path, Scripted("a", 0.3), Scripted("b", 2.0)).after(0) == pytest.approx(0.3)


def test_a_fact_leaves_at_once_and_everything_else_at_the_tick(tmp_path):
    source = Scripted("kernel_log", 0.1)
    agent = Agent(tmp_path, source, interval_seconds=10.0)
    agent.after(0)
    agent.after(0.1)
    assert len(agent.frames) == 1
    source.says = [fact("NVRM: Xid")]
    agent.after(0.1)
    (event,) = agent.frames[1].events
    assert (event.text, event.age_seconds) == ("NVRM: Xid", pytest.approx(1.2))
    assert [frame.sequence for frame in agent.frames] == [1, 2]


def test_a_failing_source_is_counted_and_the_next_one_is_asked(tmp_path, caplog):
    agent = Agent(
        tmp_path,
        Scripted("bad", 1.0, ZeroDivisionError("boom")),
        Scripted("good", 1.0, Sample(name="x_bytes", labels=(), value=3.0)),
    )
    agent.after(0)
    agent.after(1)
    values = agent.values()
    assert values["x_bytes", ()] == 3.0
    assert values["instep_agent_source_success", (("source", "bad"),)] == 0.0
    assert values["instep_agent_source_success", (("source", "good"),)] == 1.0
    assert values["instep_agent_source_failures_total", (("source", "bad"),)] == 2.0
    assert values["instep_agent_source_duration_seconds", (("source", "good"),)] >= 0.0
    assert "Traceback" in caplog.text


def test_a_failure_is_an_event_when_it_begins_and_again_after_a_recovery(tmp_path, caplog):
    source = Scripted("host", 1.0, SourceFailed("Cannot read it."))
    agent = Agent(tmp_path, source)
    agent.after(0)
    agent.after(1)
    source.says = []
    agent.after(1)
    source.says = [SourceFailed("Cannot read it.")]
    agent.after(1)
    events = [[(event.kind, event.text, event.fields) for event in frame.events] for frame in agent.frames]
    failed = [("source_failed", "Cannot read it.", {"source": "host"})]
    recovered = [("source_recovered", "Source host answers again.", {"source": "host"})]
    assert events == [failed, [], recovered, failed]


def test_what_a_source_said_before_it_failed_is_kept(tmp_path, caplog):
    agent = Agent(tmp_path, Scripted("kernel_log", 1.0, fact("NVRM: first"), OSError("gone")))
    agent.after(0)
    assert [event.kind for event in agent.frames[0].events] == ["source_failed", "kernel_line"]


def test_an_absent_source_is_no_failure_and_is_asked_less_often(tmp_path):
    source = Scripted("kernel_log", 0.1, Absent("There is none."))
    agent = Agent(tmp_path, source)
    for _ in range(11):
        agent.after(0.1)
    assert source.asked == 2
    assert agent.frames[0].events == ()
    assert ("instep_agent_source_success", (("source", "kernel_log"),)) not in agent.values()


def test_steps_read_between_two_frames_are_all_in_the_next(tmp_path):
    def rank(*steps):
        return RankReport(
            job="j",
            run="r",
            attempt=0,
            rank=0,
            local_rank=0,
            world_size=1,
            pid=1,
            node="node-a",
            step=max(steps),
            steps=tuple(StepReport(step=step, wall_seconds=0.1) for step in steps),
        )

    source = Scripted("rank_records", 0.5, rank(1))
    agent = Agent(tmp_path, source)
    agent.after(0)
    source.says = [rank(2, 3)]
    agent.after(0.5)
    source.says = [rank(4)]
    agent.after(0.5)
    assert [[step.step for step in frame.ranks[0].steps] for frame in agent.frames] == [[1], [2, 3, 4]]
    assert agent.runner.snapshot.ranks[0].step == 4


def test_after_a_hold_up_values_and_ranks_are_in_one_frame_again(tmp_path):
    rank = RankReport(job="j", run="r", attempt=0, rank=0, local_rank=0, world_size=1, pid=1, node="node-a", step=1)
    source = Scripted("rank_records", 0.5, rank)
    source.rest_seconds = 1.0
    agent = Agent(tmp_path, source, interval_seconds=0.5, values_interval_seconds=1.0)
    for seconds in (0.0, 1.0, 1.5, 0.5):
        agent.after(seconds)
    agent.frames.clear()
    for _ in range(8):
        agent.after(0.5)
    assert [(bool(frame.values), len(frame.ranks)) for frame in agent.frames] == [(True, 1)] * 4


def test_gpus_are_told_apart_from_not_looked_at(tmp_path):
    gpu = GpuReport(index=0, uuid="GPU-1", pci="0000:3b:00")
    source = Scripted("gpu_inventory", 10.0, gpu)
    agent = Agent(tmp_path, source)
    agent.after(0)
    agent.after(1)
    source.says = []
    agent.after(10)
    assert [frame.gpus for frame in agent.frames] == [(gpu,), None, ()]


def test_series_are_bounded(tmp_path):
    many = [Sample(name="x_bytes", labels=(("n", str(n)),), value=0.0) for n in range(SERIES_MAX + 10)]
    agent = Agent(tmp_path, Scripted("wide", 1.0, *many))
    agent.after(0)
    assert len(agent.dictionaries[0].series) == SERIES_MAX


def test_a_sample_that_its_source_does_not_state_is_dropped_and_said_once(tmp_path, caplog):
    agent = Agent(tmp_path, Scripted("a", 1.0, Sample(name="y_bytes", labels=(), value=3.0)))
    agent.after(0)
    agent.after(1)
    assert ("y_bytes", ()) not in agent.values()
    assert caplog.text.count("does not state the metric y_bytes") == 1


def test_a_slow_source_is_no_new_reading_in_every_frame_and_keeps_its_place(tmp_path):
    slow = Scripted("slow", 3.0, Sample(name="x_bytes", labels=(), value=3.0))
    agent = Agent(tmp_path, slow)
    for _ in range(4):
        agent.after(1)
    shown = [agent.values(at)["x_bytes", ()] for at in range(4)]
    assert (shown[0], shown[3]) == (3.0, 3.0)
    assert all(map(math.isnan, shown[1:3]))
    assert len({dictionary.hash for dictionary in agent.dictionaries}) == 1
    assert agent.runner.snapshot.samples[0].value == 3.0, "the page shows the last reading"


def test_a_failed_source_leaves_nothing_old_behind(tmp_path, caplog):
    source = Scripted("a", 1.0, Sample(name="x_bytes", labels=(), value=3.0))
    agent = Agent(tmp_path, source)
    agent.after(0)
    source.says = [SourceFailed("Cannot read it.")]
    agent.after(1)
    assert math.isnan(agent.values()["x_bytes", ()])
    assert "x_bytes" not in {sample.name for sample in agent.runner.snapshot.samples}


def test_the_three_outcomes_are_three_states(tmp_path, caplog):
    says = {"fine": [], "absent": [Absent("No.")], "failed": [SourceFailed("No.")]}
    agent = Agent(tmp_path, *[Scripted(name, 1.0, *said) for name, said in says.items()])
    agent.after(0)
    values = agent.values()
    found = {name: values["instep_agent_source_state", (("source", name),)] for name in says}
    assert found == {"fine": 0.0, "absent": 1.0, "failed": 2.0}


class Slow(Scripted):
    """A source in the agent's own thread that takes `takes_seconds` of the agent's clock."""

    takes_seconds, agent, meanwhile = 0.0, None, None

    def collect(self, node):
        self.agent.clock.seconds += self.takes_seconds
        if self.meanwhile:
            self.meanwhile()
        return super().collect(node)


def test_a_source_that_does_not_come_back_is_said_while_it_lasts(tmp_path, caplog):
    slow = Slow("disk", 1.0)
    agent = slow.agent = Agent(tmp_path, slow)
    slow.takes_seconds = 4.0
    seen = []

    def look():
        for _ in range(2):
            agent.runner.check_overdue()
        seen.extend(event.kind for frame in agent.frames for event in frame.events)
        samples = {(one.name, one.labels): one.value for one in agent.runner.snapshot.samples}
        assert samples["instep_agent_source_success", (("source", "disk"),)] == 0.0

    slow.meanwhile = look
    agent.after(0)
    assert seen == ["source_slow"], "before it came back, and once"
    slow.takes_seconds, slow.meanwhile = 0.0, None
    agent.after(1)
    assert [event.kind for frame in agent.frames for event in frame.events][-1] == "source_recovered"


def test_the_watchdog_looks_until_it_is_closed():
    looked = threading.Semaphore(0)
    watchdog = Repeating("watchdog", looked.release, interval_seconds=0.001)
    watchdog.start()
    assert looked.acquire(timeout=20)
    assert looked.acquire(timeout=20)
    watchdog.close(20)
    assert not watchdog._thread.is_alive()


def test_a_source_within_its_deadline_is_not_slow(tmp_path):
    slow = Slow("disk", 1.0)
    agent = slow.agent = Agent(tmp_path, slow)
    slow.takes_seconds, slow.meanwhile = 0.9, agent.runner.check_overdue
    agent.after(0)
    agent.after(1)
    assert [event for frame in agent.frames for event in frame.events] == []


def test_slow_sources_hold_the_kernel_log_up_by_one_of_them_at_most(tmp_path):
    log = Scripted("kernel_log", 0.1)
    others = [Slow(f"slow-{n}", 10.0) for n in range(5)]
    agent = Agent(tmp_path, log, *others)
    asked_at = []

    def asked(node, collect=log.collect):
        asked_at.append(agent.clock.seconds)
        return collect(node)

    log.collect = asked
    for one in others:
        one.agent, one.takes_seconds = agent, 0.3
    agent.after(0)
    waits = [later - earlier for earlier, later in pairwise(asked_at)]
    assert len(asked_at) == 6
    assert max(waits) == pytest.approx(0.3), "the longest turn, not the sum of them"


def test_a_fact_does_not_wait_for_slow_sources(tmp_path):
    slow = Slow("slow", 10.0)
    agent = slow.agent = Agent(tmp_path, Scripted("kernel_log", 0.1, fact("NVRM: Xid")), slow, Slow("slower", 10.0))
    agent.runner.states[2].source.agent = agent
    slow.takes_seconds = 0.3
    seen = []
    agent.runner.states[2].source.meanwhile = lambda: seen.extend(agent.frames)
    agent.after(0)
    assert [event.text for frame in seen for event in frame.events][:1] == ["NVRM: Xid"]
    assert seen[0].values == b"", "values wait for the tick"


class Woken(Scripted):
    """A source with a descriptor of its own."""

    def __init__(self, name, interval_seconds, descriptor):
        super().__init__(name, interval_seconds)
        self.descriptor = descriptor

    def wake_descriptor(self):
        return self.descriptor


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_source_is_asked_at_once_when_its_descriptor_wakes_the_loop_and_rarely_otherwise(tmp_path, pipe):
    source = Woken("kernel_log", 0.1, pipe[0])
    agent = Agent(tmp_path, source)
    for _ in range(10):
        agent.after(0.1)
    assert source.asked == 1, "nothing woke it"
    os.write(pipe[1], b"x")
    agent.runner.wait(20)
    agent.after(0)
    assert source.asked == 2


def test_a_descriptor_that_is_always_ready_does_not_make_the_loop_spin(tmp_path, pipe):
    os.write(pipe[1], b"x")
    source = Woken("kernel_log", 0.1, pipe[0])
    agent = Agent(tmp_path, source)
    agent.after(0)
    for _ in range(5):
        agent.runner.wait(0)
        agent.after(0.04)
    assert source.asked <= 3, "no more often than its interval"


def test_a_kernel_record_keeps_its_id_over_a_restart_of_the_agent(tmp_path):
    said = Fact("kernel_line", "NVRM: Xid", 1, 1, identity="kmsg-7")
    ids = []
    for _ in range(2):
        agent = Agent(tmp_path, Scripted("kernel_log", 1.0, said, fact("other")))
        agent.after(0)
        ids.append([event.id for event in agent.frames[0].events])
    assert ids[0][0] == ids[1][0]
    assert ids[0][1] != ids[1][1]
