"""What the server says of itself and of the jobs, for Prometheus. Labels are bounded: kinds, states, and live jobs up
to a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from instep_diagnosis.verdict import Kind
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from instep_collector.clock import Clock
from instep_collector.intake import Intake
from instep_collector.journal import Journal
from instep_collector.registry import Registry

JOBS_MAX = 256
"""Jobs in the exposition; the rest is counted only."""
STEPS_RECENT = 10


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tick_seconds = Histogram(
            "instep_detector_tick_seconds", "Time of one look at all runs.", registry=self.registry
        )
        self.tick_errors = Counter("instep_detector_tick_errors_total", "Looks that failed.", registry=self.registry)
        self.incidents_open = Gauge("instep_incidents_open", "Open incidents.", ["kind"], registry=self.registry)
        self.incidents = Counter(
            "instep_incidents_total",
            "Incidents opened since the server started.",
            ["kind", "drill"],
            registry=self.registry,
        )
        self.suspects_open = Gauge(
            "instep_suspects_open",
            "Suspected stalls without evidence: shown, never acted upon.",
            registry=self.registry,
        )
        self.orders = Counter(
            "instep_orders_total", "Orders given to coordinators.", ["action"], registry=self.registry
        )
        self.webhooks = Counter(
            "instep_webhook_deliveries_total", "Tries to deliver a message.", ["outcome"], registry=self.registry
        )
        for kind in Kind:
            self.incidents_open.labels(kind.value).set(0)

    def watch(self, clock: Clock, registry: Registry, intake: Intake, journal: Journal) -> None:
        """Expose jobs and intake from their owners at each scrape."""
        self.registry.register(_Live(clock, registry, intake, journal))

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)


class _Live(Collector):
    """Reads values where they live when Prometheus asks."""

    def __init__(self, clock: Clock, registry: Registry, intake: Intake, journal: Journal) -> None:
        self._clock = clock
        self._registry = registry
        self._intake = intake
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        """Yield job and intake metrics."""
        yield from self._jobs()
        for name, text, value in (
            ("instep_ingest_frames", "Frames taken.", self._intake.frames_total),
            ("instep_ingest_frames_duplicate", "Frames that had been taken before.", self._intake.duplicates_total),
            ("instep_ingest_reports", "Supervisors' reports taken.", self._intake.reports_total),
            ("instep_ingest_events", "Node events taken.", self._intake.events_total),
            ("instep_journal_written_bytes", "Bytes written to the journal.", self._journal.written_bytes_total),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("instep_nodes", "Nodes whose agents have sent frames.", value=len(self._registry.nodes))

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: names are checked when they are collected."""
        return iter(())

    def _jobs(self) -> Iterator[Metric]:
        step = GaugeMetricFamily("instep_job_step", "Steps that every rank has finished.", labels=["job"])
        seconds = GaugeMetricFamily("instep_job_step_seconds", "Median wall time of recent steps.", labels=["job"])
        attempt = GaugeMetricFamily("instep_job_attempt", "The running attempt.", labels=["job"])
        live = list(self._registry.live(self._clock.monotonic()))
        by_job = {run.job: run for run in sorted(live, key=lambda run: run.heard_at)[-JOBS_MAX:]}
        for job, run in sorted(by_job.items()):
            board = run.current()
            step.add_metric([job], board.step())
            attempt.add_metric([job], run.attempt)
            recent = [s.wall_seconds for steps in board.steps.values() for s in list(steps)[-STEPS_RECENT:]]
            if recent:
                seconds.add_metric([job], median(recent))
        yield from (step, seconds, attempt)
        yield GaugeMetricFamily("instep_jobs_live", "Live runs.", value=len(live))
