"""The coordinator's decisions: one restart per fault, whatever comes when."""

from __future__ import annotations

import itertools

import pytest
from instep_trainer.run.coordination import Coordination, Limits, Order, Send, Stage, TakeDumps, Tell
from instep_trainer.run.messages import Finish, Hello, Open, Refused, Stop, Stopped

KEY = "k"


class Run:
    """A run of two nodes with two ranks each, and one that stands by, in virtual time."""

    def __init__(self, *, max_restarts: int = 3, has_server: bool = True, nodes: str = "abc") -> None:
        self.now = 0.0
        self.effects: list = []
        limits = Limits(nodes_min=2, nodes_max=len(nodes), max_restarts=max_restarts, is_server_there=has_server)
        self.state = Coordination(job="j", run="r", node="node-a", key=KEY, limits=limits)
        for name in nodes:
            self.does(self.state.join(hello(f"node-{name}"), self.now))

    def does(self, effects: list) -> list:
        self.effects += effects
        return effects

    def passes(self, seconds: float) -> list:
        effects = []
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            for node in self.state.members:
                self.state.heard(node, self.now)
            effects += self.does(self.state.tick(self.now))
        return effects

    def exits(self, rank: int, code: int) -> list:
        node = next(node for node, ranks in self.state.assignment.items() if rank in ranks)
        return self.does(self.state.exited(node, self.state.attempt, rank, code, self.now))

    def all_stop(self) -> list:
        attempt = self.state.attempt
        effects = []
        for node in list(self.state.assignment):
            effects += self.does(self.state.stopped(node, Stopped(attempt=attempt, port_offer=1), self.now))
        return effects

    def orders(
        self, id_: int, *, attempt: int | None = None, action: str = "restart", exclude: tuple[str, ...] = ()
    ) -> list:
        order = Order(
            id=id_, run="r", attempt=self.state.attempt if attempt is None else attempt, action=action, exclude=exclude
        )
        return self.does(self.state.order(order, self.now))

    def openings(self) -> list[tuple[str, Open]]:
        return [
            (effect.node, effect.message)
            for effect in self.effects
            if isinstance(effect, Send) and isinstance(effect.message, Open)
        ]

    def told(self, kind: str) -> list[dict]:
        return [effect.body for effect in self.effects if isinstance(effect, Tell) and effect.kind == kind]


def hello(node: str, **changes: object) -> Hello:
    return Hello(**{"job": "j", "run": "r", "node": node, "slots": 2, "key": KEY, "port_offer": 7, **changes})


def test_opens_the_first_attempt_on_the_first_nodes_and_lets_the_third_stand_by() -> None:
    run = Run()
    assert [(node, opening.attempt, opening.ranks) for node, opening in run.openings()] == [
        ("node-a", 0, [0, 1]),
        ("node-b", 0, [2, 3]),
    ]
    assert run.told("attempt_opened")[0]["standby"] == ["node-c"]


def test_waits_a_last_call_for_nodes_that_may_still_come() -> None:
    run = Run(nodes="ab")
    assert len(run.openings()) == 2
    late = Coordination(
        job="j", run="r", node="node-a", key=KEY, limits=Limits(nodes_min=1, nodes_max=2, max_restarts=0)
    )
    assert not [e for e in late.join(hello("node-a"), 0.0) if isinstance(e, Send) and isinstance(e.message, Open)]
    assert not late.tick(0.5)
    assert [e.message.attempt for e in late.tick(1.1) if isinstance(e, Send) and isinstance(e.message, Open)] == [0]


def test_a_crash_stops_every_rank_and_waits_for_the_verdict_before_the_local_default() -> None:
    run = Run()
    effects = run.exits(2, -9)
    assert [e.node for e in effects if isinstance(e, Send) and isinstance(e.message, Stop)] == ["node-a", "node-b"]
    run.all_stop()
    assert run.state.stage is Stage.STOPPING, "the order may still come"
    run.passes(1.6)
    assert run.state.attempt == 1
    assert run.told("local_decision")[0]["action"] == "restart"


def test_an_order_in_time_moves_the_ranks_of_the_node_it_leaves_out() -> None:
    run = Run()
    run.exits(3, -9)
    run.all_stop()
    run.orders(1, exclude=("node-b",))
    assert run.state.assignment == {"node-a": [0, 1], "node-c": [2, 3]}
    assert not run.told("local_decision")
    assert run.told("order_acknowledged") == [
        {"order": 1, "outcome": "done", "detail": "taken into the restart under way"}
    ]


