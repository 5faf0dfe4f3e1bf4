"""Whatever people decide and however steps go, no limit is exceeded, and every plan ends or says why it waits.

Random lives of plans over the real store: decisions, answers of the executor, time, and servers that end in between.
"""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instep_collector.store import cordons, nodes, plans, steps
from instep_collector.store.engine import Store
from instep_collector.store.models import ActionRow, Audit, Breaker, Cordon, PlanRow, StepRow
from instep_remediation.decisions import Decisions
from instep_remediation.errors import DecisionError
from instep_remediation.policy import NodePolicy, Policy
from instep_remediation.runner import PlanRunner
from sqlalchemy import delete

from tests.remediation.bench import FakeClock
from tests.remediation.scripted import FAILED, WAITING, ScriptedExecutor

LOOP = asyncio.Runner()
NODES = ("node-a", "node-b", "node-c")
LIMIT = 1
POLICY = Policy(nodes=NodePolicy(unavailable_max=LIMIT, drain_timeout_seconds=60.0))
ANSWERS = st.lists(st.sampled_from([WAITING, WAITING, FAILED]), max_size=3)
BY_HAND = st.tuples(st.sampled_from(["cordon", "drain", "drain", "uncordon", "repaired"]), st.sampled_from(NODES))
DECISION = st.tuples(st.sampled_from(["approve", "reject", "cancel", "execute"]), st.integers(1, 4))
TIME = st.tuples(st.just("move"), st.sampled_from([1.0, 5.0, 61.0]))
TICK = st.tuples(st.just("tick"), st.integers(1, 3))
DEATH = st.tuples(st.just("die"), st.just(0))
MOVES = st.lists(st.one_of(BY_HAND, BY_HAND, DECISION, TIME, TICK, TICK, DEATH), min_size=8, max_size=24)


class Life:
    """One server after another over the same store, with one cluster outside."""

    def __init__(self, store, script):
        self.store, self.clock, self.cluster = store, FakeClock(), ScriptedExecutor(**script)
        self.cluster.on_ask = self.check_asked
        self.start()

    def start(self):
        self.decisions = Decisions(self.clock, self.cluster, POLICY, lambda *_: None)
        self.runner = PlanRunner(self.clock, self.store, self.cluster, POLICY)

    def make(self, move, what):
        if move == "die":
            self.start()
        elif move == "move":
            self.clock.move(what)
        elif move == "tick":
            for _ in range(what):
                LOOP.run(self.runner.tick())
        else:
            self.decide(move, what)
        self.check()

    def decide(self, verb, what):
        try:
            with self.store.begin() as session:
                if verb in ("cordon", "drain", "uncordon"):
                    self.decisions.change_node(session, what, verb, "ada", "why")
                else:
                    getattr(self.decisions, verb)(session, self.id_of(session, what), "ada", "why")
        except DecisionError as error:
            assert str(error).endswith((".", ").")), error

    def id_of(self, session, what):
        """A node as it is; a number as the plan that is that many behind the newest."""
        ids = [plan.id for plan in plans.recent(session)]
        return what if isinstance(what, str) else ids[what - 1] if what <= len(ids) else 0

    def check_asked(self, step):
        """A step is asked for only while its plan is carried out, in order, and after that was written down."""
        plan, position = (int(part) for part in step.mark.split("-")[1:3])
        with self.store.begin() as session:
            rows = [row for row in steps.of_plan(session, plan) if row.position == position]
            assert plans.get(session, plan).state == "executing"
            index = next(row.step for row in rows if row.mark == step.mark)
            assert [row.state for row in rows[: index + 1]] == ["done"] * index + ["executing"]

    def check(self):
        with self.store.begin() as session:
            running = [action.arguments["node"] for _, action in plans.in_state(session, "executing")]
            assert len(running) == len(set(running)), "two plans on one node"
            assert cordons.count(session) <= LIMIT
            for plan in plans.recent(session):
                assert (plan.ended_at is None) == (plan.state in plans.PENDING), plan.state

    def settle(self):
        """Nothing goes wrong any more: whatever is not over says what it waits for."""
        self.cluster.script.clear()
        self.make("move", 5.0)
        while LOOP.run(self.runner.tick()):
            self.check()
        with self.store.begin() as session:
            for plan in plans.pending(session):
                (action,) = plans.actions(session, plan.id)
                assert plan.state == "approved" and "nodes.unavailable_max = 1" in action.detail


@pytest.fixture
def store(tmp_path):
    made = Store(f"sqlite:///{tmp_path}/a.db")
    with made.begin() as session:
        for node in NODES:
            nodes.keep_node(session, node, cluster="c", boot_id="b", gpus=(), at=0.0)
    yield made
    made.close()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(moves=MOVES, cordon=ANSWERS, evict=ANSWERS, uncordon=ANSWERS)
def test_no_limit_is_exceeded_and_every_plan_comes_to_an_end(store, moves, cordon, evict, uncordon):
    with store.begin() as session:
        for table in (StepRow, ActionRow, PlanRow, Cordon, Breaker, Audit):
            session.execute(delete(table))
    life = Life(store, {"cordon": cordon, "evict": evict, "uncordon": uncordon})
    for move, what in moves:
        life.make(move, what)
    life.settle()
