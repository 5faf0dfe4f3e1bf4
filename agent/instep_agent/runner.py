"""The agent's loop: asks each source when it is due, reports how it went, and makes a frame of what it said."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from instep_agent.errors import Absent, AgentError
from instep_agent.frames import FrameBuilder, Tick
from instep_agent.node import Fact, Node, Reading, Source
from instep_agent.wire import Dictionary, Frame, GpuReport, RankReport, Sample

ABSENT_RETRY_SECONDS = 1.0
"""A source without its hardware is asked no more often than this."""
FACTS_PER_FRAME_MAX = 1000

log = logging.getLogger("instep.agent")


@dataclass(slots=True)
class SourceState:
    """How one source is doing: `outcome` is `ok`, `absent`, `failed`, or empty before its first turn."""

    source: Source
    next_due_seconds: float = 0.0
    outcome: str = ""
    detail: str = ""
    duration_seconds: float = 0.0
    failures_total: int = 0
    samples: tuple[Sample, ...] = ()


@dataclass(slots=True)
class Snapshot:
    """What the agent knows now, for whoever shows it."""

    samples: tuple[Sample, ...] = ()
    ranks: tuple[RankReport, ...] = ()
    gpus: tuple[GpuReport, ...] = ()
    facts: tuple[Fact, ...] = field(default=())


class Runner:
    """Runs the sources of one node; `deliver` gets every frame with its dictionary."""

    def __init__(
        self,
        node: Node,
        sources: Sequence[Source],
        deliver: Callable[[Frame, Dictionary], None],
        *,
        interval_seconds: float = 1.0,
        cluster: str = "",
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._deliver = deliver
        self._interval_seconds = interval_seconds
        self._clock_seconds = clock_seconds
        self._builder = FrameBuilder(node, cluster=cluster)
        self._next_frame_seconds = 0.0
        self._tick = Tick()
        self.states = [SourceState(source) for source in sources]
        self.snapshot = Snapshot()

    def run(self, stop: threading.Event) -> None:
        """Go on until `stop` is set."""
        while not stop.is_set():
            stop.wait(self.run_due())

    def run_due(self) -> float:
        """Ask the sources that are due, deliver a frame if there is cause to, and give the seconds until the next turn.

        A fact is a cause at once; everything else waits for the next tick.
        """
        now_seconds = self._clock_seconds()
        for state in self.states:
            if state.next_due_seconds <= now_seconds:
                self._ask(state, now_seconds)
        is_tick = self._next_frame_seconds <= now_seconds
        if is_tick:
            self._next_frame_seconds = now_seconds + self._interval_seconds
        if is_tick or self._tick.facts:
            self._send_frame()
        due = min([self._next_frame_seconds, *(state.next_due_seconds for state in self.states)])
        return max(0.0, due - self._clock_seconds())

    def _ask(self, state: SourceState, now_seconds: float) -> None:
        """The one place with a broad except: whatever a source does, the others go on."""
        started_seconds = time.perf_counter()
        before, state.outcome, state.detail = state.outcome, "ok", ""
        readings: list[Reading] = []
        try:
            for reading in state.source.collect(self._node):
                readings.append(reading)
        except Absent as error:
            state.outcome, state.detail = "absent", str(error)
        except AgentError as error:
            self._fail(state, before, str(error))
        except Exception as error:
            self._fail(state, before, f"Source {state.source.name} failed ({type(error).__name__}: {error}).")
            log.exception("source %s failed", state.source.name)
        state.duration_seconds = time.perf_counter() - started_seconds
        wait_seconds = state.source.interval_seconds
        state.next_due_seconds = now_seconds + (
            max(wait_seconds, ABSENT_RETRY_SECONDS) if state.outcome == "absent" else wait_seconds
        )
        self._take(state, readings)

    def _fail(self, state: SourceState, before: str, sentence: str) -> None:
        """A failure is a fact of its own when it begins; while it lasts the metric tells."""
        state.outcome, state.detail = "failed", sentence
        state.failures_total += 1
        if before != "failed":
            log.warning("%s", sentence)
            self._tick.facts.append(
                Fact(
                    "source_failed",
                    sentence,
                    self._node.monotonic_ns(),
                    self._node.realtime_ns(),
                    {"source": state.source.name},
                )
            )

    def _take(self, state: SourceState, readings: list[Reading]) -> None:
        state.samples = tuple(reading for reading in readings if isinstance(reading, Sample))
        ranks = tuple(reading for reading in readings if isinstance(reading, RankReport))
        gpus = tuple(reading for reading in readings if isinstance(reading, GpuReport))
        facts = [reading for reading in readings if isinstance(reading, Fact)]
        self._tick.facts += facts[: max(0, FACTS_PER_FRAME_MAX - len(self._tick.facts))]
        for report in ranks:
            self._tick.add_rank(report)
        if state.source.name == "rank_records":
            self.snapshot.ranks = ranks
        if state.source.name == "gpu_inventory" and state.outcome == "ok":
            self._tick.gpus = self.snapshot.gpus = gpus
        self.snapshot.facts = (*self.snapshot.facts, *facts)[-FACTS_PER_FRAME_MAX:]

    def _send_frame(self) -> None:
        samples = [sample for state in self.states for sample in (*state.samples, *about(state))]
        self.snapshot.samples = tuple(samples)
        tick, self._tick = self._tick, Tick()
        frame = self._builder.build(tick, samples)
        self._deliver(frame, self._builder.dictionary)


def about(state: SourceState) -> tuple[Sample, ...]:
    """Give the samples about a source itself. One that is absent has no success to report."""
    labels = (("source", state.source.name),)
    duration = Sample(name="instep_agent_source_duration_seconds", labels=labels, value=state.duration_seconds)
    failures = Sample(name="instep_agent_source_failures_total", labels=labels, value=float(state.failures_total))
    if state.outcome == "absent":
        return (duration, failures)
    success = Sample(name="instep_agent_source_success", labels=labels, value=float(state.outcome == "ok"))
    return (success, duration, failures)
