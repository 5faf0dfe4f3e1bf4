"""`instep agent check` and `--once`: present, absent and failing are told apart, and what is lacking is named."""

import json

import pytest
from fake_accelerator import FakeAccelerator
from instep_agent import cli
from instep_agent.errors import SourceFailed
from instep_agent.metric import gauge
from instep_agent.wire import Sample
from made_nodes import RECORDED


class Forbidden:
    """A source that may not read what it wants to read."""

    name, interval_seconds, deadline_seconds, child = "forbidden", 1.0, 1.0, ""
    rights = "reads /dev/secret: CAP_SECRET"
    metrics = ()

    def collect(self, node):
        raise SourceFailed("Cannot read /dev/secret (permission denied).")
        yield


class Rate:
    """A source whose first turn has nothing to compare with."""

    name, interval_seconds, deadline_seconds, child, is_rate = "rate", 0.05, 1.0, "", True
    metrics = (gauge("instep_x_per_second", "A rate."),)

    def __init__(self):
        self.turns = 0

    def collect(self, node):
        self.turns += 1
        if self.turns > 1:
            yield Sample(name="instep_x_per_second", labels=(), value=2.0)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command over the sources given; give its exit code and what it printed."""

    def run(sources, *arguments):
        if sources is not None:
            monkeypatch.setattr(cli, "all_sources", lambda **_: tuple(sources))
        places = ["--node", "node-a", "--root", str(RECORDED / "a100"), "--record-root", str(tmp_path / "records")]
        code = cli.main([*places, *arguments])
        return code, capsys.readouterr().out

    return run


def verdicts(text):
    return {row["source"]: row["verdict"] for row in json.loads(text)}


def test_a_healthy_node_could_look_everywhere(run):
    code, said = run(None, "check", "--json")
    assert code == 0
    assert set(verdicts(said).values()) <= {"present", "absent"}
    assert verdicts(said)["host"] == "present"
    assert verdicts(said)["rank_records"] == "absent"
    assert all({"detail", "needs", "runs_in", "samples"} <= row.keys() for row in json.loads(said))


def test_a_source_that_may_not_look_is_failing_and_says_what_it_needs(run, tmp_path, caplog):
    sources = [Forbidden(), FakeAccelerator(tmp_path / "fake")]
    code, said = run(sources, "check")
    assert code == 3
    assert "forbidden        failing  Cannot read /dev/secret (permission denied)." in said
    assert "It reads /dev/secret: CAP_SECRET." in said
    assert "fake_state       present  2 samples every 1 s" in said
    code, said = run(sources, "check", "--json")
    assert (code, verdicts(said)) == (3, {"forbidden": "failing", "fake_state": "present"})


def test_places_given_before_the_word_hold_too(run):
    options = cli._parser().parse_args(["--root", "/r", "--json", "check", "--proc", "/p"])
    assert (options.root, options.proc, options.json, options.command) == ("/r", "/p", True, "check")


def test_a_driver_that_hangs_is_failing_and_the_command_ends(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("instep_agent.running.isolation.START_GRACE_SECONDS", 0.2)
    source = FakeAccelerator(tmp_path / "fake")
    source.deadline_seconds = 0.3
    source.set("mode", "hang fake_state")
    code, said = run([source], "check")
    assert code == 3
    assert "fake_state       failing  Source fake_state did not answer in time" in said
    assert "fakeDeviceGetTemperature device 3" in said


def test_once_asks_twice_where_a_rate_needs_it_and_ends_with_0(run, tmp_path, caplog):
    code, said = run([Rate(), Forbidden()], "--once", "--json")
    assert code == 0
    seen = json.loads(said)
    assert {name: row["outcome"] for name, row in seen["sources"].items()} == {"rate": "ok", "forbidden": "failed"}
    assert {"name": "instep_x_per_second", "labels": {}, "value": 2.0} in seen["samples"]
    assert [event["kind"] for event in seen["events"]] == ["source_failed"]
