"""Runs and nodes as the server knows them now. Rebuilt at start from the store and the journal."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from instep_agent.wire import GpuReport, RankReport

from instep_collector.boards import RankBoard
from instep_collector.control import AttemptOpened, Member, Report
from instep_collector.errors import Refused

LIVE_SECONDS = 15.0
"""A run that was heard of within this and has not finished holds its job's name (three missed heartbeats)."""
RUNS_MAX = 1024
ATTEMPTS_KEPT = 3
REPORTS_SEEN_MAX = 4096
NODES_MAX = 20_000
PAST_BOOTS_MAX = 8
BOOT_APART_SECONDS = 1.0
"""Boots are told apart in time by more than clocks are apart."""
BOOT_HEARD_SECONDS = 60.0
"""A boot that was not heard of for longer may be followed by one that seems older: its clock may have been wrong."""


@dataclass(slots=True)
class RunState:
    """One run of a job."""

    job: str
    run: str
    attempt: int = 0
    world_size: int = 0
    members: tuple[Member, ...] = ()
    standby: tuple[str, ...] = ()
    max_restarts: int = 0
    restarts_used: int = 0
    is_controlled: bool = False
    """A coordinator reports for it, so orders reach it."""
    is_finished: bool = False
    is_attempt_over: bool = False
    """The current attempt has ended; nothing about its ranks is news."""
    outcome: str = ""
    heard_at: float = 0.0
    boards: dict[int, RankBoard] = field(default_factory=dict)
    reports_seen: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def board(self, attempt: int) -> RankBoard | None:
        """Return an attempt's board, made when new; None for one that is past and forgotten."""
        if attempt not in self.boards:
            if attempt <= max(self.boards, default=attempt) - ATTEMPTS_KEPT:
                return None
            self.boards[attempt] = RankBoard(attempt)
            for old in sorted(self.boards)[:-ATTEMPTS_KEPT]:
                del self.boards[old]
        return self.boards.get(attempt)

    def current(self) -> RankBoard:
        """The running attempt's board."""
        return self.board(self.attempt) or RankBoard(self.attempt)

    def enter(self, attempt: int) -> None:
        """Go on to an attempt that is newer than the known one."""
        if attempt > self.attempt:
            self.attempt = attempt
            self.is_attempt_over = False

    def node_of(self, rank: int) -> str:
        """Return the node of a rank of the current attempt, or an empty name."""
        for member in self.members:
            if rank in member.ranks:
                return member.node
        known = self.current().reports.get(rank)
        return known[0].node if known else ""

    def nodes(self) -> set[str]:
        """The nodes of the current attempt."""
        return {member.node for member in self.members} | {report.node for report, _ in self.current().reports.values()}

    def opened(self, attempt: int, body: AttemptOpened) -> None:
        """Take in an opened attempt; an older one than the current is history."""
        if attempt < self.attempt:
            return
        self.enter(attempt)
        self.is_controlled, self.is_finished, self.is_attempt_over = True, False, False
        self.members, self.standby, self.world_size = body.members, body.standby, body.world_size
        self.max_restarts, self.restarts_used = body.max_restarts, body.restarts_used


@dataclass(slots=True)
class NodeState:
    """One node as its agent's frames say."""

    node: str
    cluster: str
    boot_id: str
    heard_at: float
    gpus: tuple[GpuReport, ...] = ()
    is_stored: bool = False
    """The store has this boot and these GPUs."""
    booted_at: float | None = None
    """When this boot began, on the server's monotonic clock, as its newest frame says; None until one came."""
    booted_at_stored: float | None = None
    """… as the store has it."""
    past_boots: tuple[str, ...] = ()
    """Boots before this one, newest last."""

    @property
    def has_boot_moved(self) -> bool:
        """Whether the boot began at another time than the store has it: the first frames were late, or clocks drift."""
        if self.booted_at is None or self.booted_at_stored is None:
            return self.booted_at is not self.booted_at_stored
        return abs(self.booted_at - self.booted_at_stored) > BOOT_APART_SECONDS


