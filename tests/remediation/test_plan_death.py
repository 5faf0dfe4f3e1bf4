"""The server may be killed before, between and after the steps of a plan: it ends as it would have, nothing is done
twice.
"""

import signal
import sys
import time
from pathlib import Path

import pytest
from instep_collector.store import plans, steps

from tests.remediation.bench import FakeClock, play, server
from tests.remediation.scripted import WAITING, ScriptedExecutor
from tests.remediation.test_plan_life import decide, known, states
from tests.remediation.test_server_death import ask, real_server

DEATHS = ("steps", "cordon:before", "cordon:after", "evict:before", "evict:after")
END_SECONDS = 20.0


@pytest.mark.parametrize("death", range(6))
def test_a_plan_goes_on_wherever_the_server_ended(tmp_path, death):
    async def story():
        nodes = ScriptedExecutor(evict=[WAITING, WAITING])
        async with server(tmp_path, None, None, nodes) as bench:
            clock = bench.clock
            await known(bench, "node-b")
            decide(bench, "change_node", "node-b", "drain", "ada", "noise")
            for _ in range(death):
                await bench.runtime.runner.tick()
                clock.move(5.0)
        async with server(tmp_path, clock, None, nodes) as bench:
            for _ in range(6):
                await bench.runtime.runner.tick()
                clock.move(5.0)
            assert states(bench) == ("done", ["done"], ["cordon done", "evict done"])
            assert nodes.asked == ["cordon node-b", "evict node-b", "evict node-b", "evict node-b"]
            assert list(nodes.changed) == ["plan-1-0-cordon", "plan-1-0-evict"]

    play(story)


def test_the_time_of_a_step_goes_on_while_the_server_is_away(tmp_path):
    async def story():
        nodes = ScriptedExecutor(cordon=[WAITING, WAITING])
        async with server(tmp_path, None, None, nodes) as bench:
            clock = bench.clock
            await known(bench, "node-b")
            decide(bench, "change_node", "node-b", "drain", "ada", "noise")
            await bench.runtime.runner.tick()
        clock.move(1801.0)
        async with server(tmp_path, clock, None, nodes) as bench:
            await bench.runtime.runner.tick()
            assert states(bench)[0] == "failed"

    play(story)


def approved_plan(folder):
    """A plan that was approved right before its server ended."""

    async def story():
        async with server(folder, FakeClock(since_1970=time.time()), None, ScriptedExecutor()) as bench:
            await known(bench, "node-b")
            decide(bench, "change_node", "node-b", "drain", "ada", "noise")

    play(story)


def test_servers_killed_at_each_point_bring_the_plan_to_its_end(tmp_path, monkeypatch):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "deaths").write_text("\n".join(DEATHS))
    (tmp_path / "server.toml").write_text('executor = "scripted"\n')
    monkeypatch.setenv("INSTEP_SCRIPTED", str(folder))
    approved_plan(tmp_path)
    program = (sys.executable, str(Path(__file__).with_name("scripted.py")), "--config", str(tmp_path / "server.toml"))
    for _ in DEATHS:
        with real_server(tmp_path, program=program) as (process, _):
            assert process.wait(timeout=END_SECONDS) == -signal.SIGKILL
    with real_server(tmp_path, program=program) as (_, ready):
        end = time.monotonic() + END_SECONDS
        while (plan := ask(ready, "/api/v1/plans/1"))["state"] != "done":
            assert time.monotonic() < end, plan
    assert (folder / "deaths").read_text() == ""
    for mark in ("plan-1-0-cordon", "plan-1-0-evict"):
        assert (folder / mark).read_text() == "changed\n"
    asked = (folder / "asked").read_text().split()
    assert asked == ["plan-1-0-cordon"] * 2 + ["plan-1-0-evict"] * 2  # Again only where it died before it could tell.
    check_the_journal(tmp_path)


def check_the_journal(folder):
    async def story():
        async with server(folder, None, None, ScriptedExecutor()) as bench:
            with bench.runtime.store.begin() as session:
                assert [(row.name, row.tries) for row in steps.of_plan(session, 1)] == [("cordon", 3), ("evict", 3)]
                assert plans.get(session, 1).ended_at is not None

    play(story)