@pytest.mark.parametrize("when", ["before", "while stopping", "while deciding", "after", "long after"])
def test_one_restart_whenever_the_order_comes_and_however_often(when: str) -> None:
    run = Run()
    if when == "before":
        run.orders(1, attempt=0)
    run.exits(2, -9)
    if when == "while stopping":
        run.orders(1, attempt=0)
    run.all_stop()
    if when == "while deciding":
        run.orders(1, attempt=0)
    run.passes(2.0)
    if when == "after":
        run.orders(1, attempt=0)
    run.passes(5.0)
    for _ in range(3):
        run.orders(1, attempt=0)
    run.passes(5.0)
    assert run.state.attempt == 1
    assert run.state.restarts_used == 1
    outcomes = {ack["outcome"] for ack in run.told("order_acknowledged")}
    assert outcomes == ({"refused"} if "after" in when else {"done"})


def test_an_order_for_another_attempt_is_refused_with_a_reason() -> None:
    run = Run()
    run.orders(5, attempt=7)
    assert run.told("order_acknowledged") == [
        {"order": 5, "outcome": "refused", "detail": "the order is for attempt 7, which is over"}
    ]
    assert run.state.attempt == 0


def test_a_second_different_order_for_an_attempt_that_is_being_ended_is_refused() -> None:
    run = Run()
    run.orders(1)
    run.orders(2)
    assert [ack["outcome"] for ack in run.told("order_acknowledged")] == ["done", "refused"]


def test_exits_together_with_the_first_are_told_once_each_and_end_one_attempt() -> None:
    run = Run()
    for _ in range(2):
        run.exits(0, 1)
        run.exits(2, -9)
    assert [(body["rank"], body["exit_code"]) for body in run.told("rank_exited")] == [(0, 1), (2, -9)]
    run.all_stop()
    run.passes(2.0)
    assert run.state.attempt == 1
    assert run.told("local_decision")[0]["reason"] == "rank 2 on node-b ended with signal 9", "killed, not a victim"


def test_exits_long_after_the_first_failure_count_for_nothing() -> None:
    run = Run()
    run.exits(2, -9)
    run.passes(1.0)
    run.exits(0, 1)
    assert len(run.told("rank_exited")) == 1


def test_exits_after_an_order_count_for_nothing() -> None:
    run = Run()
    run.orders(1)
    run.exits(0, 1)
    assert not run.told("rank_exited")


def test_without_a_server_the_restart_waits_for_nobody() -> None:
    run = Run(has_server=False)
    run.exits(1, 1)
    run.all_stop()
    assert run.state.attempt == 1


def test_the_budget_ends_the_run() -> None:
    run = Run(max_restarts=1, has_server=False)
    for _ in range(2):
        run.exits(0, 1)
        run.all_stop()
    assert run.state.exit_code == 1
    assert run.told("run_finished") == [{"outcome": "failed", "exit_code": 1}]
    assert {e.node for e in run.effects if isinstance(e, Send) and isinstance(e.message, Finish)} == {
        "node-a",
        "node-b",
        "node-c",
    }


def test_the_default_budget_reports_and_restarts_nothing() -> None:
    run = Run(max_restarts=0)
    run.exits(0, 1)
    run.all_stop()
    run.passes(2.0)
    assert run.state.exit_code == 1
    assert len(run.openings()) == 2


def test_all_ranks_ending_well_ends_the_run_well() -> None:
    run = Run()
    for rank in range(4):
        run.exits(rank, 0)
    assert run.state.exit_code == 0
    assert run.told("attempt_ended") == [{"outcome": "finished", "detail": "finished"}]


def test_a_lost_node_is_replaced_by_the_one_that_stands_by() -> None:
    run = Run(has_server=False)
    run.does(run.state.leave("node-b", run.now))
    run.all_stop()
    assert run.state.assignment == {"node-a": [0, 1], "node-c": [2, 3]}
    assert {body["rank"] for body in run.told("rank_exited")} == {2, 3}


