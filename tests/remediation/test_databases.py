"""The same stories on SQLite and on PostgreSQL, and what a database does to a server when it goes away."""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from instep_collector.control import RankExited
from instep_collector.errors import StartError, StoreAway
from instep_collector.store import audit, patience
from instep_collector.store.engine import Store
from instep_collector.store.hold import Hold
from instep_collector.store.models import Rank
from instep_remediation import aftermath

from tests import services
from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.test_server_death import ask, crash_story, real_server


@pytest.mark.parametrize("death", range(0, 8, 2))
def test_a_crash_ends_the_same_whenever_the_server_dies(tmp_path, database, death):
    async def story():
        moments, clock = crash_story(), None
        async with server(tmp_path, database=database) as bench:
            clock = bench.clock
            for moment in moments[:death]:
                await moment(bench)
        clock.move(2.0)
        async with server(tmp_path, clock, database=database) as bench:
            await bench.tick(0.0)
            for moment in moments[death:]:
                await moment(bench)
            for _ in range(12):
                await bench.tick(1.0)
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"], incident["step_kept"]) == ("crash", "open", 41)
            orders = (await bench.get("/api/v1/orders"))["orders"]
            assert [(order["action"], order["outcome"]) for order in orders] == [("restart", "done")]
            assert len((await bench.get("/api/v1/nodes"))["nodes"]) == 3
            assert (await bench.get(f"/api/v1/incidents/{incident['id']}"))["plans"]

    play(story)


def test_reports_that_come_while_the_database_is_away_are_not_lost(tmp_path, database, monkeypatch):
    async def story():
        async with server(tmp_path, database=database) as bench:
            job = FakeJob()
            await bench.report(job.opened())
            await bench.send(*job.frames(job.healthy(), bench.clock))

            def away():
                raise StoreAway("away")

            monkeypatch.setattr(bench.runtime.store, "begin", away)
            await bench.report(job.exited(2))
            monkeypatch.undo()
            bench.runtime.aftermath.catch_up()
            await bench.tick(0.7)
            (incident,) = await bench.incidents("open")
            assert incident["kind"] == "crash"
            with bench.runtime.store.begin() as session:
                assert session.get(Rank, ("run-1", 0, 2)).exit_code == -9

    play(story)


def test_a_report_that_cannot_be_followed_holds_up_no_other(tmp_path, database, monkeypatch, caplog):
    async def story():
        async with server(tmp_path, database=database) as bench:
            job, follow = FakeJob(), aftermath.follow
            await bench.report(job.opened())

            def stumble(session, announce, run, report, body, *, at):
                if isinstance(body, RankExited) and body.rank == 1:
                    raise ValueError("A string literal cannot contain NUL (0x00) characters.")
                follow(session, announce, run, report, body, at=at)

            monkeypatch.setattr(aftermath, "follow", stumble)
            await bench.report(job.exited(1))
            await bench.report(job.exited(2))
            with bench.runtime.store.begin() as session:
                assert session.get(Rank, ("run-1", 0, 2)).exit_code == -9

    play(story)
    assert "cannot be brought into the store" in caplog.text


def test_two_servers_do_not_work_on_one_database(tmp_path, new_postgresql_database):
    url = new_postgresql_database()
    first, second = Store(url), Store(url)
    hold = Hold(first)
    with pytest.raises(StartError, match="Another server works on the database"):
        Hold(second)
    hold.close()
    Hold(second).close()
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg://instep:secret@127.0.0.1:9/instep", "Cannot open the database"),
        ("postgresql+nosuchdriver://instep:secret@127.0.0.1/instep", "Cannot use the database"),
        ("postgres//nonsense", "Cannot use the database"),
    ],
)
def test_a_database_that_cannot_be_had_is_one_sentence_without_the_password(url, words):
    with pytest.raises(StartError) as error:
        Store(url)
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_a_database_that_is_not_there_is_named(new_postgresql_database):
    url = new_postgresql_database() + "_none"
    with pytest.raises(StartError, match="does not exist"):
        Store(url)


@pytest.mark.real
def test_a_server_whose_database_is_started_again_goes_on_and_says_so(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    with (
        services.postgresql() as (url, folder),
        real_server(state, "--database", f"{url}/postgres") as (process, ready),
    ):
        assert ready, process.stderr.read()
        job = FakeJob()
        ask(ready, "/control/v1/reports", job.opened())
        restart(folder)
        ask(ready, "/control/v1/reports", job.exited(2))
        end = time.monotonic() + 30.0
        while exit_codes(url) != [(-9,)]:
            assert time.monotonic() < end, "the exit was not brought into the store"
            time.sleep(0.1)
        process.terminate()
        assert "The database does not answer" in process.stderr.read()


@pytest.mark.real
def test_a_database_that_hangs_is_waited_for_once_and_then_asked_in_the_background(monkeypatch):
    monkeypatch.setattr(patience, "ANSWER_SECONDS_MAX", 1.0)
    with services.postgresql() as (url, folder):
        store = Store(f"{url}/postgres")
        hold = Hold(store)
        with stopped(folder):
            with pytest.raises(StoreAway, match="asked again"), store.begin() as session:
                audit.recent(session)
            assert store.is_lost
            for _ in range(1000):  # Each would wait for seconds if it asked.
                with pytest.raises(StoreAway), store.begin():
                    pass
                assert hold.is_kept()
        end = time.monotonic() + 30.0
        while store.is_lost:
            assert time.monotonic() < end, "the database was not asked again"
            time.sleep(0.05)
        with store.begin() as session:
            assert audit.recent(session) == []
        assert (hold.is_kept(), store.trouble) == (True, "")
        hold.close()
        store.close()


@contextmanager
def stopped(folder):
    """Every process of this PostgreSQL stands still, as on a disk that hangs; a minute at most."""
    pid = int((folder / "data/postmaster.pid").read_text().splitlines()[0])
    listing = ["ps", "-o", "pid=", "--ppid", str(pid)]
    children = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()

    def every(name):
        subprocess.run(["kill", f"-{name}", str(pid), *children], check=False)

    every("STOP")
    guard = threading.Timer(60.0, every, ["CONT"])
    guard.start()
    try:
        yield
    finally:
        guard.cancel()
        guard.join()
        every("CONT")


def exit_codes(url) -> list[tuple]:
    """Of rank 2, as far as the database answers already."""
    try:
        with psycopg.connect(url.replace("+psycopg", "") + "/postgres") as connection:
            return connection.execute("SELECT exit_code FROM ranks WHERE rank = 2").fetchall()
    except psycopg.OperationalError:
        return []


def restart(folder) -> None:
    """End every connection as a database that is started again does: at once, and for whoever is connected."""
    pid = int((folder / "data/postmaster.pid").read_text().splitlines()[0])
    listing = ["ps", "-o", "pid=,args=", "--ppid", str(pid)]
    children = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    for line in children.splitlines():
        number, _, what = line.strip().partition(" ")
        if "instep" in what:
            subprocess.run(["kill", "-9", number], check=True)
            return
