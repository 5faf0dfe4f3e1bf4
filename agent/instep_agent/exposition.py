"""The agent's /metrics: its last readings for Prometheus, with labels bounded by what the node holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from instep_agent.errors import ConfigurationInvalid
from instep_agent.runner import Snapshot
from instep_agent.wire import RankReport, Sample

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_RANK_LABELS = ("job", "rank")
REQUEST_TIMEOUT_SECONDS = 5.0


class SnapshotCollector(Collector):
    """Gives what the agent knows at the moment of the scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield samples as they are, then the ranks."""
        snapshot = self._snapshot()
        yield from _families(snapshot.samples)
        yield from _rank_families(snapshot.ranks)


def _families(samples: Iterable[Sample]) -> Iterable[Metric]:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for sample in samples:
        names = [name for name, _ in sample.labels]
        if sample.name not in families:
            kind = CounterMetricFamily if sample.name.endswith("_total") else GaugeMetricFamily
            families[sample.name] = kind(sample.name, "See docs/reference/wire.md.", labels=names)
        families[sample.name].add_metric([value for _, value in sample.labels], sample.value)
    yield from families.values()


def _rank_families(ranks: Iterable[RankReport]) -> Iterable[Metric]:
    step = GaugeMetricFamily("instep_rank_step", "Steps finished, over the whole run.", labels=_RANK_LABELS)
    age = GaugeMetricFamily(
        "instep_rank_heartbeat_age_seconds", "Since the rank's last sign of life.", labels=_RANK_LABELS
    )
    phase = GaugeMetricFamily("instep_rank_phase", "1 for the phase the rank is in.", labels=(*_RANK_LABELS, "phase"))
    newest = {(report.job, report.rank): report for report in sorted(ranks, key=lambda each: each.attempt)}
    for (job, rank), report in sorted(newest.items()):
        step.add_metric([job, str(rank)], report.step)
        age.add_metric([job, str(rank)], report.heartbeat_age_seconds)
        phase.add_metric([job, str(rank), report.phase], 1.0)
    yield from (step, age, phase)


class Exposition:
    """An HTTP server with one page; `close` it."""

    def __init__(self, address: str, snapshot: Callable[[], Snapshot]) -> None:
        """Listen on `HOST:PORT`; raise ConfigurationInvalid when that cannot be."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigurationInvalid(f"The address {address!r} is not HOST:PORT.")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(SnapshotCollector(snapshot))
        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), _handler(registry))
        except (OSError, OverflowError) as error:
            raise ConfigurationInvalid(
                f"Cannot listen on {address} ({getattr(error, 'strerror', error)}): choose another "
                "--listen address, or stop what uses it."
            ) from error
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, name="metrics", kwargs={"poll_interval": 0.1}, daemon=True
        ).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _handler(registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET /metrics."""

        timeout = REQUEST_TIMEOUT_SECONDS

        def do_GET(self) -> None:
            """Send the page, or 404."""
            is_metrics = self.path.split("?")[0] == "/metrics"
            body = generate_latest(registry) if is_metrics else b"The agent has one page: /metrics.\n"
            self.send_response(200 if is_metrics else 404)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A scrape is not worth a line."""

    return Handler
