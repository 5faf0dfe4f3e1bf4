"""What the server says of itself and of the jobs, for Prometheus. Labels are bounded: kinds, states, and live jobs up
to a limit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from instep_agent.metric import Metric as Declared
from instep_agent.metric import MetricKind, counter, gauge
from instep_diagnosis.verdict import Kind
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from instep_collector.clock import Clock
from instep_collector.errors import StoreAway
from instep_collector.intake import Intake
from instep_collector.job_metrics import JOB_METRICS, look
from instep_collector.journal import Journal
from instep_collector.registry import Registry
from instep_collector.store import breaker, counts
from instep_collector.store.engine import Store

JOBS_MAX = 256
"""Jobs in the exposition; the rest is counted only."""
NODE_SILENT_SECONDS = 15.0
"""A node whose agent was not heard of for longer is silent: unknown, not healthy."""
NODE_GONE_SECONDS = 86_400.0
"""A node that was not heard of for a day is taken to be removed, and counts no more."""
NODES_NAMED_MAX = 64
"""Silent nodes that are named; the others are counted only."""
NO_JOB = "(none)"
"""Of an incident of a node alone; an empty label would be taken for the scrape's own `job`."""

FRAMES = counter("instep_ingest_frames_total", "Frames taken.")
DUPLICATES = counter("instep_ingest_frames_duplicate_total", "Frames that had been taken before.")
REPORTS = counter("instep_ingest_reports_total", "Supervisors' reports taken.")
EVENTS = counter("instep_ingest_events_total", "Node events taken.")
EVENTS_WAITING = gauge("instep_ingest_events_waiting", "Node events in the journal that the store does not hold yet.")
JOURNAL_BYTES = counter("instep_journal_written_bytes_total", "Bytes written to the journal.")
NODES = gauge("instep_nodes", "Nodes whose agents have sent frames.")
NODES_REPORTING = gauge("instep_nodes_reporting", "Nodes whose agents were heard of within 15 s.")
NODES_SILENT = gauge("instep_nodes_silent", "Nodes whose agents were not heard of for 15 s, but within a day.")
NODE_SILENT = gauge("instep_node_silent_seconds", "Since the agent of a silent node was heard of.")
JOBS_LIVE = gauge("instep_jobs_live", "Live runs.")
JOB_INCIDENTS = gauge("instep_job_incidents_open", "Open incidents by job; of a node alone the job is (none).")
PLANS = gauge("instep_plans", "Plans by state; one that waits is a proposal that nobody has decided.")
BREAKER_OPEN = gauge("instep_breaker_open", "1 while nothing is done to nodes without approval, until it is reset.")
ORDERS_KEPT = gauge("instep_orders_kept", "Orders to coordinators in the store, by outcome.")

PLAN_STATES = ("waiting", "approved", "executing", "done", "failed", "rejected", "cancelled", "closed")
STEP_OUTCOMES = ("done", "failed")
ORDER_OUTCOMES = ("pending", "done", "refused", "expired", "obsolete")
ORDER_ACTIONS = ("dump", "restart")
"""What the server orders by itself; others appear once they were ordered."""

LIVE = (
    *(each.metric for each in JOB_METRICS),
    *(FRAMES, DUPLICATES, REPORTS, EVENTS, EVENTS_WAITING, JOURNAL_BYTES, NODES, NODES_REPORTING, NODES_SILENT),
    *(NODE_SILENT, JOBS_LIVE, JOB_INCIDENTS, PLANS, BREAKER_OPEN, ORDERS_KEPT),
)
"""Every metric that is read where it lives when Prometheus asks."""

log = logging.getLogger(__name__)
Rows = Iterable[tuple[tuple[str, ...], float]]


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
        self.faults_waiting = Gauge(
            "instep_faults_waiting",
            "Fatal faults of nodes that are due and wait for their incident: few are opened in one look.",
            registry=self.registry,
        )
        self.faults_dropped = Counter(
            "instep_faults_dropped_total",
            "Fatal faults of nodes that open nothing, since too many waited.",
            registry=self.registry,
        )
        self.orders = Counter(
            "instep_orders_total", "Orders given to coordinators.", ["action"], registry=self.registry
        )
        self.webhooks = Counter(
            "instep_webhook_deliveries_total", "Tries to deliver a message.", ["outcome"], registry=self.registry
        )
        self.alerts_sent = Counter(
            "instep_alerts_sent_total", "Alerts sent to Alertmanager.", ["receiver", "outcome"], registry=self.registry
        )
        self.alerts_pending = Gauge(
            "instep_alerts_pending",
            "Alerts that an Alertmanager has not taken yet.",
            ["receiver"],
            registry=self.registry,
        )
        self.plan_steps = Counter(
            "instep_plan_steps_total",
            "Steps of node actions that ended since the server started.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in STEP_OUTCOMES:
            self.plan_steps.labels(outcome)
        for kind in Kind:
            self.incidents_open.labels(kind.value).set(0)

    def watch(self, clock: Clock, registry: Registry, intake: Intake, journal: Journal, store: Store) -> None:
        """Expose jobs, nodes, intake and plans from their owners at each scrape."""
        self.registry.register(_Live(clock, registry, intake, journal, store))

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)


