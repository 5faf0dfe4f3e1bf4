"""The detector loop: every quarter of a second, what is known of each live run goes through the detectors to the sink.

It reads only what is in the journal already, and decides by state, not by event: a server that was killed and started
again comes to the same findings from the replayed journal.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from instep_agent.wire import GpuReport
from instep_diagnosis.bundles import EvidenceBundle
from instep_diagnosis.detectors.stall import Stall
from instep_diagnosis.evidence import JobState
from instep_diagnosis.node_readings import with_readings
from instep_diagnosis.settings import CrashSettings, HangSettings, StragglerSettings

from instep_collector import judging
from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.facts import FactBook
from instep_collector.intake import Intake
from instep_collector.metrics import Metrics
from instep_collector.node_places import readings_of
from instep_collector.registry import Registry, RunState
from instep_collector.sink import Finding, Sink
from instep_collector.store import nodes as node_queries
from instep_collector.store.engine import Store

TICK_SECONDS = 0.25
STRAGGLER_SECONDS = 1.0
NODES_SEEN_SECONDS = 30.0
RANKS_INLINE_MAX = 64
"""Larger jobs are judged in a thread, so that frames go on being taken."""
CRASH_SECONDS = 120.0
"""A failed exit is judged within this; later, the run's boards are history."""

log = logging.getLogger(__name__)
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """The detectors' settings and the loop's own."""

    hang: HangSettings = field(default_factory=HangSettings)
    crash: CrashSettings = field(default_factory=CrashSettings)
    straggler: StragglerSettings = field(default_factory=StragglerSettings)
    evidence_grace_seconds: float = 0.6
    """How long a crash waits for facts about its node, unless a fatal one is there already."""


