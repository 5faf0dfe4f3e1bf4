"""The text of /metrics, made from a snapshot: names in a fixed order, label text made once, series bounded.

Written by hand because it is a few lines: as long as the sources say the same series, only numbers are written anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from instep_agent.columns import Series, column_of
from instep_agent.config import PAGE_SERIES_MAX
from instep_agent.exposition.dcgm_names import Generation, second_labels, second_names
from instep_agent.metric import Metric, gauge
from instep_agent.running.runner import RUNNER_METRICS, Snapshot
from instep_agent.wire import GpuReport, RankReport, Sample

_Labels = tuple[tuple[str, str], ...]
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})

PAGE_METRICS = (
    gauge("instep_agent_page_series_dropped", "Series left out of this page, because there are too many."),
    gauge("instep_agent_page_age_seconds", "Since the agent last made a frame; large when its loop is held up."),
    gauge("instep_rank_step", "Steps that the rank has finished, over the whole run."),
    gauge("instep_rank_heartbeat_age_seconds", "Since the rank's last sign of life, when its record was read."),
    gauge("instep_rank_phase", "1 for the phase that the rank is in."),
)
"""What only the page has; frames carry rank reports."""
FRAMES_ONLY = ("instep_agent_source_failures_total", "instep_agent_source_deadline_misses_total")
"""Of the agent's own, one for each source: state and success tell the same to people."""


