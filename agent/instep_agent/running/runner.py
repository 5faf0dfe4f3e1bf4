"""The agent's loop: asks each source when it is due, reports how it went, and makes a frame of what it said."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instep_agent.columns import NO_SAMPLES, Column, Series, column_of
from instep_agent.drills import DRILLS_FOLDER, Drills
from instep_agent.metric import counter, gauge
from instep_agent.node import Fact, Node, Source, wake_descriptor
from instep_agent.running.isolation import Blocked, Children, Loss, Report
from instep_agent.running.source_state import SOURCE_METRICS, SourceState, early_seconds
from instep_agent.turn import Turn, samples_of, spelled_out, take_turn
from instep_agent.uplink.frames import FrameBuilder, Tick
from instep_agent.wire import Dictionary, Frame, GpuReport, RankReport, Sample

ABSENT_RETRY_SECONDS = 1.0
"""A source without its hardware is asked no more often than this."""
FACTS_PER_FRAME_MAX = 1000
URGENT_SECONDS = 0.2
"""A source with an interval up to this is asked again between the others, so that none of them holds it up for long."""
WOKEN_SECONDS = 1.0
"""A source that wakes the loop itself is asked no more often than this when nothing woke it."""
FACT_WAIT_SECONDS = 0.05
"""A fact waits no longer than this for the other sources that are due at the same time."""
QUIET_FRAME_SECONDS = 1.0
"""A frame is made this often although there is nothing to say: the server knows by it that the node is there."""
STOP_CHECK_SECONDS = 1.0
LEAD_SECONDS = 0.1
"""Children are asked so long before a tick. Their answers are taken with it: one waking less for each."""

RUNNER_METRICS = (
    *SOURCE_METRICS,
    counter("instep_agent_child_starts_total", "Processes started for the sources of this child."),
    gauge("instep_agent_child_unkillable", "Processes of this child that were killed and do not end."),
    gauge("instep_agent_series_dropped", "Series that were not sent in the last frame, because there are too many."),
)

log = logging.getLogger("instep.agent")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the agent knows now, for whoever shows it."""

    columns: tuple[Column, ...] = ()
    ranks: tuple[RankReport, ...] = ()
    gpus: tuple[GpuReport, ...] = ()
    facts: tuple[Fact, ...] = ()
    made_at_seconds: float = 0.0
    """On the runner's clock."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The columns' samples, one by one."""
        return tuple(sample for column in self.columns for sample in column.samples())


