"""An agent on order: real sleeping ranks with real records, a real HTTP server that asks for their stacks."""

import os
import signal
import threading
import time

import pytest
from instep_agent.host.processes import look_at, start_ticks
from instep_agent.node import Node
from instep_agent.ranks import orders
from instep_agent.ranks.orders import OrderKeeper, encode_dump, take_dumps
from instep_agent.wire import NodeDump, RankDump, StackFrame, ThreadStack
from made_records import new_writer, report_of
from order_server import DEADLINE_SECONDS, OrderServer
from ranks_at_work import Ranks


@pytest.fixture
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture
def server():
    server = OrderServer()
    yield server
    server.close()


@pytest.fixture
def keep(tmp_path):
    """Starts agents that wait for orders, and closes them."""
    keepers = []

    def start(url, **options):
        node = Node("node-a", record_root=tmp_path)
        keeper = OrderKeeper(url, lambda: "secret", node, random_unit=lambda: 0.0, **options)
        keeper.start()
        keepers.append(keeper)
        return keeper

    yield start
    for keeper in keepers:
        keeper.close()


def functions(dump):
    return [frame.function for stack in dump.stacks if stack.is_main for frame in stack.frames]


def test_an_order_is_answered_with_stacks_and_collectives_of_every_rank_here(server, ranks, keep, tmp_path):
    for rank in (0, 1):
        ranks.start(tmp_path, rank)
    ranks.start(tmp_path, 0, run="another")
    keep(server.url)
    server.wait_for(lambda it: it.polls)
    before = time.monotonic()
    server.order(3)
    server.wait_for(lambda it: it.dumps)
    assert time.monotonic() - before < 10.0, "at once, not at the end of the poll"
    (answer,) = server.dumps
    assert (answer.node, answer.order, answer.run, answer.attempt) == ("node-a", 3, "run", 0)
    assert [dump.report.rank for dump in answer.dumps] == [0, 1]
    for dump in answer.dumps:
        assert "waits_for_its_peers" in functions(dump)
        assert [group.entered_seq for group in dump.report.groups] == [1]
        assert (dump.answers, dump.flight_recorder) == (None, "")
        assert "has no evidence server" in dump.missing[0]
    server.wait_for(lambda it: it.polls[-1] == ("node-a", 3))
    assert len(server.dumps) == 1, "once"


def test_a_stopped_rank_shows_where_and_stays_stopped(ranks, tmp_path):
    process = ranks.start(tmp_path)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    (dump,) = take_dumps(Node("node-a", record_root=tmp_path), "run", 0)
    assert (dump.report.process_state, dump.missing) == ("stopped", (orders.NOT_ASKED,))
    assert "waits_for_its_peers" in functions(dump)
    assert look_at(process.pid, start_ticks(process.pid)).state == "stopped"


def test_a_rank_that_is_gone_leaves_its_record_and_a_sentence(ranks, tmp_path):
    ranks.end(ranks.start(tmp_path))
    (dump,) = take_dumps(Node("node-a", record_root=tmp_path), "run", 0)
    assert (dump.report.step, dump.report.process_state, dump.stacks) == (7, "gone", ())
    assert dump.missing[0] == "Rank 0 has no process any more."


def test_a_process_of_another_user_than_the_records_is_not_looked_at(ranks, tmp_path, monkeypatch):
    ranks.start(tmp_path)
    monkeypatch.setattr("instep_agent.ranks.orders.owner_of", lambda _pid, _proc: os.geteuid() + 1)
    (dump,) = take_dumps(Node("node-a", record_root=tmp_path), "run", 0)
    assert dump.stacks == ()
    assert "is not of the user who owns the record of rank 0" in dump.missing[0]


@pytest.mark.parametrize("run", ["..", "a/b", "", "nothing", "linked"])
def test_what_is_no_run_of_this_node_is_answered_with_nothing(ranks, tmp_path, run):
    elsewhere = tmp_path / "elsewhere"
    new_writer(elsewhere, run="linked")
    (tmp_path / "node-a").mkdir()
    (tmp_path / "node-a/linked").symlink_to(elsewhere / "node-a/linked")
    assert take_dumps(Node("node-a", record_root=tmp_path), run, 0) == ()


def test_a_record_that_names_another_run_is_passed_over(tmp_path):
    new_writer(tmp_path, run="run")
    (tmp_path / "node-a/run").rename(tmp_path / "node-a/copied")
    assert take_dumps(Node("node-a", record_root=tmp_path), "copied", 0) == ()


def test_an_unknown_action_is_passed_over(server, keep):
    server.order(1, action="dance")
    keep(server.url)
    server.wait_for(lambda it: ("node-a", 1) in it.polls)
    assert server.dumps == []


def test_an_order_of_a_new_store_is_answered_though_its_number_is_lower(server, ranks, keep, tmp_path):
    ranks.start(tmp_path)
    server.order(40)
    keep(server.url)
    server.wait_for(lambda it: it.polls[-1:] == [("node-a", 40)])
    server.replace(1)  # The poll is asked again on another connection, before anybody knows.
    server.wait_for(lambda it: len(it.dumps) == 2)
    assert [dump.order for dump in server.dumps] == [40, 1]


def test_an_order_is_answered_after_the_server_was_away(ranks, keep, tmp_path):
    ranks.start(tmp_path)
    first = OrderServer()
    first.order(40)
    keep(first.url)
    first.wait_for(lambda it: it.dumps)
    first.close()
    second = OrderServer(first.port)
    try:
        second.order(1)  # A new store counts from 1 again.
        second.wait_for(lambda it: it.dumps)
        assert second.dumps[0].order == 1
    finally:
        second.close()


def test_an_answer_that_is_lost_is_given_again_and_a_refused_one_is_not(server, ranks, keep, tmp_path, caplog):
    ranks.start(tmp_path)
    server.answers = [503, 409]
    server.order(1)
    keep(server.url)
    server.wait_for(lambda it: ("node-a", 1) in it.polls)
    assert (server.answers, server.dumps) == ([], [])
    assert "did not take the answer to order 1 (As told.)" in caplog.text


def test_an_agent_that_may_not_ask_says_so_once_and_backs_off(server, keep, caplog):
    server.poll_status = 403
    keep(server.url)
    server.wait_for(lambda it: len(it.polls) >= 3)
    assert caplog.text.count("gives this agent no orders (403: As told.)") == 1


def test_closing_does_not_wait_for_the_poll(server, keep):
    keeper = keep(server.url)
    server.wait_for(lambda it: it.polls)
    before = time.monotonic()
    keeper.close(timeout_seconds=DEADLINE_SECONDS)
    assert time.monotonic() - before < 5.0
    assert "orders" not in [thread.name for thread in threading.enumerate()]


def test_an_answer_that_is_too_large_keeps_the_main_threads(tmp_path):
    frames = (StackFrame(function="f", file="x" * 100, line=1),) * 20
    stacks = tuple(
        ThreadStack(name=str(n), is_main=n == 0, is_active=False, owns_gil=False, frames=frames) for n in range(9)
    )
    dump = RankDump(report=report_of(new_writer(tmp_path)), stacks=stacks)
    whole = NodeDump(node="node-a", order=1, run="run", attempt=0, dumps=(dump,))
    assert b'"name":"8"' in encode_dump(whole)
    short = encode_dump(whole, bytes_max=10_000)
    assert b'"name":"0"' in short
    assert b'"name":"8"' not in short
    assert b"only the main threads are here" in short