def test_a_node_that_is_taken_out_is_replaced_and_nobody_is_told_of_a_fault() -> None:
    run = Run()
    run.does(run.state.withdraw("node-b", run.now))
    run.all_stop()
    assert run.state.assignment == {"node-a": [0, 1], "node-c": [2, 3]}
    assert run.told("rank_exited") == []
    assert run.told("attempt_ended")[0]["detail"] == "node node-b was taken out of the run by whoever runs it"


def test_a_node_that_stood_by_leaves_without_a_trace() -> None:
    run = Run()
    run.does(run.state.withdraw("node-c", run.now))
    assert (run.state.attempt, run.state.standby) == (0, [])
    assert run.told("attempt_ended") == []


def test_a_silent_member_is_lost() -> None:
    run = Run(has_server=False)
    run.now += 3.5
    run.state.heard("node-a", run.now)
    run.state.heard("node-c", run.now)
    run.does(run.state.tick(run.now))
    assert "node-b" not in run.state.members


def test_without_a_spare_the_suspected_node_is_better_than_no_run() -> None:
    run = Run(nodes="ab")
    run.orders(1, exclude=("node-b",))
    run.all_stop()
    assert run.state.assignment == {"node-a": [0, 1], "node-b": [2, 3]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "other"}, "belongs to run r"),
        ({"key": "x"}, "token differs"),
        ({"node": "node-a"}, "already takes part"),
    ],
)
def test_refuses_whoever_does_not_belong_with_a_sentence(changes: dict, words: str) -> None:
    run = Run()
    effects = run.state.join(hello(**{"node": "node-d", **changes}), run.now)
    assert isinstance(effects[0].message, Refused)
    assert words in effects[0].message.reason


def test_a_coordinator_that_takes_over_opens_a_new_attempt_number() -> None:
    limits = Limits(nodes_min=2, nodes_max=2, max_restarts=3)
    state = Coordination(job="j", run="r", node="node-b", key=KEY, limits=limits)
    state.join(hello("node-b", attempt_known=4), 0.0)
    effects = state.join(hello("node-a", attempt_known=3), 0.0)
    assert {e.message.attempt for e in effects if isinstance(e, Send) and isinstance(e.message, Open)} == {5}


def test_a_coordinator_that_takes_over_goes_on_counting_restarts() -> None:
    limits = Limits(nodes_min=2, nodes_max=2, max_restarts=3)
    state = Coordination(job="j", run="r", node="node-b", key=KEY, limits=limits)
    state.join(hello("node-b", attempt_known=4, restarts_known=2), 0.0)
    effects = state.join(hello("node-a", attempt_known=3, restarts_known=1), 0.0)
    opened = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Open)]
    assert {message.restarts_used for message in opened} == {2}


def test_resumes_after_the_step_that_every_rank_has_complete() -> None:
    limits = Limits(nodes_min=2, nodes_max=2, max_restarts=3)
    state = Coordination(job="j", run="r", node="node-a", key=KEY, limits=limits)
    state.join(hello("node-a", inventory={0: [(12, 0), (11, 0)], 1: [(12, 0), (11, 0)]}), 0.0)
    effects = state.join(hello("node-b", inventory={2: [(11, 0), (10, 0)], 3: [(12, 0), (11, 0)]}), 0.0)
    assert {e.message.resume_step for e in effects if isinstance(e, Send) and isinstance(e.message, Open)} == {11}


def test_a_dump_order_ends_nothing() -> None:
    run = Run()
    assert run.orders(1, action="dump") == [TakeDumps(1)]
    assert run.state.stage is Stage.RUNNING
    run.does(run.state.dumped(1))
    assert run.told("order_acknowledged")[-1]["outcome"] == "done"


def test_every_order_of_events_around_a_crash_makes_one_attempt() -> None:
    """Order, local decision by time, and both nodes' stops, in all their permutations."""
    for events in itertools.permutations(["order", "time", "stop-a", "stop-b"]):
        run = Run()
        run.exits(2, -9)
        for event in events:
            if event == "order":
                run.orders(1, attempt=0, exclude=("node-b",))
            elif event == "time":
                run.passes(2.0)
            else:
                node = f"node-{event[-1]}"
                run.does(run.state.stopped(node, Stopped(attempt=0, port_offer=1), run.now))
        run.passes(3.0)
        assert run.state.attempt == 1, events
        assert run.state.restarts_used == 1, events
