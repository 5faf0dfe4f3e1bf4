"""Prometheus alerts for what the server cannot tell by itself, because it is down, deaf or not allowed to decide.

Incidents reach people by the server's own messages; `InstepIncidentOpen` is for those who let
Prometheus say everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

GUIDE = "guide/dashboards.md"


class Severity(StrEnum):
    """How fast a person is needed."""

    PAGE = "page"
    """Now, whatever the hour."""
    TICKET = "ticket"
    """In working hours."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert."""

    name: str
    expr: str
    for_: str
    severity: Severity
    summary: str
    description: str
    docs: str = ""
    """Page of the runbook under the documentation's root; without it the alert's section in the guide."""

    def runbook(self, docs_url: str) -> str:
        """Where the runbook is."""
        return f"{docs_url.rstrip('/')}/{self.docs or f'{GUIDE}#{self.name.lower()}'}"


RULES = (
    Rule(
        "InstepServerDown",
        "absent(instep_detector_tick_seconds_count)",
        "2m",
        Severity.PAGE,
        "The Instep server is not seen",
        "Prometheus has had no metrics of the Instep server for 2 minutes: no hang is found, and nobody is told of "
        "incidents. Jobs go on, and their supervisors decide by themselves.",
    ),
    Rule(
        "InstepServerIngestStalled",
        "sum(rate(instep_ingest_frames_total[2m])) == 0 and on() sum(instep_nodes_reporting + instep_nodes_silent) > 0",
        "2m",
        Severity.PAGE,
        "The Instep server takes no frames",
        "Agents were known within the last day, and none of their frames is taken: the network, the tokens, or the "
        "disk of the journal.",
    ),
    Rule(
        "InstepDetectorsFail",
        "sum(rate(instep_detector_tick_errors_total[5m])) > 0 "
        "or sum(rate(instep_detector_tick_seconds_count[5m])) == 0",
        "2m",
        Severity.PAGE,
        "The detectors of the Instep server fail",
        "The server answers, but its looks at the jobs fail or have stopped: no hang is found. Its log says why.",
    ),
    Rule(
        "InstepMessagesNotDelivered",
        'sum(increase(instep_webhook_deliveries_total{outcome="failed"}[15m])) > 0 '
        'unless on() sum(increase(instep_webhook_deliveries_total{outcome="delivered"}[15m])) > 0 '
        "or max(min_over_time(instep_alerts_pending[10m])) > 0",
        "5m",
        Severity.PAGE,
        "Instep cannot reach the people on call",
        "The webhook took no message for 15 minutes, or an Alertmanager no alert for 10, although there were some. "
        "They are kept and tried again.",
    ),
    Rule(
        "InstepIncidentOpen",
        'max by (job, kind) (instep_job_incidents_open{drill="false"}) > 0',
        "1m",
        Severity.PAGE,
        "{{ $labels.kind }} in job {{ $labels.job }}",
        "{{ $value }} incident(s) of kind {{ $labels.kind }} are open in job {{ $labels.job }} for more than a minute: "
        "see `instep incidents list`.",
        docs="runbooks/{{ $labels.kind }}.md",
    ),
    Rule(
        "InstepPlanWaitsForApproval",
        'max(instep_plans{state="waiting"}) > 0',
        "15m",
        Severity.TICKET,
        "{{ $value }} plan(s) wait for a decision",
        "Nothing is done about these nodes until a person decides: see `instep plans list`.",
    ),
    Rule(
        "InstepBreakerOpen",
        "max(instep_breaker_open) > 0",
        "1m",
        Severity.TICKET,
        "Instep changes no node by itself any more",
        "Node plans failed in a row, so the breaker opened: what the policy would do by itself waits for approval "
        "until a person has looked and reset it (`instep policy show` says why).",
    ),
    Rule(
        "InstepNodeSilent",
        "max by (node) (instep_node_silent_seconds) > 60",
        "1m",
        Severity.TICKET,
        "Node {{ $labels.node }} is silent",
        "The agent of {{ $labels.node }} was not heard of for {{ $value | humanizeDuration }}: what happens there is "
        "unknown.",
    ),
    Rule(
        "InstepAgentSourceFailing",
        "max by (instance, source) (instep_agent_source_success) == 0",
        "5m",
        Severity.TICKET,
        "Source {{ $labels.source }} fails on {{ $labels.instance }}",
        "The agent on {{ $labels.instance }} could not read {{ $labels.source }} for 5 minutes: faults of that kind "
        "are not seen there. The agent's log says what to change.",
    ),
)


def as_yaml(docs_url: str) -> str:
    """Give the rule file. Strings are quoted as in JSON, which is YAML as well, so no value can be mistaken."""
    return "\n".join(["groups:", "  - name: instep", "    rules:", *_lines(docs_url)]) + "\n"


def _lines(docs_url: str) -> Iterator[str]:
    for rule in RULES:
        yield f"      - alert: {rule.name}"
        yield f"        expr: {_quoted(rule.expr)}"
        yield f"        for: {rule.for_}"
        yield "        labels:"
        yield f"          severity: {rule.severity.value}"
        yield "        annotations:"
        yield f"          summary: {_quoted(rule.summary)}"
        yield f"          description: {_quoted(rule.description)}"
        yield f"          runbook_url: {_quoted(rule.runbook(docs_url))}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