class Watch:
    """Looks at every live run; `run` loops, `tick` looks once."""

    def __init__(
        self,
        clock: Clock,
        registry: Registry,
        facts: FactBook,
        intake: Intake,
        store: Store,
        sink: Sink,
        *,
        settings: WatchSettings,
        metrics: Metrics,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._facts = facts
        self._intake = intake
        self._window = intake.window
        self._store = store
        self._sink = sink
        self._settings = settings
        self._metrics = metrics
        self._last_stalls: dict[str, tuple[int, JobState, Stall]] = {}
        self._straggler_at: dict[str, float] = {}
        self._nodes_seen_at = 0.0

    async def run(self) -> None:
        """Tick until cancelled; an error is counted and logged, and the next tick comes all the same."""
        while True:
            self._intake.wake.clear()
            started = time.perf_counter()
            try:
                await self.tick()
            except Exception:  # counted and told; a run that cannot be judged must not blind the server to the others
                self._metrics.tick_errors.inc()
                log.exception("A detector tick failed.")
            self._metrics.tick_seconds.observe(time.perf_counter() - started)
            try:
                await asyncio.wait_for(self._intake.wake.wait(), TICK_SECONDS)
            except TimeoutError:
                continue

    async def tick(self) -> None:
        """Look at everything once."""
        now = self._clock.monotonic()
        self._store_nodes(now)
        for run in list(self._registry.runs.values()):
            await self._look_for_crashes(run, now)
        for run in self._registry.live(now):
            if not run.is_attempt_over:
                await self._look_for_stall(run, run.current(), now)
                await self._look_for_stragglers(run, run.current(), now)
        self._look_at_facts(now)
        self._sink.tick()

    async def _look_for_crashes(self, run: RunState, now: float) -> None:
        for board in list(run.boards.values()):
            failure = board.first_failure()
            if failure is None or now - failure.at > CRASH_SECONDS or board.outcome in ("stopped", "finished"):
                continue
            if not self._sink.wants_crash(run, board):
                continue
            job = self._job_state(run, board, now, nodes=frozenset({failure.report.node}))
            verdict = judging.crash(job, self._settings.crash)
            is_due = now - failure.at >= self._settings.evidence_grace_seconds
            if verdict is not None and (is_due or verdict.is_node_at_fault):
                bundle = EvidenceBundle(job=job, crash=self._settings.crash)
                self._sink.crashed(Finding(run, board, bundle, verdict, alarm_age_seconds=now - failure.at))

    async def _look_for_stall(self, run: RunState, board: RankBoard, now: float) -> None:
        if not board.reports:
            return
        job = self._job_state(run, board, now)
        stall = None
        is_failing = board.first_failure() is not None
        if not is_failing:
            stall = await self._judge(job, lambda: judging.stall(job, self._settings.hang))
        if stall is not None:
            self._last_stalls[run.run] = (board.attempt, job, stall)
            self._sink.stalled(run, board, job, stall)
        elif not is_failing:
            self._sink.moving(run, board, self._step_known(run, board, now))
        if self._sink.wants_localisation(run, board):
            await self._localise(run, board, stall, job)

    async def _localise(self, run: RunState, board: RankBoard, stall: Stall | None, job: JobState) -> None:
        if (
            stall is None
        ):  # The evidence is going away, since ranks end or an agent is silent: judge the last one there was.
            attempt, job, stall = self._last_stalls.get(run.run, (-1, job, None))
            if stall is None or attempt != board.attempt:
                return
        found = stall
        dumps = {rank: dump for rank, (dump, _) in board.dumps.items()}
        judge = functools.partial(judging.localise, job, found, self._settings.hang, dumps)
        is_slow = any(dump.flight_recorder_pickle for dump in dumps.values())
        job, verdict = await asyncio.to_thread(judge) if is_slow else await self._judge(job, judge)
        bundle = EvidenceBundle(stall=found, job=job, hang=self._settings.hang)
        self._sink.localised(Finding(run, board, bundle, verdict))

    async def _look_for_stragglers(self, run: RunState, board: RankBoard, now: float) -> None:
        if now - self._straggler_at.get(run.run, -STRAGGLER_SECONDS) < STRAGGLER_SECONDS:
            return
        self._straggler_at[run.run] = now
        steps = judging.job_steps(run, board)
        job = self._job_state(run, board, now) if steps.steps else None
        if job is not None:
            verdicts = await self._judge(job, lambda: judging.stragglers(steps, self._settings.straggler))
            readings = readings_of(verdicts, board, self._registry, self._window, now=now)
            bundle = EvidenceBundle(steps=steps, straggler=self._settings.straggler, readings=readings)
            found = [Finding(run, board, bundle, with_readings(verdict, readings)) for verdict in verdicts]
            self._sink.straggling(run, board, found)

    def _look_at_facts(self, now: float) -> None:
        fresh = self._facts.take_fresh(now, self._gpus(self._facts.fresh_nodes()))
        if not fresh:
            return
        users = {node: run for run in self._registry.live(now) for node in run.nodes()}
        for run in (*{user.run: user for user in users.values()}.values(), None):
            facts = [fact for fact in fresh if users.get(fact.node) is run]
            if facts:
                self._sink.node_facts(run, facts)

    def _job_state(
        self, run: RunState, board: RankBoard, now: float, *, nodes: frozenset[str] = frozenset()
    ) -> JobState:
        concerned = (run.nodes() | nodes) - {""}
        facts = self._facts.facts(concerned, now, self._gpus(concerned))
        return judging.state(run, board, now, facts)

    def _gpus(self, nodes: Iterable[str]) -> dict[str, tuple[GpuReport, ...]]:
        return {node: self._registry.nodes[node].gpus for node in nodes if node in self._registry.nodes}

    def _step_known(self, run: RunState, board: RankBoard, now: float) -> int:
        fresh = [
            report.step for report, age in board.ranks_now(now) if age <= self._settings.hang.report_age_seconds_max
        ]
        return min(fresh) if fresh and len(fresh) >= run.world_size else -1

    async def _judge(self, job: JobState, judge: Callable[[], Found]) -> Found:
        return judge() if len(job.ranks) <= RANKS_INLINE_MAX else await asyncio.to_thread(judge)

    def _store_nodes(self, now: float) -> None:
        """Bring new events and changed nodes from the journal's safety into the store."""
        is_seen_due = now - self._nodes_seen_at >= NODES_SEEN_SECONDS
        nodes = [
            node
            for node in self._registry.nodes.values()
            if not node.is_stored or (is_seen_due and node.has_boot_moved)
        ]
        events = self._intake.events_waiting[:1000]
        if not (nodes or events or is_seen_due):
            return
        realtime = self._clock.realtime()
        with self._store.begin() as session:
            for node in nodes:
                node_queries.keep_node(
                    session,
                    node.node,
                    cluster=node.cluster,
                    boot_id=node.boot_id,
                    gpus=node.gpus,
                    at=realtime,
                    booted_at=None if node.booted_at is None else realtime - (now - node.booted_at),
                )
            if is_seen_due:
                heard = [
                    node.node for node in self._registry.nodes.values() if now - node.heard_at < NODES_SEEN_SECONDS
                ]
                node_queries.seen(session, heard, at=realtime)
            node_queries.keep_events(session, events)
        del self._intake.events_waiting[: len(events)]
        for node in nodes:
            node.is_stored, node.booted_at_stored = True, node.booted_at
        self._nodes_seen_at = now if is_seen_due else self._nodes_seen_at
