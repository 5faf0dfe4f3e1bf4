"""The real Alertmanager takes our alerts, groups them, routes drills apart, and hears of the end."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests import services
from tests.remediation.alerts.people import EXAMPLE, People, routing
from tests.remediation.alerts.test_alertmanager import crash
from tests.remediation.bench import FakeClock, play, server
from tests.remediation.fake_job import FakeJob

pytestmark = pytest.mark.real


@pytest.fixture
def people():
    made = People()
    yield made
    made.close()


@pytest.fixture
def address(tmp_path, people):
    services.needed("prometheus-alertmanager", "prometheus-alertmanager", "amtool")
    with services.alertmanager(tmp_path, routing(people)) as at:
        yield at


def amtool(*arguments):
    return subprocess.run(["amtool", *arguments], capture_output=True, text=True, timeout=30, check=True).stdout


def shown_alert(address):
    """The one alert that Alertmanager shows."""
    (shown,) = json.loads(amtool("alert", "query", "-o", "json", f"--alertmanager.url={address}"))
    return shown


class Now(FakeClock):
    """The moment of day is the real one, since Alertmanager has a clock of its own."""

    def __init__(self):
        super().__init__(since_1970=time.time())


def test_alertmanager_shows_one_alert_for_each_incident_and_people_hear_of_its_end(tmp_path, people, address):
    async def story():
        async with server(tmp_path / "state", Now(), alertmanager=(address,), public_url="http://page") as bench:
            job = FakeJob()
            await crash(bench, job)
            assert await bench.runtime.alertmanagers.look() == 1
            (incident,) = await bench.incidents("open")
            shown = shown_alert(address)
            assert shown["labels"]["incident"] == incident["id"]
            assert "Xid 79" in shown["annotations"]["evidence"]
            assert people.hear("on-call", "firing")["commonLabels"]["job"] == "gpt"
            await bench.report(*job.restarted())
            assert await bench.runtime.alertmanagers.look() == 1
            assert "stays until node node-b is repaired" in shown_alert(address)["annotations"]["done"]
            await bench.post("/api/v1/nodes/node-b/repaired", reason="GPU replaced")
            assert await bench.runtime.alertmanagers.look() == 1
            people.hear("on-call", "resolved")
            assert json.loads(amtool("alert", "query", "-o", "json", f"--alertmanager.url={address}")) == []

    (tmp_path / "state").mkdir()
    play(story)


def test_one_cause_in_three_jobs_is_one_notification_and_drills_wake_nobody(tmp_path, people, address):
    async def story():
        async with server(tmp_path / "state", Now(), alertmanager=(address,)) as bench:
            frames = {}  # the nodes' frames are numbered by the node, whatever job runs there
            jobs = [FakeJob(job=f"gpt-{number}", run=f"run-{number}", _sequence=frames) for number in (1, 2, 3)]
            for job in jobs:
                await bench.report(job.opened())
                await bench.send(*job.frames(job.healthy(), bench.clock))
                await bench.report(job.exited(2))
            await bench.tick(0.7)
            drill = FakeJob(job="exercise", run="run-4", _sequence=frames)
            await crash(bench, drill, drill=True)
            await bench.runtime.alertmanagers.look()
            people.hear("on-call", "firing", incidents=3)
            people.hear("drills", "firing")
            assert all(body["commonLabels"]["drill"] == "false" for path, body in people.told if path == "on-call")

    (tmp_path / "state").mkdir()
    play(story)


def test_the_example_routes_as_its_comments_say():
    services.needed("prometheus-alertmanager", "amtool")
    amtool("check-config", str(EXAMPLE))
    for labels, receiver in (
        (("severity=critical", "drill=false"), "on-call"),
        (("severity=warning", "drill=false"), "morning"),
        (("severity=critical", "drill=true"), "drills"),
    ):
        amtool("config", "routes", "test", f"--config.file={EXAMPLE}", f"--verify.receivers={receiver}", *labels)
