"""The text of /metrics, made from a snapshot: names in a fixed order, label text made once, series bounded.

Written by hand because it is a few lines, and a page of 1,500 series then takes 2 ms instead of 20.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from instep_agent.config import PAGE_SERIES_MAX
from instep_agent.metric import Metric, gauge
from instep_agent.running.runner import RUNNER_METRICS, Snapshot
from instep_agent.wire import GpuReport, RankReport, Sample

_LABEL_TEXTS_MAX = 20_000
_Labels = tuple[tuple[str, str], ...]
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})
_DCGM_LABELS = {"uuid": "UUID", "pci": "pci_bus_id", "model": "modelName"}

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
        dcgm_names: bool = True,
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
        aliases = [one for one in shown if one.alias] if dcgm_names else []
        self._aliases = {one.name: replace(one, name=one.alias) for one in aliases}
        self._labels = {} if is_full else {one.name: frozenset(one.page_labels) for one in shown if one.page_labels}
        self._node = node
        self._series_max = series_max
        self._clock_seconds = clock_seconds
        self._texts: dict[_Labels, str] = {}

    def render(self, snapshot: Snapshot) -> bytes:
        """Give the page."""
        by_name: dict[str, dict[_Labels, float]] = {name: {} for name in self._metrics}
        age = Sample(
            name="instep_agent_page_age_seconds", labels=(), value=self._clock_seconds() - snapshot.made_at_seconds
        )
        for sample in (age, *snapshot.samples, *rank_samples(snapshot.ranks)):
            family = by_name.get(sample.name)
            if family is not None and not math.isnan(sample.value) and self._is_shown(sample):
                family[sample.labels] = sample.value
        lines: list[str] = []
        left = self._series_max - 1  # the last one tells how many were left out
        dropped = 0
        for metric, values in (*self._own(by_name), *self._others(by_name, snapshot.gpus)):
            shown = len(values) if len(values) <= left else left
            dropped += len(values) - shown
            left -= shown
            lines += self._family(metric, values, shown)
        lines += self._family(self._metrics["instep_agent_page_series_dropped"], {(): float(dropped)}, 1)
        return "".join(lines).encode()

    def _is_shown(self, sample: Sample) -> bool:
        allowed = self._labels.get(sample.name)
        return allowed is None or any(value in allowed for _label, value in sample.labels)

    def _own(self, by_name: Mapping[str, dict[_Labels, float]]) -> Iterator[tuple[Metric, dict[_Labels, float]]]:
        for name, values in by_name.items():
            if values:
                yield self._metrics[name], values

    def _others(
        self, by_name: Mapping[str, dict[_Labels, float]], gpus: Iterable[GpuReport]
    ) -> Iterator[tuple[Metric, dict[_Labels, float]]]:
        known = {str(gpu.index): gpu for gpu in gpus}
        for name, metric in self._aliases.items():
            if by_name[name]:
                scale = metric.alias_scale
                values = {self._dcgm(labels, known): value * scale for labels, value in by_name[name].items()}
                yield metric, values

    def _dcgm(self, labels: _Labels, gpus: Mapping[str, GpuReport]) -> _Labels:
        """Give the labels under which dcgm-exporter shows the same thing."""
        found = {_DCGM_LABELS.get(name, name): value for name, value in labels}
        index = found.get("gpu", "")
        gpu = gpus.get(index)
        if gpu is not None:
            found.setdefault("UUID", gpu.uuid)
            found.setdefault("pci_bus_id", gpu.pci)
        if index:
            found["device"] = f"nvidia{index}"
        return tuple((found | {"Hostname": self._node}).items())

    def _family(self, metric: Metric, values: Mapping[_Labels, float], shown: int) -> Iterator[str]:
        if shown > 0:
            yield f"# HELP {metric.name} {metric.help.translate(_HELP_ESCAPES)}\n"
            yield f"# TYPE {metric.name} {metric.kind.value}\n"
        for (labels, value), _ in zip(values.items(), range(shown), strict=False):
            yield f"{metric.name}{self._texts.get(labels) or self._text(labels)} {_number(value)}\n"

    def _text(self, labels: _Labels) -> str:
        if len(self._texts) >= _LABEL_TEXTS_MAX:  # ranks come and go
            self._texts.clear()
        inner = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(labels))
        text = self._texts[labels] = f"{{{inner}}}" if inner else ""
        return text


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
