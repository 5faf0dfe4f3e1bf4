"""How each source is doing, kept apart as *ok*, *absent*, *failed* and *stuck*, and the samples that say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from instep_agent.drills import DRILL_LABEL
from instep_agent.metric import counter, gauge
from instep_agent.node import Source
from instep_agent.wire import GpuReport, RankReport, Sample

OUTCOMES = {"ok": 0.0, "absent": 1.0, "failed": 2.0, "stuck": 3.0}
SAID_ONCE_MAX = 100
TOGETHER_SECONDS, TOGETHER_RATIO = 0.1, 0.05
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
    samples: tuple[Sample, ...] = ()
    ranks: tuple[RankReport, ...] = ()
    gpus: tuple[GpuReport, ...] = ()
    metric_names: frozenset[str] = frozenset()
    early_seconds: float = 0.0
    unknown_names: set[str] = field(default_factory=set)
    """Names of samples that were dropped, each said once."""

    def __post_init__(self) -> None:
        self.metric_names = frozenset(metric.name for metric in self.source.metrics)
        self.early_seconds = early_seconds(self.source.interval_seconds)

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    def is_due(self, now_seconds: float) -> bool:
        """Whether it is asked now, or so soon that it is asked now too."""
        return self.next_due_seconds <= now_seconds + self.early_seconds

    def about(self) -> Iterator[Sample]:
        """Yield the samples about the source itself. One that is absent has no success to report."""
        if not self.outcome:
            return
        labels = (*((DRILL_LABEL,) if self.is_drill else ()), ("source", self.name))
        values = [
            ("instep_agent_source_state", OUTCOMES[self.outcome]),
            ("instep_agent_source_duration_seconds", self.duration_seconds),
            ("instep_agent_source_failures_total", float(self.failures_total)),
            ("instep_agent_source_deadline_misses_total", float(self.deadline_misses_total)),
        ]
        if self.outcome != "absent":
            values.append(("instep_agent_source_success", float(self.outcome == "ok")))
        for name, value in values:
            yield Sample(name=name, labels=labels, value=value)


def early_seconds(interval_seconds: float) -> float:
    """Give how much earlier than due a thing of this interval may be done.

    >>> early_seconds(1.0), early_seconds(10.0)
    (0.05, 0.1)
    """
    return min(TOGETHER_SECONDS, TOGETHER_RATIO * interval_seconds)
