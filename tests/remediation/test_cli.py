"""People decide from the command line: what changes nodes is shown first and needs --apply; exit codes tell the end."""

import json
import sys
import time
from pathlib import Path

import pytest
from instep_collector.clock import SystemClock
from instep_remediation import cli

from tests.remediation.fake_job import FakeJob
from tests.remediation.test_server_death import ask, real_server

PROGRAM = (sys.executable, str(Path(__file__).with_name("scripted.py")))
END_SECONDS = 20.0


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A real server with the scripted executor, an incident, its plan and three nodes."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "deaths").write_text("")
    (folder / "server.toml").write_text('executor = "scripted"\n')
    (folder / "policy.toml").write_text("[nodes]\nunavailable_max = 2\n")
    options = ("--config", str(folder / "server.toml"), "--policy", str(folder / "policy.toml"))
    patch = pytest.MonkeyPatch()
    patch.setenv("INSTEP_SCRIPTED", str(folder))
    job, clock = FakeJob(), SystemClock()
    with real_server(folder, *options, program=PROGRAM) as (_, said):
        ask(said, "/control/v1/reports", job.opened())
        for frame in job.frames(job.healthy(), clock, {"node-b": (job.xid(),)}):
            ask(said, "/ingest/v1/frames", frame)
        ask(said, "/control/v1/reports", job.exited(2))
        (order,) = ask(said, "/control/v1/orders?run=run-1&wait_seconds=10")["orders"]
        for report in job.restarted(order["id"], ("node-a", "node-c")):
            ask(said, "/control/v1/reports", report)
        patch.setenv("INSTEP_SERVER", said["url"])
        patch.setenv("INSTEP_TOKEN_FILE", said["token_file"])
        yield said
    patch.undo()


def until_done(ready, plan):
    """Ask until a plan is carried out."""
    end = time.monotonic() + END_SECONDS
    while (now := ask(ready, f"/api/v1/plans/{plan}"))["state"] in ("approved", "executing"):
        assert time.monotonic() < end, now
    return now


def test_a_plan_is_looked_at_approved_and_carried_out(ready, capsys):
    assert cli.plans(["dry-run", "1"]) == 0
    assert "1. cordon node-b" in capsys.readouterr().out
    assert cli.plans(["execute", "1", "--reason", "now"]) == 0
    told = capsys.readouterr()
    assert "2. evict node-b" in told.out and "Nothing was done: add --apply" in told.err
    assert ask(ready, "/api/v1/plans/1")["state"] == "waiting"
    assert cli.plans(["approve", "1", "--reason", "yes", "--version", "999"]) == 1
    assert "has changed" in capsys.readouterr().err
    assert cli.plans(["approve", "1", "--reason", "The GPU fell off the bus."]) == 0
    assert until_done(ready, 1)["state"] == "done"
    assert cli.plans(["show", "1"]) == 0
    told = capsys.readouterr().out
    assert "decided   admin: The GPU fell off the bus." in told and "1. done cordon node-b" in told
    assert cli.plans(["reject", "1", "--reason", "too late"]) == 1
    assert "Plan 1 is done" in capsys.readouterr().err
    assert cli.plans(["cancel", "99", "--reason", "no such plan"]) == 3


def test_a_node_is_changed_only_with_apply(ready, capsys):
    assert cli.nodes(["cordon", "node-c", "--reason", "noise"]) == 0
    told = capsys.readouterr()
    assert "1. cordon node-c" in told.out and "add --apply" in told.err
    assert cli.nodes(["cordon", "node-c", "--reason", "noise", "--apply", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert until_done(ready, plan["id"])["state"] == "done"
    assert cli.nodes(["show", "node-c"]) == 0
    assert "out since" in capsys.readouterr().out
    assert cli.nodes(["repaired", "node-c", "--reason", "quiet again", "--apply"]) == 0
    assert "incidents that are over: none" in capsys.readouterr().out
    assert until_done(ready, plan["id"] + 1)["state"] == "done"
    assert cli.nodes(["list"]) == 0
    assert "SERVICE" in capsys.readouterr().out
    assert cli.nodes(["drain", "nowhere", "--reason", "x", "--apply"]) == 3
    assert "There is no node 'nowhere'" in capsys.readouterr().err


def test_an_incident_is_acknowledged_and_packed(ready, capsys, tmp_path):
    assert cli.incidents(["list", "--json"]) == 0
    (incident,) = json.loads(capsys.readouterr().out)
    assert cli.incidents(["acknowledge", incident["id"], "--reason", "I look at it.", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["acknowledged_by"] == "admin"
    assert cli.incidents(["bundle", incident["id"], str(tmp_path / "a.zip")]) == 0
    assert (tmp_path / "a.zip").stat().st_size > 100
    capsys.readouterr()
    assert cli.audit(["--subject", f"incident {incident['id']}"]) == 0
    assert "I look at it." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        (cli.jobs, [], "run-1"),
        (cli.jobs, ["list", "--json"], '"world_size": 4'),
        (cli.jobs, ["show", "run-1"], "attempt 1"),
        (cli.audit, ["list", "--limit", "1"], "ACTOR"),
        (cli.policy, [], "unavailable_max = 2"),
        (cli.policy, ["show", "--json"], '"is_changing": true'),
        (cli.policy, ["reset-breaker", "--reason", "mended"], "The breaker is closed."),
        (cli.plans, [], "STATE"),
        (cli.incidents, [], "KIND"),
        (cli.nodes, ["--json"], '"node": "node-a"'),
    ],
)
def test_everything_is_shown_as_text_and_as_json(ready, capsys, verb, words, said):
    assert verb(words) == 0
    assert said in capsys.readouterr().out


def test_a_policy_file_is_checked_without_a_server(tmp_path, capsys):
    path = tmp_path / "policy.toml"
    path.write_text('[nodes]\ndrain = "auto"\n')
    assert cli.policy(["check", str(path)]) == 0
    told = capsys.readouterr().out
    assert 'drain = "auto"' in told and "failures_max = 3" in told
    path.write_text('[nodes]\ndrain = "now"\n')
    assert cli.policy(["check", str(path)]) == 2
    assert "nodes.drain = 'now' is not allowed" in capsys.readouterr().err


def test_a_decision_needs_a_reason(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.plans(["approve", "1"])
    assert ended.value.code == 2
    assert "--reason" in capsys.readouterr().err