class Page:
    """Makes the page. Its order is also the order of importance: when there are too many series, the last ones go.

    First the agent's own, then the ranks, then each source in the order of asking, at last the second names.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        *,
        node: str = "",
        dcgm_names: Generation = "old",
        is_full: bool = False,
        series_max: int = PAGE_SERIES_MAX,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """`metrics` are those of the sources and of the agent's other parts, in the order of their importance.

        `is_full` shows every series that frames have, not only those that are worth a look by themselves.
        """
        known = [*RUNNER_METRICS, *PAGE_METRICS, *metrics]
        shown = known if is_full else [one for one in known if one.is_on_page and one.name not in FRAMES_ONLY]
        self._metrics = {one.name: one for one in shown}
        self._generation = dcgm_names
        self._aliases = second_names(known, dcgm_names)
        self._labels = {} if is_full else {one.name: frozenset(one.page_labels) for one in shown if one.page_labels}
        self._node = node
        self._series_max = series_max
        self._clock_seconds = clock_seconds
        self._about: tuple[Series, ...] = ()
        self._order = [metric.name for metric in (*self._metrics.values(), *self._aliases.values())]
        self._kept = _LaidOut((), (), {})

    def render(self, snapshot: Snapshot) -> bytes:
        """Give the page."""
        age_seconds = self._clock_seconds() - snapshot.made_at_seconds
        about = column_of([Sample(name="instep_agent_page_age_seconds", labels=(), value=age_seconds)], self._about)
        self._about = about.series
        columns = (about, *snapshot.columns)
        values = [value for column in columns for value in column.values]
        families = self._laid_out(tuple(column.series for column in columns), snapshot.gpus).families
        ranks = column_of(rank_samples(snapshot.ranks))  # their phases change from page to page
        families = families | self._lay_out([ranks.series], (), first=len(values))
        values += ranks.values
        texts: list[str] = []
        left = self._series_max - 1  # the last one tells how many were left out
        dropped = 0
        for name in self._order:
            lines = families[name].lines(values) if name in families else []
            dropped += max(0, len(lines) - left)
            if lines and left > 0:
                texts.append(families[name].head)
                texts += lines[:left]
                left -= min(left, len(lines))
        left_out = self._metrics["instep_agent_page_series_dropped"]
        texts += (_head(left_out), f"{left_out.name} {_number(float(dropped))}\n")
        return "".join(texts).encode()

    def _laid_out(self, columns: tuple[tuple[Series, ...], ...], gpus: tuple[GpuReport, ...]) -> _LaidOut:
        """Give the families for these series, those of the last page if it had the same. Threads may ask at once."""
        kept = self._kept
        if gpus != kept.gpus or not _are_same(columns, kept.columns):
            kept = self._kept = _LaidOut(columns, gpus, self._lay_out(columns, gpus))
        return kept

    def _lay_out(
        self, columns: Iterable[tuple[Series, ...]], gpus: Iterable[GpuReport], *, first: int = 0
    ) -> dict[str, _Family]:
        """Give the families by name, each with its lines and where their values will stand, from `first` on."""
        by_name: dict[str, dict[_Labels, int]] = {}
        for at, (name, labels) in enumerate((series for column in columns for series in column), first):
            if (name in self._metrics or name in self._aliases) and self._is_shown(name, labels):
                by_name.setdefault(name, {})[labels] = at
        known = {str(gpu.index): gpu for gpu in gpus}
        families: dict[str, _Family] = {}
        for name, places in by_name.items():
            if name in self._metrics:
                families[name] = _family(self._metrics[name], places)
            if name in self._aliases:
                second = {self._second_labels(labels, known): at for labels, at in places.items()}
                alias = self._aliases[name]
                families[alias.name] = _family(alias, second, alias.alias_scale)
        return families

    def _is_shown(self, name: str, labels: _Labels) -> bool:
        allowed = self._labels.get(name)
        return allowed is None or any(value in allowed for _label, value in labels)

    def _second_labels(self, labels: _Labels, gpus: Mapping[str, GpuReport]) -> _Labels:
        gpu = gpus.get(dict(labels).get("gpu", ""))
        return second_labels(labels, gpu, node=self._node, generation=self._generation)


@dataclass(frozen=True, slots=True)
class _Family:
    """The lines of one metric but for their numbers, which change while these stay."""

    head: str
    starts: tuple[str, ...]
    places: tuple[int, ...]
    """Where the number of each line stands among all values of the columns."""
    scale: float

    def lines(self, values: Sequence[float]) -> list[str]:
        """Give the lines that have a value now."""
        numbers = [values[place] * self.scale for place in self.places]
        return [f"{start}{_number(x)}\n" for start, x in zip(self.starts, numbers, strict=True) if not math.isnan(x)]


@dataclass(frozen=True, slots=True)
class _LaidOut:
    """A page but for its numbers, and what it was made for."""

    columns: tuple[tuple[Series, ...], ...]
    gpus: tuple[GpuReport, ...]
    families: dict[str, _Family]


def _family(metric: Metric, places: Mapping[_Labels, int], scale: float = 1.0) -> _Family:
    starts = tuple(f"{metric.name}{_text(labels)} " for labels in places)
    return _Family(_head(metric), starts, tuple(places.values()), scale)


def _head(metric: Metric) -> str:
    return f"# HELP {metric.name} {metric.help.translate(_HELP_ESCAPES)}\n# TYPE {metric.name} {metric.kind.value}\n"


def _text(labels: _Labels) -> str:
    inner = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(labels))
    return f"{{{inner}}}" if inner else ""


def _are_same(ones: Sequence[object], others: Sequence[object]) -> bool:
    return len(ones) == len(others) and all(one is other for one, other in zip(ones, others, strict=True))


def rank_samples(ranks: Iterable[RankReport]) -> Iterator[Sample]:
    """Yield what the page shows of each rank; of several attempts the newest."""
    newest = {(report.job, report.rank): report for report in sorted(ranks, key=lambda each: each.attempt)}
    for (job, rank), report in sorted(newest.items()):
        labels = (("job", job), ("rank", str(rank)))
        yield Sample(name="instep_rank_step", labels=labels, value=float(report.step))
        yield Sample(name="instep_rank_heartbeat_age_seconds", labels=labels, value=report.heartbeat_age_seconds)
        yield Sample(name="instep_rank_phase", labels=(*labels, ("phase", report.phase)), value=1.0)


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
