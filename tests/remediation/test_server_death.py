"""The server may die at any moment: nothing acknowledged is lost, nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from instep_collector.clock import SystemClock
from instep_remediation import cli

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob


def crash_story():
    """A crash from its first frame to the next kept step, as separate moments: each sends something or lets time
    pass.
    """
    job = FakeJob()

    async def opened(bench):
        await bench.report(job.opened())

    async def frames(bench):
        await bench.send(*job.frames(job.healthy(), bench.clock, {"node-b": (job.xid(),)}))

    async def exited(bench):
        await bench.report(job.exited(2))

    async def looked(bench):
        await bench.tick(0.7)

    async def acknowledged(bench):
        (order,) = await bench.orders()
        await bench.report(job.report("order_acknowledged", {"order": order["id"], "outcome": "done", "detail": ""}))

    async def goes_on(bench):
        for report in job.restarted(1, ("node-a", "node-c")):
            await bench.report(report)

    return [opened, frames, exited, looked, acknowledged, looked, goes_on, looked]


@pytest.mark.parametrize("death", range(1, 8))
def test_a_crash_ends_the_same_whenever_the_server_dies(tmp_path, death):
    async def story():
        moments, clock = crash_story(), None
        async with server(tmp_path) as bench:
            clock = bench.clock
            for moment in moments[:death]:
                await moment(bench)
        clock.move(2.0)
        async with server(tmp_path, clock) as bench:
            await bench.tick(0.0)
            for moment in moments[death:]:
                await moment(bench)
            for _ in range(12):
                await bench.tick(1.0)
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"], incident["step_kept"]) == ("crash", "open", 41)
            orders = (await bench.get("/api/v1/orders"))["orders"]
            assert [(order["action"], order["exclude"], order["outcome"]) for order in orders] == [
                ("restart", ["node-b"], "done")
            ]
            plans = (await bench.get("/api/v1/plans"))["plans"]
            assert [plan["state"] for plan in plans] == ["waiting"]
            assert len((await bench.get("/api/v1/nodes"))["nodes"]) == 3

    play(story)


@pytest.mark.parametrize("death", range(1, 10))
def test_a_hang_ends_the_same_whenever_the_server_dies(tmp_path, death):
    async def story():
        job, clock = FakeJob(), None
        ages = [tenths / 10 for tenths in range(0, 50, 5)]

        async def moment(bench, age):
            await bench.send(*job.frames(job.stuck(2, age), bench.clock))
            await bench.tick(0.5)

        async with server(tmp_path) as bench:
            clock = bench.clock
            await bench.report(job.opened())
            await bench.send(*job.frames(job.healthy(), clock))
            for age in ages[:death]:
                await moment(bench, age)
        async with server(tmp_path, clock) as bench:
            for age in ages[death:]:
                await moment(bench, age)
            orders = (await bench.get("/api/v1/orders"))["orders"]
            assert sorted(order["action"] for order in orders) == ["dump", "restart"]
            await bench.report(job.exited(2), *job.restarted())
            await bench.tick(1.0)
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"]) == ("hang", "resolved")

    play(story)


def test_a_restarted_server_knows_the_job_and_refuses_another_run_of_it(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            clock, job = bench.clock, FakeJob()
            await bench.report(job.opened())
            await bench.send(*job.frames(job.healthy(), clock))
        clock.move(3.0)
        async with server(tmp_path, clock) as bench:
            (known,) = (await bench.get("/api/v1/jobs"))["jobs"]
            assert (known["run"], known["step"], known["max_restarts"], known["state"]) == ("run-1", 40, 3, "running")
            assert known["ranks"][0]["report_age_seconds"] == pytest.approx(3.0, abs=0.01)
            answer = await bench.client.post("/control/v1/reports", json=FakeJob(run="other").opened())
            assert answer.status_code == 409

    play(story)


PROGRAM = (sys.executable, "-c", "import sys; from instep_remediation.server.cli import main; sys.exit(main())")


@contextmanager
def real_server(folder, *options, program=PROGRAM):
    """`instep server` as a process; yields (process, what it said when it was ready)."""
    process = subprocess.Popen(
        [*program, "--listen", "127.0.0.1:0", "--state-dir", str(folder), "--json-ready", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        yield process, json.loads(line) if line else {}
    finally:
        process.kill()
        process.communicate()


def ask(ready, path, body=None, *, timeout_seconds=30):
    with open(ready["token_file"]) as file:
        headers = {"Authorization": f"Bearer {file.read().strip()}"}
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    with urllib.request.urlopen(
        urllib.request.Request(ready["url"] + path, data, headers), timeout=timeout_seconds
    ) as answer:
        return json.loads(answer.read())


def test_a_real_server_orders_in_time_and_survives_kill_9(tmp_path, capsys, monkeypatch):
    job, clock = FakeJob(), SystemClock()
    with real_server(tmp_path) as (process, ready):
        ask(ready, "/control/v1/reports", job.opened())
        for frame in job.frames(job.healthy(), clock):
            ask(ready, "/ingest/v1/frames", frame)
        began = time.monotonic()
        ask(ready, "/control/v1/reports", job.exited(1))
        (order,) = ask(ready, "/control/v1/orders?run=run-1&wait_seconds=10")["orders"]
        assert time.monotonic() - began >= 0.5, "facts of the node are waited for"
        ended = job.report("order_acknowledged", {"order": order["id"], "outcome": "done", "detail": ""})
        ask(ready, "/control/v1/reports", ended)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with real_server(tmp_path) as (process, ready):
        assert ask(ready, "/control/v1/orders?run=run-1&wait_seconds=0")["orders"] == []
        for report in (ended, *job.restarted(order["id"])):
            ask(ready, "/control/v1/reports", report)
        (incident,) = ask(ready, "/api/v1/incidents")["incidents"]
        assert (incident["kind"], incident["state"]) == ("crash", "resolved")
        check_the_command_line(ready, incident, tmp_path, capsys, monkeypatch)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""


def check_the_command_line(ready, incident, tmp_path, capsys, monkeypatch):
    """The commands over the same real server."""
    monkeypatch.setenv("INSTEP_SERVER", ready["url"])
    monkeypatch.setenv("INSTEP_TOKEN_FILE", ready["token_file"])
    assert cli.incidents(["list", "--check"]) == 0
    assert incident["id"] in capsys.readouterr().out
    assert cli.incidents(["show", incident["id"]]) == 0
    assert "evidence" in capsys.readouterr().out
    assert cli.incidents(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == incident["id"]
    assert cli.incidents(["export", incident["id"], str(tmp_path / "out.zip")]) == 0
    from instep_diagnosis.bundles import diagnose
    from instep_diagnosis.files.bundle import read_bundle

    bundle, packed = read_bundle(tmp_path / "out.zip")
    assert diagnose(bundle) == packed
    assert cli.plans(["list"]) == cli.plans(["show", "1"]) == cli.nodes(["list"]) == 0
    assert "node-b" in capsys.readouterr().out
    assert cli.incidents(["show", "nothing"]) == 3
    assert "There is no incident 'nothing'" in capsys.readouterr().err
    monkeypatch.setenv("INSTEP_SERVER", "http://127.0.0.1:9")
    assert cli.nodes(["list"]) == 3
    assert "Cannot ask the server" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/control/v1/orders?run=r", "/control/v1/node-orders?node=n"])
def test_a_waiting_order_request_does_not_hold_up_the_end(tmp_path, path):
    with (
        real_server(tmp_path) as (process, ready),
        subprocess.Popen(
            [sys.executable, "-c", WAITER, ready["url"], ready["token_file"], path], stdout=subprocess.PIPE, text=True
        ) as waiter,
    ):
        assert waiter.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


WAITER = """
import http.client, sys, urllib.parse
link = http.client.HTTPConnection(urllib.parse.urlsplit(sys.argv[1]).netloc)
headers = {"Authorization": "Bearer " + open(sys.argv[2]).read().strip()}
link.request("GET", sys.argv[3] + "&wait_seconds=30", headers=headers)
print("asked", flush=True)
try: link.getresponse().read()
except OSError: pass
"""


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--listen", "127.0.0.1:{port}"], 3, "Cannot listen on 127.0.0.1:{port} (Address already in use)"),
        (["--state-dir", "/proc/nowhere"], 3, "--state-dir"),
        (["--database", "nonsense://x"], 3, "--database"),
        (["--token-file", "/nonexistent/token"], 3, "--token-file"),
        (["--config", "{folder}/bad.toml"], 2, "there is no key 'listn'; keys here are"),
        (["--listen", "nowhere"], 2, "HOST:PORT"),
        (["--policy", "{folder}/bad.toml"], 2, "there is no key 'listn'"),
    ],
)
def test_what_stops_the_start_is_one_sentence(tmp_path, options, code, words):
    (tmp_path / "bad.toml").write_text('listn = "127.0.0.1:1"\n')
    with real_server(tmp_path / "first") as (_, ready):
        port = ready["url"].rpartition(":")[2]
        filled = [option.format(port=port, folder=tmp_path) for option in options]
        with real_server(tmp_path / "second", *filled) as (process, said):
            assert said == {}
            assert process.wait(timeout=20) == code
            error = process.stderr.read()
            assert error.startswith("instep server: ") and error.count("\n") == 1, error
            assert words.format(port=port) in error


def test_two_servers_cannot_share_a_state_folder(tmp_path):
    with real_server(tmp_path) as (_, ready), real_server(tmp_path) as (process, said):
        assert ready and not said
        assert process.wait(timeout=20) == 3
        assert "in use by another server" in process.stderr.read()


def test_the_token_is_private_and_kept(tmp_path):
    with real_server(tmp_path) as (_, ready):
        first = (tmp_path / "token").read_text()
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(ready["url"] + "/api/v1/jobs", timeout=10)
    with real_server(tmp_path):
        assert (tmp_path / "token").read_text() == first
