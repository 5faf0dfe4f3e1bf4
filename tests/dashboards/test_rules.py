"""Every alert fires on the series that it is for, and is silent on their healthy twins: `promtool test rules`."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from instep_dashboards.rules import RULES

RULE_FILE = Path(__file__).parents[2] / "dashboards" / "generated" / "rules" / "instep.yaml"
BY_NAME = {rule.name: rule for rule in RULES}
TICKS = "instep_detector_tick_seconds_count"
FRAMES = "instep_ingest_frames_total"
DELIVERIES = "instep_webhook_deliveries_total"


@dataclass(frozen=True)
class Case:
    """Series (name → promtool's values, a point a minute) on which an alert fires, and twins on which it does not."""

    fires: dict[str, str]
    silent: tuple[dict[str, str], ...]
    at: str = "15m"
    early: str = ""
    """A moment on the firing series before the alert's patience is over."""
    labels: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    """What stands in place of each template."""


CASES = {
    "InstepServerDown": Case(
        fires={TICKS: "0+240x3 stale"},
        silent=({TICKS: "0+240x30"}, {TICKS: "0+240x14 stale"}),
        early="4m",
    ),
    "InstepServerIngestStalled": Case(
        fires={FRAMES: "600x30", "instep_nodes_reporting": "0x30", "instep_nodes_silent": "10x30"},
        silent=(
            {FRAMES: "0+600x30", "instep_nodes_reporting": "10x30", "instep_nodes_silent": "0x30"},
            {FRAMES: "0x30", "instep_nodes_reporting": "0x30", "instep_nodes_silent": "0x30"},
        ),
        early="2m",
    ),
    "InstepDetectorsFail": Case(
        fires={"instep_detector_tick_errors_total": "0+240x30", TICKS: "0+240x30"},
        silent=({"instep_detector_tick_errors_total": "0x30", TICKS: "0+240x30"},),
        early="2m",
    ),
    "InstepMessagesNotDelivered": Case(
        fires={f'{DELIVERIES}{{outcome="failed"}}': "0+1x30"},
        silent=(
            {f'{DELIVERIES}{{outcome="failed"}}': "0+1x30", f'{DELIVERIES}{{outcome="delivered"}}': "0+1x30"},
            {f'{DELIVERIES}{{outcome="delivered"}}': "0+1x30"},
            {f'{DELIVERIES}{{outcome="failed"}}': "7x30"},
        ),
        early="4m",
    ),
    "InstepIncidentOpen": Case(
        fires={'instep_job_incidents_open{job="gpt",kind="hang",drill="false"}': "0 0 1x30"},
        silent=(
            {'instep_job_incidents_open{job="gpt",kind="hang",drill="true"}': "1x30"},
            {'instep_job_incidents_open{job="gpt",kind="hang",drill="false"}': "1x5 0x30"},
        ),
        early="2m",
        labels={"job": "gpt", "kind": "hang"},
        said={"{{ $labels.kind }}": "hang", "{{ $labels.job }}": "gpt", "{{ $value }}": "1"},
    ),
    "InstepPlanWaitsForApproval": Case(
        fires={'instep_plans{state="waiting"}': "2x60", 'instep_plans{state="done"}': "9x60"},
        silent=({'instep_plans{state="waiting"}': "0x60", 'instep_plans{state="done"}': "9x60"},),
        at="20m",
        early="14m",
        said={"{{ $value }}": "2"},
    ),
    "InstepBreakerOpen": Case(
        fires={"instep_breaker_open": "0 0 1x30"},
        silent=({"instep_breaker_open": "0x30"}, {"instep_breaker_open": "1 1 0x30"}),
        early="2m",
    ),
    "InstepNodeSilent": Case(
        fires={'instep_node_silent_seconds{node="gpu-17"}': "_ 20+60x30"},
        silent=({'instep_node_silent_seconds{node="gpu-17"}': "_ 20 50 stale"}, {"instep_nodes_silent": "3x30"}),
        early="2m",
        labels={"node": "gpu-17"},
        said={"{{ $labels.node }}": "gpu-17", "{{ $value | humanizeDuration }}": "14m 20s"},
    ),
    "InstepAgentSourceFailing": Case(
        fires={
            'instep_agent_source_success{instance="gpu-17:9100",source="host"}': "1 1 0x30",
            'instep_agent_source_success{instance="gpu-17:9100",source="kernel_log"}': "1x30",
        },
        silent=(
            {'instep_agent_source_success{instance="gpu-17:9100",source="host"}': "1x9 0x3 1x30"},
            {'instep_agent_source_state{instance="gpu-17:9100",source="gpu_inventory"}': "1x30"},
        ),
        early="6m",
        labels={"instance": "gpu-17:9100", "source": "host"},
        said={"{{ $labels.source }}": "host", "{{ $labels.instance }}": "gpu-17:9100"},
    ),
}


def expected(name: str, case: Case) -> dict:
    """The one alert, with its words filled in."""
    rule = BY_NAME[name]
    words = {"summary": rule.summary, "description": rule.description, "runbook_url": rule.runbook("docs")}
    for template, value in case.said.items():
        words = {key: text.replace(template, value) for key, text in words.items()}
    assert "{{" not in str(words), "the case leaves a template open"
    return {"exp_labels": {"severity": rule.severity.value, **case.labels}, "exp_annotations": words}


def timeline(name: str, series: dict[str, str], at: str, alerts: list[dict]) -> dict:
    values = [{"series": one, "values": text} for one, text in series.items()]
    return {
        "interval": "1m",
        "input_series": values,
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": alerts}],
    }


def promtool_says(promtool: str, folder: Path, *timelines: dict) -> subprocess.CompletedProcess[str]:
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULE_FILE)], "tests": list(timelines)}))
    return subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, timeout=60)


