"""What a source measures: the name, kind and help text of each of its metrics, stated beside the code that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict, Unpack


class MetricKind(StrEnum):
    """What Prometheus calls the type."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a source. Its unit stands in its name; a counter's name ends in `_total`."""

    name: str
    help: str
    """One sentence: what it is, and where it is read."""
    kind: MetricKind = MetricKind.GAUGE
    is_on_page: bool = True
    """Shown on /metrics by default: what dashboards look at and people act on. Frames carry every sample."""
    page_labels: tuple[str, ...] = ()
    """Of its series, those with one of these label values are on /metrics by default; all when it is empty."""
    alias: str = ""
    """A second name on /metrics, which people's dashboards know from another exporter: `DCGM_FI_DEV_GPU_TEMP`.

    Frames never carry it. Its series have that exporter's labels: the sample's `gpu` (index), `uuid`, `pci` and `model`
    become `gpu`, `UUID`, `pci_bus_id` and `modelName`, the page adds `device` and `Hostname`; other labels stay. What
    that exporter calls it by now is in `instep_agent.exposition.dcgm_names`.
    """
    alias_scale: float = 1.0
    """What the value is multiplied with under that name: 100 where ours is a ratio and the other one a percentage."""


class OnPage(TypedDict, total=False):
    """What /metrics does with a metric: the fields of `Metric` of these names."""

    is_on_page: bool
    page_labels: tuple[str, ...]
    alias: str
    alias_scale: float


def gauge(name: str, help: str, **page: Unpack[OnPage]) -> Metric:
    """Give a gauge.

    >>> gauge("instep_host_load1", "Load average of one minute.").kind.value
    'gauge'
    """
    return Metric(name, help, MetricKind.GAUGE, **page)


def counter(name: str, help: str, **page: Unpack[OnPage]) -> Metric:
    """Give a counter.

    >>> counter("instep_rdma_symbol_errors_total", "Symbol errors of a port.").kind.value
    'counter'
    """
    return Metric(name, help, MetricKind.COUNTER, **page)
