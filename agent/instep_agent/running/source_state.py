"""How each source is doing, kept apart as *ok*, *absent*, *failed* and *stuck*, and the samples that say so."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from instep_agent.columns import NO_SAMPLES, Column, Series
from instep_agent.drills import DRILL_LABEL
from instep_agent.metric import counter, gauge
from instep_agent.node import Source
from instep_agent.wire import GpuReport, RankReport, Sample

OUTCOMES = {"ok": 0.0, "absent": 1.0, "failed": 2.0, "stuck": 3.0}
SAID_ONCE_MAX = 100
_ABOUT = (
    "instep_agent_source_state",
    "instep_agent_source_duration_seconds",
    "instep_agent_source_failures_total",
    "instep_agent_source_deadline_misses_total",
    "instep_agent_source_success",
)
TOGETHER_SECONDS, TOGETHER_RATIO = 0.02, 0.02
"""What is due so soon, as time and as share of its interval, is done now: waking up once costs less than twice."""

SOURCE_METRICS = (
    gauge(
        "instep_agent_source_success",
        "1 when the source's last turn went well, 0 when it failed or never came back; none when what it reads is "
        "absent.",
    ),
    gauge(
        "instep_agent_source_state",
        "How the source's last turn went: 0 ok, 1 absent (no such thing here), 2 failed (could not look), 3 stuck (no "
        "answer within its deadline, or its process died).",
    ),
    gauge("instep_agent_source_duration_seconds", "How long the source's last turn took."),
    counter("instep_agent_source_failures_total", "Turns that failed or never came back, since the agent's start."),
    counter("instep_agent_source_deadline_misses_total", "Turns over their deadline, since the agent's start."),
)

log = logging.getLogger("instep.agent")


@dataclass(slots=True)
class SourceState:
    """How one source is doing: `outcome` is a key of `OUTCOMES`, or empty before its first turn."""

    source: Source
    next_due_seconds: float = 0.0
    asked_at_seconds: float = 0.0
    outcome: str = ""
    detail: str = ""
    duration_seconds: float = 0.0
    failures_total: int = 0
    deadline_misses_total: int = 0
    turns_total: int = 0
    said_kind: str = ""
    """Kind of the fact that said how it fails; empty when nothing was said since it last went well."""
    is_drill: bool = False
    """It fails because of a drill."""
    is_fresh: bool = False
    """It was heard of since the last frame with values."""
    column: Column = NO_SAMPLES
    """Its last samples."""
    ranks: tuple[RankReport, ...] = ()
    gpus: tuple[GpuReport, ...] = ()
    metric_names: frozenset[str] = frozenset()
    early_seconds: float = 0.0
    rest_seconds: float = 0.0
    """What its last turn said of it."""
    lead_seconds: float = 0.0
    """It is asked so long before the others of its interval."""
    unknown_names: set[str] = field(default_factory=set)
    """Names of samples that were dropped, each said once."""
    said: tuple[Series, ...] = ()
    """The series of its last turn, those that it does not state included."""
    _stated: tuple[Series, ...] = ()
    _kept: list[int] | None = None
    """Where in `said` the stated ones are; None when all are."""
    _about: dict[tuple[bool, bool], tuple[Series, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metric_names = frozenset(metric.name for metric in self.source.metrics)
        self.early_seconds = early_seconds(self.source.interval_seconds)

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Its last samples, one by one."""
        return tuple(self.column.samples())

    def stated(self, column: Column) -> Column:
        """Give a column without the samples whose metric the source has not stated; each such name is said once."""
        if column.series is not self.said:
            self.said = column.series
            unknown = {name for name, _ in column.series} - self.metric_names
            self._kept = [at for at, (name, _) in enumerate(column.series) if name not in unknown] if unknown else None
            self._stated = tuple(column.series[at] for at in self._kept or ())
            self._complain(unknown)
        return column if self._kept is None else Column(self._stated, [column.values[at] for at in self._kept])

    def _complain(self, unknown: set[str]) -> None:
        if len(self.unknown_names) < SAID_ONCE_MAX:
            for name in sorted(unknown - self.unknown_names):
                log.error("Source %s does not state the metric %s: its samples are dropped.", self.name, name)
            self.unknown_names |= unknown

    def is_due(self, now_seconds: float) -> bool:
        """Whether it is asked now, or so soon that it is asked now too."""
        return self.next_due_seconds <= now_seconds + self.early_seconds

    def about(self) -> Column:
        """Give the samples about the source itself. One that is absent has no success to report."""
        if not self.outcome:
            return NO_SAMPLES
        is_absent = self.outcome == "absent"
        series = self._about.get((self.is_drill, is_absent))
        if series is None:
            labels = (*((DRILL_LABEL,) if self.is_drill else ()), ("source", self.name))
            series = tuple((name, labels) for name in (_ABOUT[:-1] if is_absent else _ABOUT))
            self._about[self.is_drill, is_absent] = series
        values = [
            OUTCOMES[self.outcome],
            self.duration_seconds,
            float(self.failures_total),
            float(self.deadline_misses_total),
        ]
        return Column(series, values if is_absent else [*values, float(self.outcome == "ok")])


def early_seconds(interval_seconds: float) -> float:
    """Give how much earlier than due a thing of this interval may be done.

    >>> early_seconds(1.0), early_seconds(10.0)
    (0.02, 0.02)
    """
    return min(TOGETHER_SECONDS, TOGETHER_RATIO * interval_seconds)