def test_the_rule_file_is_valid(promtool):
    run = subprocess.run([promtool, "check", "rules", str(RULE_FILE)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(RULES)} rules found" in run.stdout


def test_every_alert_has_its_case():
    assert set(CASES) == set(BY_NAME)


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_on_what_it_is_for(promtool, tmp_path, name):
    case = CASES[name]
    run = promtool_says(promtool, tmp_path, timeline(name, case.fires, case.at, [expected(name, case)]))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", CASES)
def test_an_alert_is_silent_on_the_healthy_twin_and_before_its_patience_is_over(promtool, tmp_path, name):
    case = CASES[name]
    twins = [timeline(name, series, case.at, []) for series in case.silent]
    run = promtool_says(promtool, tmp_path, *twins, timeline(name, case.fires, case.early, []))
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_wrong_expectation_would_be_noticed(promtool, tmp_path):
    case = CASES["InstepServerDown"]
    assert promtool_says(promtool, tmp_path, timeline("InstepServerDown", case.fires, case.at, [])).returncode == 1


def test_alerts_that_no_alertmanager_takes_are_told(promtool, tmp_path):
    name = "InstepMessagesNotDelivered"
    pending = 'instep_alerts_pending{receiver="http://alertmanager:9093"}'
    alert = expected(name, CASES[name])
    stuck, flickering = {pending: "0 2x30"}, {pending: "0 2 0 1 0 3 0 2 0 1 0 2 0 1 0 2 0 1 0 1"}
    timelines = [timeline(name, stuck, "18m", [alert]), timeline(name, flickering, "18m", [])]
    run = promtool_says(promtool, tmp_path, *timelines)
    assert run.returncode == 0, run.stdout + run.stderr


def test_detectors_that_stand_still_are_told_as_well_as_those_that_fail(promtool, tmp_path):
    series = {TICKS: "9000x30", "instep_detector_tick_errors_total": "0x30"}
    alert = expected("InstepDetectorsFail", CASES["InstepDetectorsFail"])
    run = promtool_says(promtool, tmp_path, timeline("InstepDetectorsFail", series, "15m", [alert]))
    assert run.returncode == 0, run.stdout + run.stderr