def metric_names() -> frozenset[str]:
    """Return the name of every series that a server may expose, without those of the client library.

    >>> {"instep_job_step", "instep_incidents_total", "instep_detector_tick_seconds_bucket"} <= metric_names()
    True
    """
    endings = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    own = [
        family.name + ending for family in Metrics().registry.collect() for ending in endings.get(family.type, ("",))
    ]
    return frozenset((*own, *(declared.name for declared in LIVE)))


class _Live(Collector):
    """Reads values where they live when Prometheus asks."""

    def __init__(self, clock: Clock, registry: Registry, intake: Intake, journal: Journal, store: Store) -> None:
        self._clock = clock
        self._registry = registry
        self._intake = intake
        self._journal = journal
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield what is known of jobs, nodes, intake and store."""
        now = self._clock.monotonic()
        yield from self._jobs(now)
        yield from self._nodes(now)
        yield from self._intake_counts()
        try:
            yield from self._stored()
        except StoreAway:  # The detector loop counts it as an error; the rest of the page is still true.
            log.exception("Incidents, plans and orders are not on /metrics: the store does not answer.")

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: names are checked when they are collected."""
        return iter(())

    def _jobs(self, now: float) -> Iterator[Metric]:
        live = list(self._registry.live(now))
        by_job = {run.job: run for run in sorted(live, key=lambda run: run.heard_at)[-JOBS_MAX:]}
        looks = {job: look(run, now) for job, run in sorted(by_job.items())}
        for each in JOB_METRICS:
            rows = (((job, *labels), value) for job, seen in looks.items() for labels, value in each.read(seen))
            yield _family(each.metric, rows, "job", *each.labels)
        yield _family(JOBS_LIVE, [((), len(live))])

    def _nodes(self, now: float) -> Iterator[Metric]:
        ages = {node.node: now - node.heard_at for node in self._registry.nodes.values()}
        silent = {node: age for node, age in ages.items() if NODE_SILENT_SECONDS < age <= NODE_GONE_SECONDS}
        named = sorted(silent, key=lambda node: silent[node])[:NODES_NAMED_MAX]
        yield _family(NODES, [((), len(ages))])
        yield _family(NODES_REPORTING, [((), sum(age <= NODE_SILENT_SECONDS for age in ages.values()))])
        yield _family(NODES_SILENT, [((), len(silent))])
        yield _family(NODE_SILENT, [((node,), silent[node]) for node in named], "node")

    def _intake_counts(self) -> Iterator[Metric]:
        for declared, value in (
            (FRAMES, self._intake.frames_total),
            (DUPLICATES, self._intake.duplicates_total),
            (REPORTS, self._intake.reports_total),
            (EVENTS, self._intake.events_total),
            (EVENTS_WAITING, len(self._intake.events_waiting)),
            (JOURNAL_BYTES, self._journal.written_bytes_total),
        ):
            yield _family(declared, [((), value)])

    def _stored(self) -> Iterator[Metric]:
        with self._store.begin() as session:
            incidents = counts.open_incidents(session, limit=JOBS_MAX * len(Kind))
            plans, orders = counts.plans(session), counts.orders(session)
            is_open = breaker.is_open(session)
        by_job = (
            ((job or NO_JOB, kind, str(drill).lower()), number) for (job, kind, drill), number in incidents.items()
        )
        by_state = dict.fromkeys(PLAN_STATES, 0) | plans
        yield _family(JOB_INCIDENTS, by_job, "job", "kind", "drill")
        yield _family(PLANS, (((state,), number) for state, number in by_state.items()), "state")
        yield _family(BREAKER_OPEN, [((), float(is_open))])
        known = {(action, outcome): 0 for action in ORDER_ACTIONS for outcome in ORDER_OUTCOMES}
        known |= {(action, outcome or "pending"): number for (action, outcome), number in orders.items()}
        yield _family(ORDERS_KEPT, known.items(), "action", "outcome")


def _family(declared: Declared, rows: Rows, *labels: str) -> Metric:
    """Give a declared metric with its rows of (label values, value)."""
    kind: Any = CounterMetricFamily if declared.kind is MetricKind.COUNTER else GaugeMetricFamily
    family: GaugeMetricFamily | CounterMetricFamily = kind(declared.name, declared.help, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family
