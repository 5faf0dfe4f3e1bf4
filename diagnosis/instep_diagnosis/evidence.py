"""What detectors look at: the state of one job's ranks at one moment, as plain frozen values.

Built from rank reports by `instep_diagnosis.jobs.job_state`, once, for the server and for the supervisor alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from instep_agent.wire import CollectiveEntry, GroupReport, RankReport, StepReport, ThreadStack

from instep_diagnosis.flight_recorder import LastEntry


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank now. Ages are seconds before the moment of evaluation, measured where the thing happened plus the
    report's age."""

    report: RankReport
    report_age_seconds: float
    """Since the report was read; beyond `HangSettings.report_age_seconds_max` the rank is unknown."""
    stacks: tuple[ThreadStack, ...] = ()
    answers: bool | None = None
    is_dumped: bool = False
    """The supervisor was asked for evidence about this rank and looked."""
    exit_code: int | None = None
    """Set when the rank's process ended; negative numbers are signals."""
    exit_age_seconds: float | None = None
    """Since its exit was noticed, where that is known."""
    missing: tuple[str, ...] = ()
    """One sentence for each piece of evidence that was asked for and could not be had."""
    recorder: tuple[LastEntry, ...] = ()
    """The newest collective of each group in torch's own flight recorder, where it answered."""

    @property
    def rank(self) -> int:
        """The rank's global index."""
        return self.report.rank

    @property
    def groups(self) -> tuple[GroupReport, ...]:
        """How far the rank has got in each group."""
        return self.report.groups

    @property
    def collectives(self) -> tuple[CollectiveEntry, ...]:
        """Its last collectives, oldest first."""
        return self.report.collectives


@dataclass(frozen=True, slots=True)
class NodeFact:
    """One raw fact about a node that may explain what a rank does: a kernel line, a failing source."""

    event_id: str
    node: str
    kind: str
    text: str
    age_seconds: float
    """Before the moment of evaluation; across nodes it is good to the clock bound only."""
    gpu: str = ""
    """UUID of the GPU it names, where it names one that the node has."""
    gpu_index: int | None = None
    is_drill: bool = False
    boot_id: str = ""
    """Boot of the node in which it happened, where it is known."""
    fields: dict[str, str] = field(default_factory=dict, hash=False)
    """What the source said beside the text."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job's running attempt at one moment."""

    job: str
    run: str
    attempt: int
    world_size: int
    ranks: tuple[RankState, ...]
    """Those heard of, ordered by rank; ranks that were never heard of are unknown, not stuck."""
    step_seconds: tuple[float, ...]
    """Recent step durations of the job (the median over ranks for each step), oldest first, benign phases taken
    out."""
    facts: tuple[NodeFact, ...] = ()


@dataclass(frozen=True, slots=True)
class JobSteps:
    """Finished steps of a job's ranks, for the straggler detector: rows of one rank are in step order."""

    job: str
    run: str
    attempt: int
    steps: dict[int, tuple[StepReport, ...]]
    """rank → its recent steps."""
    nodes: dict[int, str]
    """rank → node."""
