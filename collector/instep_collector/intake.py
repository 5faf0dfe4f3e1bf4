"""Takes frames and reports in: check, journal, apply. Replays the journal at start by the same steps.

Journal first: nothing is applied to what the detectors see before it is kept, and a refused message changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec
from instep_agent.wire import FRAME_VERSION, Dictionary, Event, Frame, NodeDump

from instep_collector import control
from instep_collector.clock import Clock
from instep_collector.control import Body, Report
from instep_collector.delivery import Deliveries
from instep_collector.errors import Refused
from instep_collector.facts import FactBook
from instep_collector.gpu_health import GpuHealth
from instep_collector.hot_window import HotWindow
from instep_collector.journal import Journal, Record, RecordKind
from instep_collector.registry import REPORTS_SEEN_MAX, Registry, RunState
from instep_collector.tokens import Principal

REPLAY_SECONDS = 900.0
"""What is older explains nothing that happens now."""
RANKS_PER_FRAME_MAX = 1024
EVENTS_PER_FRAME_MAX = 4096
EVENTS_WAITING_MAX = 100_000

log = logging.getLogger(__name__)
_frames = msgspec.msgpack.Decoder(Frame)
_dictionaries = msgspec.msgpack.Decoder(Dictionary)

OnReport = Callable[[RunState, Report, Body, float, float], None]
"""Called for a report when it was applied: run, report, body, monotonic and real time of receipt."""


def read_frame(raw: bytes) -> Frame:
    """Return a frame; raises Refused with 426 for another major version and 400 for what is no frame."""
    try:
        frame = _frames.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"The body is not a frame: {error}.") from error
    if frame.version[0] != FRAME_VERSION[0]:
        raise Refused(
            426,
            f"Frame version {frame.version[0]}.{frame.version[1]} is not read here: this server takes "
            f"{FRAME_VERSION[0]}.x; upgrade the older side.",
        )
    for name in (frame.node, *{name for rank in frame.ranks for name in (rank.job, rank.run)}):
        control.check_name(name)
    if len(frame.ranks) > RANKS_PER_FRAME_MAX or len(frame.events) > EVENTS_PER_FRAME_MAX or frame.sequence < 0:
        raise Refused(
            400,
            f"A frame holds at most {RANKS_PER_FRAME_MAX} ranks and {EVENTS_PER_FRAME_MAX} events, and "
            "its sequence counts from 0.",
        )
    if any(len(event.id) > 300 or len(event.kind) > 100 or len(event.text) > 8192 for event in frame.events):
        raise Refused(400, "An event's id, kind and text have at most 300, 100 and 8192 characters.")
    if len(frame.cluster) > 200 or len(frame.boot_id) > 200 or len(frame.agent_epoch) > 200:
        raise Refused(400, "cluster, boot_id and agent_epoch have at most 200 characters.")
    if any(rank.node != frame.node or rank.rank < 0 for rank in frame.ranks):
        raise Refused(400, f"A frame of node {frame.node!r} may speak of its own ranks only.")
    return frame


class Intake:
    """The one way in for everything that is received."""

    def __init__(self, clock: Clock, journal: Journal, registry: Registry, window: HotWindow, facts: FactBook) -> None:
        self._clock = clock
        self._journal = journal
        self._registry = registry
        self.window = window
        """The last minutes of every node's samples."""
        self._facts = facts
        self._deliveries = Deliveries()
        self._health = GpuHealth()
        self.wake = asyncio.Event()
        """Set when something arrived that should be looked at before the next tick."""
        self.events_waiting: list[tuple[str, Event, float]] = []
        """(node, event, real time of receipt) not yet in the store; they are in the journal."""
        self.on_report: OnReport | None = None
        self.is_asked: Callable[[NodeDump], bool] = lambda _dump: False
        """Whether a node's agent was asked for this evidence; what nobody asked for is refused."""
        self.frames_total = self.duplicates_total = self.reports_total = self.events_total = 0

    async def take_frame(self, raw: bytes, principal: Principal) -> int:
        """Keep and apply one frame; returns its sequence, which is then acknowledged."""
        frame = read_frame(raw)
        check_node(principal, frame.node)
        if self._deliveries.is_seen(frame):
            self.duplicates_total += 1
            return frame.sequence
        self.window.check(frame.dictionary_hash, frame.values)
        await self._journal.append(RecordKind.FRAME, self._clock.realtime(), raw)
        self._apply_frame(frame, self._clock.monotonic(), self._clock.realtime())
        return frame.sequence

    async def take_dictionary(self, raw: bytes) -> None:
        """Keep one agent's dictionary."""
        try:
            dictionary = _dictionaries.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"The body is not a dictionary: {error}.") from error
        self.window.learn(dictionary)
        await self._journal.append(RecordKind.DICTIONARY, self._clock.realtime(), raw)

    async def take_report(self, raw: bytes, principal: Principal) -> str | int:
        """Keep and apply one supervisor's report; returns its id, which is then acknowledged."""
        report, body = control.read_report(raw)
        check_node(principal, report.node)
        run = self._registry.admit(report, self._clock.monotonic())
        if run is not None and report.key in run.reports_seen:
            run.heard_at = self._clock.monotonic()
            return report.id
        await self._journal.append(RecordKind.REPORT, self._clock.realtime(), raw)
        self._apply_report(report, body, self._clock.monotonic(), self._clock.realtime())
        return report.id

    async def take_node_dump(self, raw: bytes, principal: Principal) -> int:
        """Keep and apply an agent's answer to a dump order; returns the order, which is then acknowledged."""
        dump = control.read_node_dump(raw)
        check_node(principal, dump.node)
        run = self._registry.runs.get(dump.run)
        board = run.boards.get(dump.attempt) if run is not None else None
        if board is not None and dump.node in board.nodes_dumped.get(dump.order, ()):
            return dump.order
        if board is None or not self.is_asked(dump):
            raise Refused(
                409, f"Node {dump.node!r} is not asked (any more) for order {dump.order} of run {dump.run[:40]!r}."
            )
        await self._journal.append(RecordKind.NODE_DUMP, self._clock.realtime(), raw)
        self._apply_node_dump(dump, self._clock.monotonic())
        return dump.order

    def expect_boot(self, node: str, boot_id: str, booted_at: float) -> None:
        """Know since when (monotonic) a node runs, from before this server was started: frames that waited meanwhile
        are then as old as they are.
        """
        self._deliveries.expect(node, boot_id, booted_at, now=self._clock.monotonic())

    def expect_asked(self, node: str, boot_id: str, gpu: str) -> None:
        """Know that a GPU's driver (UUID, else index) asked for something before this server was started: a reading
        then tells when it asks for nothing any more.
        """
        self._health.expect_asked(node, boot_id, gpu)

    def replay(self) -> int:
        """Apply what the journal still holds of the last minutes; returns how many records. Receipt times are kept.

        The server's own real time dates what it received before it was killed; no other machine's clock takes part.
        """
        now, realtime, count = self._clock.monotonic(), self._clock.realtime(), 0
        for record in self._journal.replay():
            age_seconds = max(0.0, realtime - record.realtime)
            if age_seconds <= REPLAY_SECONDS or record.kind == RecordKind.DICTIONARY:
                self._replay_record(record, now - age_seconds)
                count += 1
        return count

    def _replay_record(self, record: Record, at: float) -> None:
        try:
            if record.kind == RecordKind.FRAME:
                frame = read_frame(record.payload)
                if not self._deliveries.is_seen(frame):
                    self._apply_frame(frame, at, record.realtime)
            elif record.kind == RecordKind.DICTIONARY:
                self.window.learn(_dictionaries.decode(record.payload))
            elif record.kind == RecordKind.REPORT:
                self._apply_report(*control.read_report(record.payload), at, record.realtime)
            elif record.kind == RecordKind.NODE_DUMP:
                self._apply_node_dump(control.read_node_dump(record.payload), at)
        except (Refused, msgspec.DecodeError) as error:  # Written by another version: the rest is still good.
            log.warning("A journal record is skipped: %s", error)

    def _apply_frame(self, frame: Frame, at: float, realtime: float) -> None:
        if self._deliveries.is_seen(frame):  # Its twin came while this one was being written.
            self.duplicates_total += 1
            return
        self._deliveries.mark(frame)
        self.frames_total += 1
        at -= self._deliveries.delay_seconds(frame, at)
        if self.window.knows(frame.dictionary_hash):
            self.window.write(frame.node, frame.dictionary_hash, frame.values, at=at)
        self._registry.see_node(
            frame.node,
            cluster=frame.cluster,
            boot_id=frame.boot_id,
            gpus=frame.gpus,
            at=at,
            booted_at=at - frame.anchor.monotonic_ns / 1e9,
        )
        for rank in frame.ranks:
            self._registry.see_rank(rank, at)
        said = self._health.events(frame, self.window.dictionary(frame.dictionary_hash))
        for event in (*frame.events, *said):
            self._see_event(frame, event, at, realtime)

    def _see_event(self, frame: Frame, event: Event, at: float, realtime: float) -> None:
        if self._facts.add(frame.node, event, at - max(0.0, event.age_seconds), boot_id=frame.boot_id):
            self.events_total += 1
            if len(self.events_waiting) < EVENTS_WAITING_MAX:
                self.events_waiting.append((frame.node, event, realtime))
            self.wake.set()

    def _apply_report(self, report: Report, body: Body, at: float, realtime: float) -> None:
        self._registry.admit(report, at)  # Another run may have taken the name while this was being written.
        run = self._registry.ensure(report.job, report.run)
        if report.key in run.reports_seen:
            return
        run.reports_seen[report.key] = None
        if len(run.reports_seen) > REPORTS_SEEN_MAX:
            run.reports_seen.popitem(last=False)
        run.heard_at = max(run.heard_at, at)
        self.reports_total += 1
        apply_body(run, report, body, at=at, realtime=realtime)
        if self.on_report is not None:
            self.on_report(run, report, body, at, realtime)
        if not isinstance(body, control.Heartbeat):
            self.wake.set()

    def _apply_node_dump(self, dump: NodeDump, at: float) -> None:
        run = self._registry.runs.get(dump.run)
        board = run.board(dump.attempt) if run is not None else None
        if board is not None:
            board.node_dumped(dump, at)
            self.wake.set()


def apply_body(run: RunState, report: Report, body: Body, *, at: float, realtime: float) -> None:
    """Change what is known of a run by one report."""
    run.is_controlled = True
    board = run.board(report.attempt)
    match body:
        case control.AttemptOpened():
            run.opened(report.attempt, body)
            if board is not None and board.opened_realtime is None:
                board.opened_realtime = realtime
        case control.StepKept() if board is not None:
            board.kept = board.kept or (body.step, realtime)
        case control.RankExited() if board is not None:
            run.enter(report.attempt)
            board.exited(body, at=at, realtime=realtime)
        case control.Dump() if board is not None:
            board.dumped(body, at)
        case control.AttemptEnded():
            run.is_attempt_over = run.is_attempt_over or report.attempt == run.attempt
            if board is not None:
                board.outcome = body.outcome
        case control.LocalDecision() if board is not None:
            board.decision = body
        case control.RunFinished():
            run.is_finished, run.outcome = True, body.outcome


def check_node(principal: Principal, node: str) -> None:
    """Refuse (403) a token that is bound to another node."""
    if principal.node is not None and principal.node != node:
        raise Refused(403, f"This token speaks for node {principal.node!r} only, not for {node!r}.")
