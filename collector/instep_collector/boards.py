"""What is known of each attempt of a run: its ranks' latest reports and steps, exits and dumps, with receipt times.

Times are of the server's monotonic clock. Ages that a report carries were measured on its node; the server only adds
how long ago it received them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from instep_agent.wire import NodeDump, RankDump, RankReport, StepReport

from instep_collector.control import Dump, LocalDecision, RankExited

STEPS_MAX = 256
RANKS_MAX = 65_536
ORDERS_MAX = 1024
"""Dump orders of one attempt whose answers by agents are remembered."""
TOGETHER_SECONDS = 0.3
"""Exits this close were noticed together: which came first is for the detector to judge (a lost node takes all its
ranks).
"""


@dataclass(slots=True)
class Exit:
    """One rank's end as it was reported."""

    report: RankExited
    at: float
    realtime: float


@dataclass(slots=True)
class RankBoard:
    """One attempt of one run."""

    attempt: int
    reports: dict[int, tuple[RankReport, float]] = field(default_factory=dict)
    """rank → its newest report and the moment to which its ages refer."""
    steps: dict[int, deque[StepReport]] = field(default_factory=dict)
    exits: dict[int, Exit] = field(default_factory=dict)
    dumps: dict[int, tuple[RankDump, float]] = field(default_factory=dict)
    """rank → its newest dump and when it arrived."""
    dumped_by_supervisor: dict[int, int] = field(default_factory=dict)
    """rank → the latest order for which its supervisor gave evidence."""
    orders_dumped: set[int] = field(default_factory=set)
    """Dump orders that the supervisors answered."""
    nodes_dumped: dict[int, set[str]] = field(default_factory=dict)
    """Dump order → nodes whose agents answered it."""
    decision: LocalDecision | None = None
    """What the coordinator did by itself about this attempt."""
    outcome: str = ""
    """Of an attempt that has ended."""
    opened_realtime: float | None = None
    kept: tuple[int, float] | None = None
    """The first step that every rank kept, and when that was told (real time)."""

    def see(self, report: RankReport, at: float) -> None:
        """Take in one rank's report. An older one than the newest adds its steps only."""
        if report.rank not in self.reports and len(self.reports) >= RANKS_MAX:
            return
        known = self.reports.get(report.rank)
        if known is None or at >= known[1]:
            self.reports[report.rank] = (report, at)
        self._keep_steps(report)

    def _keep_steps(self, report: RankReport) -> None:
        kept = self.steps.setdefault(report.rank, deque(maxlen=STEPS_MAX))
        for step in report.steps:
            if not kept or step.step > kept[-1].step:
                kept.append(step)
            elif all(step.step != other.step for other in kept):  # A frame out of the spool came late.
                ordered = sorted((*kept, step), key=lambda other: other.step)[-STEPS_MAX:]
                kept.clear()
                kept.extend(ordered)

    def exited(self, exit_: RankExited, *, at: float, realtime: float) -> None:
        """Take in a rank's end; the first report of it counts."""
        if len(self.exits) < RANKS_MAX:
            self.exits.setdefault(exit_.rank, Exit(exit_, at, realtime))

    def dumped(self, dump: Dump, at: float) -> None:
        """Take in evidence; a newer dump of a rank replaces the older."""
        for one in dump.dumps:
            rank = one.report.rank
            if 0 <= rank < RANKS_MAX:
                self.dumps[rank] = (one, at)
                self.dumped_by_supervisor[rank] = max(self.dumped_by_supervisor.get(rank, 0), dump.order or 0)
        if dump.order is not None:
            self.orders_dumped.add(dump.order)

    def node_dumped(self, dump: NodeDump, at: float) -> None:
        """Take in what an agent saw from outside. A supervisor's evidence for the same order wins, whichever came
        first: it has also asked the ranks themselves. A rank that is known on another node is not this one's.
        """
        if len(self.nodes_dumped) >= ORDERS_MAX and dump.order not in self.nodes_dumped:
            return
        self.nodes_dumped.setdefault(dump.order, set()).add(dump.node)
        for one in dump.dumps:
            rank, known = one.report.rank, self.reports.get(one.report.rank)
            is_its_own = known is None or known[0].node == dump.node
            if is_its_own and rank < RANKS_MAX and self.dumped_by_supervisor.get(rank, -1) < dump.order:
                self.dumps[rank] = (one, at)

    def first_failure(self) -> Exit | None:
        """The first exit that was not a clean 0; what failed after it in the same attempt is a consequence."""
        failed = [exit_ for exit_ in self.exits.values() if exit_.report.exit_code != 0]
        return min(failed, key=lambda exit_: exit_.at, default=None)

    def ranks_now(self, now: float) -> list[tuple[RankReport, float]]:
        """Return (report, seconds since it was read) by rank."""
        return [(report, max(0.0, now - at)) for _, (report, at) in sorted(self.reports.items())]

    def causes(self) -> dict[int, Exit]:
        """Return the exits that may explain anything: clean ones, and failures at the time of the first; later ones
        follow.
        """
        first = self.first_failure()
        return {
            rank: exit_
            for rank, exit_ in self.exits.items()
            if exit_.report.exit_code == 0 or (first is not None and exit_.at - first.at <= TOGETHER_SECONDS)
        }

    def step(self) -> int:
        """The step that every rank heard of has finished; 0 before any."""
        return min((report.step for report, _ in self.reports.values()), default=0)

    def step_furthest(self) -> int:
        """The step that some rank has finished."""
        return max((report.step for report, _ in self.reports.values()), default=0)
