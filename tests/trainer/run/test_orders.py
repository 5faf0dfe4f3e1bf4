"""Orders through the long poll, whatever comes when: one restart, and each order acknowledged."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.trainer.run import supervisors
from tests.trainer.run.fake_server import TOKEN, fake_server

pytestmark = pytest.mark.real


@pytest.fixture
def server():
    with fake_server() as one:
        yield one


@pytest.fixture
def node(tmp_path: Path):
    with supervisors.node(tmp_path) as one:
        yield one


def start(node, server, *options: str):
    run = node.waiting(options=("--max-restarts", "6", *server.options, *options), INSTEP_TOKEN=TOKEN)
    node.pids(0)
    return run


def kill_rank(node, attempt: int) -> None:
    os.kill(node.pids(attempt)[1][0], signal.SIGKILL)


def finish(node, server, run, *, attempts: int) -> None:
    """The run ends well, and had just these attempts."""
    node.pids(attempts - 1)
    node.end()
    assert run.ends() == 0
    assert [report["attempt"] for report in server.told("attempt_opened")] == list(range(attempts))
    assert server.told("run_finished", outcome="finished", exit_code=0)


def test_an_order_makes_one_restart_however_often_it_comes(node, server) -> None:
    run = start(node, server)
    server.order(7, attempt=0, times=2)
    server.hears("order_acknowledged", order=7, outcome="done", times=2)
    assert server.hears("attempt_opened", cause_order=7)[0]["attempt"] == 1
    server.order(7, attempt=0)
    server.order(8, attempt=0)
    refused = server.hears("order_acknowledged", order=8)[0]["body"]
    assert refused == {"order": 8, "outcome": "refused", "detail": "the order is for attempt 0, which is over"}
    assert not server.told("local_decision")
    finish(node, server, run, attempts=2)


def test_an_order_that_comes_while_a_crash_waits_for_it_is_the_restart(node, server) -> None:
    run = start(node, server, "--verdict-wait-seconds", "30")
    kill_rank(node, 0)
    server.hears("rank_exited", rank=1, exit_code=-9)
    server.order(3, attempt=0, times=2)
    assert server.hears("attempt_opened", cause_order=3)[0]["body"]["restarts_used"] == 1
    server.hears("order_acknowledged", order=3, outcome="done", times=2)
    assert not server.told("local_decision")
    finish(node, server, run, attempts=2)


def test_an_order_after_the_local_decision_is_refused_and_restarts_nothing(node, server) -> None:
    run = start(node, server, "--verdict-wait-seconds", "0.3")
    kill_rank(node, 0)
    decision = server.hears("local_decision")[0]
    assert (decision["attempt"], decision["body"]["action"]) == (0, "restart")
    server.hears("attempt_opened", cause_order=None, times=2)
    server.order(4, attempt=0, times=2)
    server.hears("order_acknowledged", order=4, outcome="refused", times=2)
    finish(node, server, run, attempts=2)


def test_orders_for_others_and_of_unknown_kinds_are_refused_with_a_reason(node, server) -> None:
    run = start(node, server)
    server.order(1, attempt=9)
    server.order(2, attempt=0, run="run-2")
    server.order(3, attempt=0, action="dance")
    details = [report["body"]["detail"] for report in server.hears("order_acknowledged", outcome="refused", times=3)]
    assert details == [
        "the order is for attempt 9, which is over",
        "the order is for run run-2, this is run run-1",
        "action dance is not known here",
    ]
    finish(node, server, run, attempts=1)


def test_a_dump_is_taken_and_acknowledged_and_ends_nothing(node, server) -> None:
    run = start(node, server)
    server.order(5, attempt=0, action="dump")
    server.hears("dump", order=5)
    server.hears("order_acknowledged", order=5, outcome="done")
    finish(node, server, run, attempts=1)


def test_a_stop_ends_the_run(node, server) -> None:
    run = start(node, server)
    server.order(6, attempt=0, action="stop")
    assert run.ends() == 1
    assert run.last_line.endswith("the run failed: as ordered")
    assert server.told("order_acknowledged", order=6, outcome="done")
    assert server.told("run_finished", outcome="failed")


def test_no_report_is_lost_to_a_server_that_is_overloaded_or_broken_for_a_while(node, server) -> None:
    server.answers += [(503, {"detail": "later"}), (429, {}), (500, {}), (502, {})]
    run = start(node, server)
    opened = server.hears("attempt_opened")
    assert len(opened) == 1
    server.answers += [(503, {"detail": "later"}), (429, {})]
    server.order(1, attempt=0)
    server.hears("order_acknowledged", order=1, outcome="done")
    server.hears("attempt_ended", outcome="restarting")
    finish(node, server, run, attempts=2)


def test_a_report_that_the_server_cannot_read_holds_no_other_up(node, server) -> None:
    run = start(node, server)
    server.hears("attempt_opened")
    server.answers += [(400, {"detail": "That is no report."})]
    run.says("the server refused a report (400): That is no report.")
    server.hears("heartbeat", times=2)
    finish(node, server, run, attempts=1)


def test_a_server_that_refuses_a_run_under_way_ends_nothing_and_hears_everything_later(node, server) -> None:
    run = start(node, server, "--verdict-wait-seconds", "0.3")
    server.hears("attempt_opened")
    server.refusal = (401, "The token is not known here.")
    kill_rank(node, 0)
    run.says("The token is not known here.")
    node.pids(1)
    server.refusal = None
    server.hears("rank_exited", rank=1)
    server.hears("local_decision")
    finish(node, server, run, attempts=2)


def test_an_interrupt_is_told_as_the_end_of_the_run_and_as_no_fault(node, server) -> None:
    run = start(node, server)
    run.process.send_signal(signal.SIGINT)
    assert run.ends() == 130
    assert server.told("attempt_ended", outcome="stopped")
    assert server.told("run_finished", exit_code=130)
    assert not server.told("rank_exited")
