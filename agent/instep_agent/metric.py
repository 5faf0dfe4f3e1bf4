"""What a source measures: the name, kind and help text of each of its metrics, stated beside the code that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    """Shown on /metrics. Frames carry every sample; the page holds what people's dashboards look at."""
    alias: str = ""
    """A second name on /metrics, for dashboards that know another exporter's: `DCGM_FI_DEV_GPU_TEMP`. Frames have none.

    Such series carry that exporter's labels too (gpu, UUID, pci_bus_id, device, modelName, Hostname), so a source that
    states an alias gives its samples those that it knows; the page adds Hostname, the node's name.
    """


def gauge(name: str, help: str, *, is_on_page: bool = True, alias: str = "") -> Metric:
    """Give a gauge.

    >>> gauge("instep_host_load1", "Load average of one minute.").kind.value
    'gauge'
    """
    return Metric(name, help, MetricKind.GAUGE, is_on_page, alias)


def counter(name: str, help: str, *, is_on_page: bool = True, alias: str = "") -> Metric:
    """Give a counter.

    >>> counter("instep_rdma_symbol_errors_total", "Symbol errors of a port.").kind.value
    'counter'
    """
    return Metric(name, help, MetricKind.COUNTER, is_on_page, alias)