class Runner:
    """Runs the sources of one node; `deliver` gets every frame with its dictionary. `close` it.

    Make it before the agent has threads: sources in children need a fork.
    """

    def __init__(
        self,
        node: Node,
        sources: Sequence[Source],
        deliver: Callable[[Frame, Dictionary], None],
        *,
        interval_seconds: float = 1.0,
        values_interval_seconds: float = 0.0,
        cluster: str = "",
        clock_seconds: Callable[[], float] = time.monotonic,
        also: Callable[[], Iterable[Sample]] = tuple,
        drills_folder: Path = Path(DRILLS_FOLDER),
    ) -> None:
        """A frame is made each `interval_seconds`, and has values each `values_interval_seconds`.

        `also` gives samples about the agent's other parts, once for each frame with values.
        """
        self._node = node
        self._deliver = deliver
        self._interval_seconds = interval_seconds
        self._clock_seconds = clock_seconds
        self._also = also
        self._drills = Drills(drills_folder)
        self._builder = FrameBuilder(node, cluster=cluster)
        self._values_interval_seconds = values_interval_seconds
        self._next_frame_seconds = self._next_values_seconds = self._quiet_until_seconds = 0.0
        self._began_seconds = 0.0
        self._tick = Tick()
        self._sending = threading.Lock()
        self._running: tuple[SourceState, float] | None = None
        self._blocked: set[str] = set()
        self.states = [SourceState(source) for source in sources]
        self._by_name = {state.name: state for state in self.states}
        self._waking = [state for state in self.states if hasattr(state.source, "wake_descriptor")]
        self._urgent = [state for state in self.states if state.source.interval_seconds <= URGENT_SECONDS]
        self.children = Children(node, sources)
        for state in self.states:
            state.lead_seconds = LEAD_SECONDS if self.children.has(state.name) else 0.0
        self._facts: tuple[Fact, ...] = ()
        self._made_at_seconds = 0.0
        self._about_series: tuple[Series, ...] = ()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self, stop: threading.Event) -> None:
        """Go on until `stop` is set; `wake` lets it look at once."""
        while not stop.is_set():
            self.wait(min(self.run_due(), STOP_CHECK_SECONDS))

    def wake(self) -> None:
        """Let `wait` come back at once; a signal handler and other threads may call it."""
        with contextlib.suppress(BlockingIOError):  # it is full of calls already
            os.write(self._wake, b"w")

    def wait(self, timeout_seconds: float) -> None:
        """Wait until a child has news, or a source's own descriptor; no longer than that.

        Children are not listened to shortly before something is due: they are heard then.
        A source that is due within its interval is not listened to: one whose descriptor is always ready, as that of a
        file is, then costs no more than one without.
        """
        now_seconds = self._clock_seconds()
        listened: dict[int, SourceState | None] = {self._woken: None}
        for state in self._waking:
            if state.next_due_seconds > state.asked_at_seconds + state.source.interval_seconds:
                listened[wake_descriptor(state.source)] = state
        listened.pop(-1, None)
        is_brief = timeout_seconds <= LEAD_SECONDS
        for descriptor in self.children.wait(timeout_seconds, tuple(listened), only=is_brief) & listened.keys():
            woken = listened[descriptor]
            if woken is None:
                os.read(self._woken, 4096)
            else:
                woken.next_due_seconds = max(now_seconds, woken.asked_at_seconds + woken.source.interval_seconds)

    def say_last_words(self) -> None:
        """Send what sources have counted and not said yet; once, when the agent stops."""
        for state in self.states:
            last_words = getattr(state.source, "last_words", None)
            if last_words is not None and not self.children.has(state.name):
                self._add_facts(tuple(last_words(self._node)))
        if self._tick.facts:
            self._send_frame(is_tick=False)

    def close(self) -> None:
        """End the children."""
        self.children.close()
        os.close(self._woken)
        os.close(self._wake)

    def run_due(self) -> float:
        """Ask the sources that are due, deliver a frame if there is cause to, and give the seconds until the next turn.

        A fact is a cause at once; everything else waits for the next tick.
        """
        now_seconds = self._clock_seconds()
        self._began_seconds = self._began_seconds or now_seconds
        self._hear(self.children.poll(now_seconds))
        for state in self.states:
            if state.is_due(self._clock_seconds()) and self._ask(state):
                for urgent in self._urgent:
                    if urgent is not state and urgent.is_due(self._clock_seconds()):
                        self._ask(urgent)
                if self._tick.facts and self._clock_seconds() - now_seconds > FACT_WAIT_SECONDS:
                    self._send_frame(is_tick=False)
        is_tick = self._frame_due_seconds() <= now_seconds + early_seconds(self._interval_seconds)
        if is_tick:
            self._next_frame_seconds = self._turn_after(now_seconds, self._interval_seconds)
            self._quiet_until_seconds = max(
                self._next_frame_seconds, self._turn_after(now_seconds, QUIET_FRAME_SECONDS)
            )
        if is_tick or self._tick.facts:
            self._send_frame(is_tick=is_tick)
        due_seconds = min(self.children.due_seconds(), *(one.next_due_seconds for one in self.states))
        return max(0.0, min(self._frame_due_seconds(), due_seconds) - self._clock_seconds())

    def _turn_after(self, now_seconds: float, interval_seconds: float, lead_seconds: float = 0.0) -> float:
        """Give the moment of the next turn after one that is taken now.

        One that comes late moves no later one; the next is half an interval away at least.
        """
        return self._turn_from(now_seconds + 0.5 * interval_seconds, interval_seconds, lead_seconds)

    def _rested_seconds(self, state: SourceState) -> float:
        """Give the first turn after a source's rest; those that rest equally long come together, if that is near."""
        if not state.rest_seconds:
            return 0.0
        rested_seconds = state.asked_at_seconds + state.rest_seconds
        alone_seconds, together_seconds = (
            self._turn_from(rested_seconds, interval_seconds, state.lead_seconds)
            for interval_seconds in (state.source.interval_seconds, state.rest_seconds)
        )
        is_near = together_seconds - alone_seconds <= 1.1 * state.source.interval_seconds
        return together_seconds if is_near else alone_seconds

    def _turn_from(self, moment_seconds: float, interval_seconds: float, lead_seconds: float = 0.0) -> float:
        """Give the first turn that is no earlier than a moment.

        Turns of one interval are at its multiples since the start, so that what is due at all is due together.
        """
        if interval_seconds <= 0.0:
            return moment_seconds
        since_seconds = moment_seconds - self._began_seconds + lead_seconds - early_seconds(interval_seconds)
        return self._began_seconds + math.ceil(since_seconds / interval_seconds) * interval_seconds - lead_seconds

    def _frame_due_seconds(self) -> float:
        """Give when the next frame is made; one with nothing in it but that the node is there is made more rarely."""
        if self._tick.ranks or self._tick.gpus is not None:
            return self._next_frame_seconds
        return max(self._next_frame_seconds, min(self._next_values_seconds, self._quiet_until_seconds))

    @property
    def snapshot(self) -> Snapshot:
        """What the agent knows now. Made when somebody looks, in whatever thread: most frames nobody looks at."""
        return Snapshot(
            columns=tuple(self._columns(self.states)),
            ranks=tuple(report for state in self.states for report in state.ranks),
            gpus=merged_gpus(self.states),
            facts=self._facts,
            made_at_seconds=self._made_at_seconds,
        )

    def check_overdue(self) -> None:
        """Say that the source that the loop waits for is over its deadline. Another thread than the loop's calls it."""
        running = self._running
        if running is None:
            return
        state, started_seconds = running
        waited_seconds = self._clock_seconds() - started_seconds
        if waited_seconds <= state.source.deadline_seconds or state.said_kind == "source_slow":
            return
        state.said_kind, state.outcome, state.column = "source_slow", "stuck", NO_SAMPLES
        state.duration_seconds = waited_seconds
        state.detail = self._slow_sentence(state)
        fact = self._fact("source_slow", state.detail, source=state.name)
        log.warning("%s", state.detail)
        with self._sending:
            self._note_frame([fact])
            self._deliver(self._builder.build(Tick(facts=[fact]), None), self._builder.dictionary)

    def _drill(self) -> None:
        """Begin and end drills; a source whose readings they change is asked at once, however rare its turns are."""
        before = self._drills.metrics if self._drills.is_active else set()
        facts = self._drills.look(self._node)
        if not facts and not self._drills.is_active:
            return
        self._add_facts(facts)
        for state in self.states if facts else ():
            if state.metric_names & (before | self._drills.metrics):
                state.next_due_seconds = 0.0
        self.children.pause(self._drills.stopped_children)

    def _ask(self, state: SourceState) -> bool:
        """Ask in the loop's own thread, or hand over to a child; give whether the loop itself was held up."""
        now_seconds = self._clock_seconds()
        state.asked_at_seconds = now_seconds
        interval_seconds = state.source.interval_seconds
        state.next_due_seconds = self._turn_after(now_seconds, interval_seconds, state.lead_seconds)
        if self.children.has(state.name):
            next_seconds = max(state.next_due_seconds, self._rested_seconds(state))  # it will rest as it did last time
            self.children.ask(state.name, now_seconds, next_seconds + state.early_seconds)
            return False
        self._running = state, now_seconds
        turn = take_turn(state.source, self._node)
        self._running = None
        if wake_descriptor(state.source) >= 0:
            state.next_due_seconds = self._turn_after(now_seconds, max(WOKEN_SECONDS, interval_seconds))
        self._drill()  # after the reading: what it shows of a drill that has just begun is marked
        self._take(state, turn)
        return True

    def _hear(self, reports: Sequence[Report]) -> None:
        self._drill()
        for report in reports:
            if isinstance(report, Turn):
                self._take(self._by_name[report.source], report)
            elif isinstance(report, Loss):
                self._hear_loss(report)
            else:
                self._hear_blocked(report)

    def _take(self, state: SourceState, turn: Turn) -> None:
        if self._drills.is_active:
            turn = self._drills.overlay(spelled_out(turn))
        column = state.stated(samples_of(turn, state.said))
        state.is_fresh = True
        if turn.is_push:
            old = state.column
            newest = dict(zip((*old.series, *column.series), (*old.values, *column.values), strict=True))
            state.column = Column(tuple(newest), tuple(newest.values()))
            self._add_facts(turn.facts)
            return
        state.turns_total += 1
        state.outcome, state.detail, state.duration_seconds = turn.outcome, turn.detail, turn.duration_seconds
        state.column, state.ranks, state.gpus = column, turn.ranks, turn.gpus
        for report in turn.ranks:
            self._tick.add_rank(report)
        if turn.gpus or (state.name == "gpu_inventory" and turn.outcome == "ok"):
            self._tick.gpus = merged_gpus(self.states)
        state.rest_seconds = turn.rest_seconds
        state.next_due_seconds = max(state.next_due_seconds, self._rested_seconds(state))
        if turn.outcome == "absent":
            retry_seconds = max(ABSENT_RETRY_SECONDS, state.source.interval_seconds)
            retry_seconds = self._turn_after(state.asked_at_seconds, retry_seconds, state.lead_seconds)
            state.next_due_seconds = max(state.next_due_seconds, retry_seconds)
        self._blocked.discard(getattr(state.source, "child", ""))
        self._judge(state)
        self._add_facts(turn.facts)

    def _judge(self, state: SourceState) -> None:
        """A failure is a fact of its own when it begins, and when it is over; while it lasts the metrics tell."""
        is_slow = state.duration_seconds > state.source.deadline_seconds
        state.deadline_misses_total += is_slow
        if state.outcome == "failed":
            state.failures_total += 1
            self._say(state, "source_failed", state.detail)
        elif is_slow:
            self._say(state, "source_slow", self._slow_sentence(state))
        elif state.said_kind:
            fact = self._fact("source_recovered", f"Source {state.name} answers again.", source=state.name)
            self._add_facts([replace(fact, is_drill=state.is_drill)])
            state.said_kind, state.is_drill = "", False

    def _slow_sentence(self, state: SourceState) -> str:
        return (
            f"Source {state.name} took {state.duration_seconds:.1f} s and more; its deadline is "
            f"{state.source.deadline_seconds:g} s. It runs in the agent's own thread and holds the other sources up."
        )

    def _hear_loss(self, loss: Loss) -> None:
        where = f"in {loss.call} for {loss.call_seconds:.1f} s" if loss.call else "in a call that it did not announce"
        how = "did not answer in time" if loss.ending == "deadline" else f"lost its process ({loss.ending})"
        if not loss.source:
            text = f"Child process {loss.child} ended between two turns ({loss.ending}); it is started again."
            log.warning("%s", text)
            self._add_facts([self._fact("child_lost", text, child=loss.child, ending=loss.ending)])
            return
        state = self._by_name[loss.source]
        state.outcome, state.column, state.is_fresh = "stuck", NO_SAMPLES, True
        state.failures_total += 1
        state.deadline_misses_total += loss.ending == "deadline"
        state.detail = f"Source {state.name} {how}: child process {loss.child} was {where}. It is started again."
        fields = {"child": loss.child, "call": loss.call, "seconds": f"{loss.call_seconds:.3f}"}
        self._say(state, "source_stuck", state.detail, ending=loss.ending, **fields)

    def _hear_blocked(self, blocked: Blocked) -> None:
        for name in blocked.sources:
            state = self._by_name[name]
            state.outcome, state.detail, state.column, state.is_fresh = "stuck", blocked.detail, NO_SAMPLES, True
            state.failures_total += 1
        if blocked.child not in self._blocked:
            self._blocked.add(blocked.child)
            log.warning("%s", blocked.detail)
            kind = "child_unkillable" if blocked.is_unkillable else "child_not_started"
            self._add_facts([self._fact(kind, blocked.detail, child=blocked.child)])

    def _say(self, state: SourceState, kind: str, text: str, **fields: str) -> None:
        if state.said_kind != kind:
            state.said_kind = kind
            log.warning("%s", text)
            fact = self._fact(kind, text, source=state.name, **fields)
            state.is_drill = fact.is_drill
            self._add_facts([fact])

    def _fact(self, kind: str, text: str, **fields: str) -> Fact:
        is_drill = self._drills.is_drill(kind, fields)
        return Fact(kind, text, self._node.monotonic_ns(), self._node.realtime_ns(), fields, is_drill)

    def _add_facts(self, facts: Sequence[Fact]) -> None:
        self._tick.facts += facts[: max(0, FACTS_PER_FRAME_MAX - len(self._tick.facts))]

    def _send_frame(self, *, is_tick: bool) -> None:
        """Send what is new. Between two ticks that is facts and ranks; values wait for the tick."""
        with self._sending:
            tick, self._tick = self._tick, Tick()
            columns: list[Column] | None = None
            now_seconds = self._clock_seconds()
            if is_tick and self._next_values_seconds <= now_seconds + early_seconds(self._values_interval_seconds):
                self._next_values_seconds = self._turn_after(now_seconds, self._values_interval_seconds)
                columns = list(self._columns(state for state in self.states if state.is_fresh))
                for state in self.states:
                    state.is_fresh = False
            self._note_frame(tick.facts)
            self._deliver(self._builder.build(tick, columns), self._builder.dictionary)

    def _note_frame(self, facts: Sequence[Fact]) -> None:
        self._made_at_seconds = self._clock_seconds()
        if facts:
            self._facts = (*self._facts, *facts)[-FACTS_PER_FRAME_MAX:]

    def _columns(self, states: Iterable[SourceState]) -> Iterator[Column]:
        """Yield what these sources said last, how they are doing, and what the agent says of itself."""
        for state in states:
            yield state.column
            yield state.about()
        about = column_of(self._about(), self._about_series)
        self._about_series = about.series
        yield about

    def _about(self) -> Iterator[Sample]:
        """Yield what the agent says of its children and its other parts."""
        for child, count in self.children.starts.items():
            yield Sample(name="instep_agent_child_starts_total", labels=(("child", child),), value=float(count))
        for child, count in self.children.unkillable.items():
            yield Sample(name="instep_agent_child_unkillable", labels=(("child", child),), value=float(count))
        yield Sample(name="instep_agent_series_dropped", labels=(), value=float(self._builder.series_dropped))
        yield from self._also()


def merged_gpus(states: Iterable[SourceState]) -> tuple[GpuReport, ...]:
    """Give every GPU once, by its address, as the first source that knows it describes it."""
    found: dict[str, GpuReport] = {}
    for state in states:
        for gpu in state.gpus:
            found.setdefault(gpu.pci, gpu)
    return tuple(found.values())
