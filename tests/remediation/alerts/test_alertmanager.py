"""One alert for each incident: its labels never change, it is said again while it stands, and its end is told once."""

import pytest
from instep_remediation.errors import DeliveryError, DeliveryRefused

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob

ADDRESS, OTHER = "http://first:9093", "http://second:9093"


class Receiver:
    """Stands for every Alertmanager: keeps what each address took, and fails where it is told to."""

    def __init__(self):
        self.taken, self.failing = [], {}

    def __call__(self, address, token, alerts):
        if error := self.failing.get(address):
            raise error
        self.taken += [(address, alert) for alert in alerts]

    def alerts(self, address=ADDRESS):
        return [alert for to, alert in self.taken if to == address]


def attach(bench, receiver):
    bench.runtime.alertmanagers._send = receiver
    return bench.runtime.alertmanagers


async def crash(bench, job, *, drill=False, xid=True):
    """A rank is killed; with an Xid its GPU is at fault, and without one the next kept step ends the incident."""
    events = {"node-b": (job.xid(drill=drill),)} if xid else {}
    await bench.report(job.opened())
    await bench.send(*job.frames(job.healthy(), bench.clock, events))
    await bench.report(job.exited(2))
    await bench.tick(0.7)


def test_a_crash_is_one_alert_that_says_everything_at_three_in_the_morning(tmp_path):
    async def story():
        async with server(tmp_path, alertmanager=(ADDRESS,), public_url="http://page") as bench:
            receiver, job = Receiver(), FakeJob()
            alerts = attach(bench, receiver)
            await crash(bench, job, drill=True)
            assert await alerts.look() == 1
            assert await alerts.look() == 0
            (alert,) = receiver.alerts()
            (incident,) = await bench.incidents("open")
            assert alert["labels"] == {
                "alertname": "InstepCrash",
                "incident": incident["id"],
                "kind": "crash",
                "severity": "critical",
                "job": "gpt",
                "run": "run-1",
                "node": "node-b",
                "drill": "true",
            }
            said = alert["annotations"]
            assert said["summary"].startswith("[DRILL] ")
            assert said["where"] == "job gpt, run run-1, attempt 0, rank 2, node node-b, GPU GPU-node-b-0"
            assert "Xid 79" in said["evidence"]
            assert said["next"] == "Drain the node and reboot it before it is given work again."
            assert said["done"] != "Nothing was done."
            assert float(said["how_sure"]) > 0.8
            assert said["runbook_url"].endswith("/crash.md")
            assert said["page"] == alert["generatorURL"] == f"http://page/incidents/{incident['id']}"
            assert alert["startsAt"] < alert["endsAt"]

    play(story)


def test_a_healthy_job_and_a_mere_suspect_are_no_alert(tmp_path):
    async def story():
        async with server(tmp_path, alertmanager=(ADDRESS,)) as bench:
            receiver, job = Receiver(), FakeJob()
            alerts = attach(bench, receiver)
            await bench.report(job.opened())
            await bench.send(*job.frames(job.healthy(), bench.clock))
            await bench.tick(0.7)
            assert await alerts.look() == 0
            await bench.send(*job.frames(job.stuck(2, 4.0, process="unknown"), bench.clock))
            await bench.tick(0.7)
            assert await alerts.look() == 0
            assert receiver.taken == []

    play(story)


def test_what_stands_is_said_again_with_the_same_labels_and_its_end_is_told_once(tmp_path):
    async def story():
        async with server(tmp_path, alertmanager=(ADDRESS,)) as bench:
            receiver, job = Receiver(), FakeJob()
            alerts = attach(bench, receiver)
            await crash(bench, job, xid=False)
            await alerts.look()
            bench.clock.move(59.0)
            assert await alerts.look() == 0
            bench.clock.move(1.0)
            assert await alerts.look() == 1
            await bench.report(*job.restarted())
            assert await alerts.look() == 1
            bench.clock.move(120.0)
            assert await alerts.look() == 0
            first, again, end = receiver.alerts()
            assert first["labels"] == again["labels"] == end["labels"]
            assert first["startsAt"] == end["startsAt"]
            assert first["endsAt"] < again["endsAt"]
            (incident,) = await bench.incidents("resolved")
            assert end["endsAt"] == incident["timeline"]["resolved_at"]
            assert "was kept by every rank" in end["annotations"]["next"]

    play(story)


def test_a_server_that_was_killed_goes_on_where_it_stood(tmp_path):
    async def story():
        job = FakeJob()
        async with server(tmp_path, alertmanager=(ADDRESS, OTHER)) as bench:
            receiver = Receiver()
            alerts = attach(bench, receiver)
            await crash(bench, job, xid=False)
            await alerts.look()
            receiver.failing[OTHER] = DeliveryError("away")
            await bench.report(*job.restarted())
            await alerts.look()
            clock = bench.clock
        clock.move(10.0)
        async with server(tmp_path, clock, alertmanager=(ADDRESS, OTHER)) as bench:
            again = Receiver()
            alerts = attach(bench, again)
            assert await alerts.look() == 1
            assert [to for to, _alert in again.taken] == [OTHER], "the first has taken the end already"
            assert await alerts.look() == 0

    play(story)


def test_an_address_that_is_away_is_tried_again_with_growing_pauses_and_holds_nobody_up(tmp_path):
    async def story():
        async with server(tmp_path, alertmanager=(ADDRESS, OTHER)) as bench:
            receiver = Receiver()
            alerts = attach(bench, receiver)
            receiver.failing[ADDRESS] = DeliveryError("away")
            await crash(bench, FakeJob())
            assert await alerts.look() == 1
            assert receiver.alerts(OTHER) and not receiver.alerts(ADDRESS)
            assert await alerts.look() == 0, "not before its pause is over"
            receiver.failing.clear()
            bench.clock.move(1.0)
            assert await alerts.look() == 1
            page = bench.runtime.metrics.render().decode()
            assert f'instep_alerts_sent_total{{outcome="failed",receiver="{ADDRESS}"}} 1.0' in page
            assert f'instep_alerts_pending{{receiver="{ADDRESS}"}} 0.0' in page

    play(story)


def test_what_an_alertmanager_refuses_for_good_is_not_sent_for_ever(tmp_path, caplog):
    async def story():
        async with server(tmp_path, alertmanager=(ADDRESS,)) as bench:
            receiver = Receiver()
            alerts = attach(bench, receiver)
            receiver.failing[ADDRESS] = DeliveryRefused("answered 400 (bad label).")
            await crash(bench, FakeJob())
            await alerts.look()
            assert await alerts.look() == 0
            assert "bad label" in caplog.text

    play(story)


def test_the_token_is_read_again_for_each_message(tmp_path):
    async def story():
        token = tmp_path / "am-token"
        token.write_text("first\n")
        async with server(tmp_path, alertmanager=(ADDRESS,), alertmanager_token_file=token) as bench:
            tokens = []
            alerts = attach(bench, lambda address, token, alerts: tokens.append(token))
            await crash(bench, FakeJob())
            await alerts.look()
            token.write_text("second\n")
            bench.clock.move(60.0)
            await alerts.look()
            token.unlink()
            bench.clock.move(60.0)
            assert await alerts.look() == 0
            assert tokens == ["first", "second"]

    play(story)


def test_a_wrong_address_is_one_sentence_at_the_start():
    from instep_remediation.errors import PolicyError
    from instep_remediation.server.config import ServerConfig
    from instep_remediation.toml_file import checked

    with pytest.raises(PolicyError, match="use http:// or https:// addresses"):
        checked({"alertmanager": ["alertmanager:9093"]}, ServerConfig, place="command line")
