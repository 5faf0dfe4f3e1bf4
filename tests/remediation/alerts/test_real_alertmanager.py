"""The real Alertmanager takes our alerts, groups them, routes drills apart, and hears of the end."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import services
from tests.remediation.alerts.test_alertmanager import crash
from tests.remediation.bench import FakeClock, play, server
from tests.remediation.fake_job import FakeJob

pytestmark = pytest.mark.real
EXAMPLE = Path(__file__).parents[3] / "deploy/alertmanager/example.yml"


class People:
    """Who is told: keeps every notification, by the path it was sent to."""

    def __init__(self):
        self.told, people = [], self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                people.told.append((self.path.strip("/"), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def hear(self, receiver, status, *, incidents=1):
        """Wait for a notification; return the labels of its alerts."""
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            for path, body in self.told:
                ids = {alert["labels"]["incident"] for alert in body["alerts"] if alert["status"] == status}
                if path == receiver and len(ids) >= incidents:
                    return body
            time.sleep(0.05)
        raise AssertionError(f"{receiver} heard of nothing that is {status}: {self.told}")


@pytest.fixture
def people():
    made = People()
    yield made
    made.close()


@pytest.fixture
def address(tmp_path, people):
    services.needed("prometheus-alertmanager", "prometheus-alertmanager", "amtool")
    # The example's own routing, with our receiver and without its patience.
    text = EXAMPLE.read_text().replace("127.0.0.1:9999", people.address)
    text = text.replace("group_wait: 5s", "group_wait: 1s").replace("group_interval: 1m", "group_interval: 1s")
    with services.alertmanager(tmp_path, text) as at:
        yield at


def amtool(*arguments):
    return subprocess.run(["amtool", *arguments], capture_output=True, text=True, timeout=30, check=True).stdout


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
            (shown,) = json.loads(amtool("alert", "query", "-o", "json", f"--alertmanager.url={address}"))
            assert shown["labels"]["incident"] == incident["id"]
            assert "Xid 79" in shown["annotations"]["evidence"]
            assert people.hear("on-call", "firing")["commonLabels"]["job"] == "gpt"
            await bench.report(*job.restarted())
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