class Registry:
    """Runs by id, jobs by name, nodes by name."""

    def __init__(self) -> None:
        self.runs: dict[str, RunState] = {}
        self.nodes: dict[str, NodeState] = {}

    def admit(self, report: Report, now: float) -> RunState | None:
        """Return the report's run, None when it is not known yet; raises Refused (409) when its job's name is held.

        Nothing is changed: the report is journalled first.
        """
        known = self.runs.get(report.run)
        if known is not None and known.job != report.job:
            raise Refused(
                409, f"Run {report.run!r} belongs to job {known.job!r}: start the run under a name of its own."
            )
        holder = self.holder(report.job, now)
        if holder is not None and holder.run != report.run and (known is None or not known.is_finished):
            raise Refused(
                409,
                f"Job {report.job!r} is held by run {holder.run!r}, heard of {now - holder.heard_at:.0f} s "
                "ago: end that run first, or give this one another job name.",
            )
        return known

    def holder(self, job: str, now: float) -> RunState | None:
        """Return the live run that holds a job's name."""
        return next(
            (run for run in self.runs.values() if run.job == job and run.is_controlled and self.is_live(run, now)), None
        )

    def is_live(self, run: RunState, now: float) -> bool:
        """Heard of lately and not finished."""
        return not run.is_finished and now - run.heard_at <= LIVE_SECONDS

    def live(self, now: float) -> Iterator[RunState]:
        """Yield every live run."""
        return (run for run in list(self.runs.values()) if self.is_live(run, now))

    def ensure(self, job: str, run: str) -> RunState:
        """Return a run, made when new; the run unheard of for longest goes when there are too many."""
        state = self.runs.get(run)
        if state is None:
            while len(self.runs) >= RUNS_MAX:
                del self.runs[min(self.runs, key=lambda name: self.runs[name].heard_at)]
            state = self.runs[run] = RunState(job, run)
        return state

    def see_rank(self, report: RankReport, at: float) -> None:
        """Take in a rank's report from a frame."""
        run = self.ensure(report.job, report.run)
        if run.job != report.job or run.is_finished:
            return
        board = run.board(report.attempt)
        if board is None:
            return
        board.see(report, at)
        run.enter(report.attempt)
        if not run.is_controlled:
            run.world_size, run.heard_at = report.world_size, max(run.heard_at, at)

    def see_node(
        self,
        node: str,
        *,
        cluster: str,
        boot_id: str,
        gpus: tuple[GpuReport, ...] | None,
        at: float,
        booted_at: float | None = None,
    ) -> None:
        """Take in what a frame says about its node; one of an earlier boot, that comes late, says nothing of now."""
        state = self.nodes.get(node)
        if state is None:
            if len(self.nodes) >= NODES_MAX:
                return
            state = self.nodes[node] = NodeState(node, cluster, boot_id, at)
        if _is_past(state, boot_id, at, booted_at):
            state.past_boots = (*(boot for boot in state.past_boots if boot != boot_id), boot_id)[-PAST_BOOTS_MAX:]
            return
        if state.boot_id != boot_id:
            state.past_boots = (*(boot for boot in state.past_boots if boot != boot_id), state.boot_id)
            state.past_boots = state.past_boots[-PAST_BOOTS_MAX:]
            state.booted_at = None
        state.booted_at = state.booted_at if booted_at is None else booted_at
        if state.boot_id != boot_id or (gpus is not None and gpus != state.gpus):
            state.is_stored = False
            state.boot_id, state.gpus = boot_id, state.gpus if gpus is None else gpus
        state.heard_at = max(state.heard_at, at)


def _is_past(state: NodeState, boot_id: str, at: float, booted_at: float | None) -> bool:
    """Whether a frame is of a boot before the one that is known: it began earlier, and the known one is alive."""
    if boot_id == state.boot_id or booted_at is None or state.booted_at is None:
        return False
    is_alive = at - state.heard_at <= BOOT_HEARD_SECONDS
    return is_alive and (boot_id in state.past_boots or booted_at < state.booted_at - BOOT_APART_SECONDS)
