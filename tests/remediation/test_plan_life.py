"""A plan waits for a person, is carried out step by step within its guards, and ends as it should."""

from contextlib import asynccontextmanager

import pytest
from instep_collector.errors import StartError
from instep_collector.store import audit, breaker, cordons, plans, steps
from instep_remediation.errors import NotKnown, NotPossible, Outdated
from instep_remediation.policy import GuardPolicy, NodePolicy, Policy
from prometheus_client.parser import text_string_to_metric_families

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.scripted import FAILED, WAITING, ScriptedExecutor

AUTO = Policy(nodes=NodePolicy(drain="auto"))


@asynccontextmanager
async def broken_node(folder, nodes, policy=None, clock=None, **settings):
    """A server that has ordered a restart without node-b, which had an Xid; the order is done."""
    async with server(folder, clock, policy, nodes, **settings) as bench:
        job = FakeJob()
        await bench.report(job.opened())
        await bench.send(*job.frames(job.healthy(), bench.clock, {"node-b": (job.xid(),)}))
        await bench.report(job.exited(2))
        await bench.tick(0.7)
        (order,) = await bench.orders()
        await bench.report(*job.restarted(order["id"], ("node-a", "node-c")))
        yield bench


def decide(bench, verb, *words, **options):
    with bench.runtime.store.begin() as session:
        return getattr(bench.runtime.decisions, verb)(session, *words, **options)


def states(bench, plan=1):
    """(state of the plan, of its actions, of its steps)."""
    with bench.runtime.store.begin() as session:
        return (
            plans.get(session, plan).state,
            [action.state for action in plans.actions(session, plan)],
            [f"{row.name} {row.state}" for row in steps.of_plan(session, plan)],
        )


async def known(bench, *nodes):
    job = FakeJob()
    await bench.send(*(job.frame(node, [], bench.clock) for node in nodes))
    await bench.tick()


async def carry_out(bench, times=20):
    for _ in range(times):
        await bench.runtime.runner.tick()


def said(bench):
    with bench.runtime.store.begin() as session:
        return [(line.actor, line.action, line.subject) for line in reversed(audit.recent(session))]


def test_without_a_decision_nothing_happens_to_a_node(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with broken_node(tmp_path, nodes) as bench:
            await carry_out(bench)
            assert states(bench) == ("waiting", ["done", "proposed", "done"], [])
            assert nodes.asked == []

    play(story)


def test_an_approved_drain_is_carried_out_step_by_step(tmp_path):
    async def story():
        nodes = ScriptedExecutor(evict=[WAITING])
        async with broken_node(tmp_path, nodes) as bench:
            decide(bench, "approve", 1, "ada", "The GPU fell off the bus.")
            assert states(bench)[0] == "approved"
            await bench.runtime.runner.tick()
            assert states(bench) == ("executing", ["done", "executing", "done"], ["cordon done", "evict pending"])
            await carry_out(bench)
            assert states(bench)[2] == ["cordon done", "evict executing"]
            assert nodes.asked == ["cordon node-b", "evict node-b"]  # It asks again when the executor wants it to.
            bench.clock.move(5.0)
            await carry_out(bench)
            assert states(bench) == ("done", ["done", "done", "done"], ["cordon done", "evict done"])
            assert list(nodes.changed) == ["plan-1-1-cordon", "plan-1-1-evict"]
            assert [line for line in said(bench) if line[1] not in ("plan", "order-restart")] == [
                ("ada", "approve", "plan 1"),
                ("instep-server", "drain_node-began", "node node-b"),
                ("instep-server", "drain_node-done", "node node-b"),
            ]
            (incident,) = await bench.incidents()
            assert "Drain node node-b: done (plan 1)." in incident["done"]

    play(story)


def test_each_step_is_written_down_before_it_is_carried_out(tmp_path):
    async def story():
        nodes, seen = ScriptedExecutor(), []
        async with broken_node(tmp_path, nodes) as bench:
            nodes.on_ask = lambda step: seen.append(states(bench)[2])
            decide(bench, "approve", 1, "ada", "yes")
            await carry_out(bench)
        assert seen == [["cordon executing", "evict pending"], ["cordon done", "evict executing"]]

    play(story)


def test_a_policy_that_says_auto_needs_nobody(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with broken_node(tmp_path, nodes, AUTO) as bench:
            await carry_out(bench)
            assert states(bench)[0] == "done"
            assert nodes.asked == ["cordon node-b", "evict node-b"]

    play(story)


def test_a_drill_drains_nothing_by_itself_and_its_plan_says_so(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, None, AUTO, nodes) as bench:
            job = FakeJob()
            await bench.send(*job.frames([], bench.clock, {"node-b": (job.xid(drill=True),)}))
            await bench.tick(0.1)
            await carry_out(bench)
            assert (states(bench)[0], nodes.asked) == ("waiting", [])
            text = (await bench.get("/api/v1/plans/1"))["text"]
            assert "[DRILL]" in text
            assert "drain node node-b" in text
            assert "[waits for approval: a drill drains nothing by itself]" in text
            decide(bench, "approve", 1, "ada", "The way through the cluster is tried out.")
            await carry_out(bench)
            assert nodes.asked == ["cordon node-b", "evict node-b"]

    play(story)


def test_a_real_fault_after_a_drill_on_the_same_gpu_is_an_incident_of_its_own_and_is_acted_on(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, None, AUTO, nodes) as bench:
            job = FakeJob()
            await bench.send(*job.frames([], bench.clock, {"node-b": (job.xid(drill=True),)}))
            await bench.tick(0.1)
            await bench.send(*job.frames([], bench.clock, {"node-b": (job.xid(id="boot-node-b:epoch-1:2"),)}))
            await bench.tick(0.1)
            assert sorted(row["is_drill"] for row in await bench.incidents("open")) == [False, True]
            await carry_out(bench)
            assert (states(bench, 1)[0], states(bench, 2)[0]) == ("waiting", "done")
            assert nodes.asked == ["cordon node-b", "evict node-b"]

    play(story)


def test_a_node_action_waits_for_the_restart_before_it(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, None, AUTO, nodes) as bench:
            job = FakeJob()
            await bench.report(job.opened())
            await bench.send(*job.frames(job.healthy(), bench.clock, {"node-b": (job.xid(),)}))
            await bench.report(job.exited(2))
            await bench.tick(0.7)
            await carry_out(bench)
            assert states(bench)[:2] == ("executing", ["ordered", "approved", "done"])
            assert nodes.asked == []

    play(story)


def test_nothing_is_approved_while_the_executor_changes_nothing(tmp_path):
    async def story():
        async with broken_node(tmp_path, None) as bench:
            for verb in ("approve", "execute"):
                with pytest.raises(NotPossible, match='executor "print" changes nothing'):
                    decide(bench, verb, 1, "ada", "yes")
            assert [step.describe() for _, step in decide(bench, "dry_run", 1)] == ["cordon node-b", "evict node-b"]
            decide(bench, "reject", 1, "ada", "no")
            assert states(bench)[:2] == ("rejected", ["done", "rejected", "done"])

    play(story)


@pytest.mark.parametrize("drain", ["approve", "auto"])
def test_a_policy_that_the_executor_cannot_follow_stops_the_start(tmp_path, drain):
    async def story():
        with pytest.raises(StartError, match=f'nodes.drain = "{drain}", and the executor "print" changes nothing'):
            async with server(tmp_path, None, Policy(nodes=NodePolicy(drain=drain))):
                pass

    play(story)


def test_a_step_that_takes_too_long_fails_the_plan_and_says_what_remains(tmp_path):
    async def story():
        nodes = ScriptedExecutor(cordon=[WAITING] * 3)
        policy = Policy(nodes=NodePolicy(drain_timeout_seconds=10.0))
        async with broken_node(tmp_path, nodes, policy) as bench:
            decide(bench, "approve", 1, "ada", "yes")
            for _ in range(3):
                await carry_out(bench)
                bench.clock.move(5.0)
            assert states(bench) == ("failed", ["done", "failed", "done"], ["cordon failed", "evict pending"])
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert plan["actions"][1]["detail"] == (
                "Step 1 (cordon node-b) did not end within 10 s. Last heard: 2 pods are still ending. "
                "Remaining: cordon node-b, evict node-b."
            )
            decide(bench, "execute", 1, "ada", "The pods have gone.")  # Goes on from the step that failed.
            await carry_out(bench)
            assert states(bench)[0] == "done"

    play(story)


def test_a_plan_that_is_cancelled_begins_no_further_step(tmp_path):
    async def story():
        nodes = ScriptedExecutor(evict=[WAITING])
        async with broken_node(tmp_path, nodes) as bench:
            decide(bench, "approve", 1, "ada", "yes")
            await carry_out(bench)
            decide(bench, "cancel", 1, "bob", "A person looks first.")
            bench.clock.move(5.0)
            await carry_out(bench)
            assert states(bench) == ("cancelled", ["done", "cancelled", "done"], ["cordon done", "evict cancelled"])
            assert nodes.asked == ["cordon node-b", "evict node-b"]
            with pytest.raises(NotPossible, match="nothing to cancel"):
                decide(bench, "cancel", 1, "bob", "again")

    play(story)


def test_a_plan_cancelled_during_its_last_step_and_taken_up_again_comes_to_its_end(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with broken_node(tmp_path, nodes) as bench:

            def cancel(step):
                if step.name == "evict":
                    decide(bench, "cancel", 1, "bob", "A person looks first.")

            nodes.on_ask = cancel
            decide(bench, "approve", 1, "ada", "yes")
            await carry_out(bench)
            assert states(bench) == ("cancelled", ["done", "cancelled", "done"], ["cordon done", "evict done"])
            decide(bench, "execute", 1, "ada", "All is well.")
            await carry_out(bench)
            assert states(bench) == ("done", ["done", "done", "done"], ["cordon done", "evict done"])
            assert nodes.asked == ["cordon node-b", "evict node-b"]

    play(story)


def test_a_clock_that_is_set_back_holds_no_step_up(tmp_path):
    async def story():
        nodes = ScriptedExecutor(evict=[WAITING])
        async with broken_node(tmp_path, nodes) as bench:
            decide(bench, "approve", 1, "ada", "yes")
            await carry_out(bench)
            bench.clock.move(-86_400.0)
            await carry_out(bench)
            assert states(bench)[0] == "done"

    play(story)


def test_a_decision_on_an_older_version_or_on_nothing_is_refused(tmp_path):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor()) as bench:
            with bench.runtime.store.begin() as session:
                version = plans.get(session, 1).version
            with pytest.raises(Outdated, match="Plan 1 has changed"):
                decide(bench, "approve", 1, "ada", "yes", version=version - 1)
            decide(bench, "approve", 1, "ada", "yes", version=version)
            with pytest.raises(Outdated):
                decide(bench, "cancel", 1, "bob", "no", version=version)
            with pytest.raises(NotKnown, match="no plan 9"):
                decide(bench, "approve", 9, "ada", "yes")
            with pytest.raises(NotPossible, match="Plan 1 is approved"):
                decide(bench, "reject", 1, "ada", "no")

    play(story)


def test_one_node_at_a_time_is_taken_out_of_service(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, None, None, nodes) as bench:
            await known(bench, "node-a", "node-b")
            decide(bench, "change_node", "node-a", "cordon", "ada", "noise")
            decide(bench, "change_node", "node-b", "drain", "ada", "noise")
            await carry_out(bench)
            assert (states(bench, 1)[0], states(bench, 2)[0]) == ("done", "approved")
            with pytest.raises(NotPossible, match=r"nodes.unavailable_max = 1"):
                decide(bench, "execute", 2, "ada", "now")
            decide(bench, "change_node", "node-a", "uncordon", "ada", "quiet again")
            await carry_out(bench)
            assert (states(bench, 2)[0], states(bench, 3)[0]) == ("done", "done")
            with bench.runtime.store.begin() as session:
                assert [row.node for row in cordons.all_nodes(session)] == ["node-b"]

    play(story)


def test_two_plans_for_one_node_are_carried_out_one_after_the_other(tmp_path):
    async def story():
        nodes = ScriptedExecutor(evict=[WAITING])
        async with server(tmp_path, None, None, nodes) as bench:
            await known(bench, "node-b")
            decide(bench, "change_node", "node-b", "drain", "ada", "noise")
            decide(bench, "change_node", "node-b", "uncordon", "bob", "quiet")
            await carry_out(bench)
            assert (states(bench, 1)[0], states(bench, 2)[0]) == ("executing", "approved")
            assert (await bench.get("/api/v1/plans/2"))["actions"][0]["detail"] == (
                "Plan 1 is being carried out on node node-b."
            )
            bench.clock.move(5.0)
            await carry_out(bench)
            assert nodes.asked == ["cordon node-b", "evict node-b", "evict node-b", "uncordon node-b"]

    play(story)


def test_the_breaker_stops_what_nobody_approved_until_a_person_resets_it(tmp_path):
    async def story():
        nodes = ScriptedExecutor(cordon=[FAILED, FAILED])
        policy = Policy(nodes=NodePolicy(drain="auto", unavailable_max=10), guards=GuardPolicy(failures_max=2))
        async with server(tmp_path, None, policy, nodes) as bench:
            await known(bench, "node-x", "node-y")
            decide(bench, "change_node", "node-x", "drain", "ada", "one")
            await carry_out(bench)
            with bench.runtime.store.begin() as session:
                assert not breaker.is_open(session)
            decide(bench, "change_node", "node-y", "drain", "ada", "two")
            await carry_out(bench)
            assert ("instep-server", "breaker-open", "breaker nodes") in said(bench)
        async with broken_node(tmp_path, nodes, policy, bench.clock) as bench:
            await carry_out(bench)
            assert states(bench, 3)[0] == "waiting"  # The policy's auto is off; a person may still approve.
            assert nodes.asked == ["cordon node-x", "cordon node-y"]
            decide(bench, "reset_breaker", "root", "The executor's rights were mended.")
            decide(bench, "approve", 3, "ada", "yes")
            await carry_out(bench)
            assert states(bench, 3)[0] == "done"

    play(story)


def test_prometheus_is_told_how_steps_ended_and_whether_the_breaker_is_open(tmp_path):
    async def story():
        nodes = ScriptedExecutor(evict=[FAILED])
        async with server(tmp_path, None, Policy(guards=GuardPolicy(failures_max=1)), nodes) as bench:
            assert await shown(bench) == {"breaker": 0.0, "done": 0.0, "failed": 0.0}
            await known(bench, "node-b")
            decide(bench, "change_node", "node-b", "drain", "ada", "noise")
            await carry_out(bench)
            assert await shown(bench) == {"breaker": 1.0, "done": 1.0, "failed": 1.0}
            decide(bench, "reset_breaker", "root", "It was looked at.")
            assert (await shown(bench))["breaker"] == 0.0

    play(story)


async def shown(bench):
    """What /metrics says of node plans."""
    families = text_string_to_metric_families((await bench.client.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples]
    found = {s.labels["outcome"]: s.value for s in samples if s.name == "instep_plan_steps_total"}
    (is_open,) = (s.value for s in samples if s.name == "instep_breaker_open")
    return found | {"breaker": is_open}


def test_an_automatic_drain_held_back_for_long_waits_for_a_person(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, None, None, nodes) as bench:
            await known(bench, "node-x")
            decide(bench, "change_node", "node-x", "cordon", "ada", "noise")
            await carry_out(bench)
        async with broken_node(tmp_path, nodes, AUTO, bench.clock) as bench:
            await carry_out(bench)
            assert states(bench, 2)[0] == "approved"
            bench.clock.move(601.0)
            await carry_out(bench)
            assert states(bench, 2)[0] == "waiting"
            assert nodes.asked == ["cordon node-x"]

    play(story)


def test_an_executor_that_raises_fails_the_plan_with_a_sentence(tmp_path, caplog):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, None, None, nodes) as bench:
            await known(bench, "node-b")
            nodes.on_ask = lambda step: 1 / 0
            decide(bench, "change_node", "node-b", "cordon", "ada", "noise")
            await carry_out(bench)
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert plan["state"] == "failed"
            assert "ZeroDivisionError" in plan["actions"][0]["detail"]

    play(story)
    assert "The executor scripted failed at cordon node-b" in caplog.text


def test_an_executor_that_cannot_tell_its_steps_holds_up_no_other_plan(tmp_path, caplog):
    class Puzzled(ScriptedExecutor):
        def steps(self, action, mark):
            if action.arguments()["node"] == "node-a":
                raise KeyError("no such pool")
            return super().steps(action, mark)

    async def story():
        async with server(tmp_path, None, None, Puzzled()) as bench:
            await known(bench, "node-a", "node-b")
            decide(bench, "change_node", "node-a", "cordon", "ada", "one")
            decide(bench, "change_node", "node-b", "cordon", "ada", "two")
            await carry_out(bench)
            assert (states(bench, 1)[0], states(bench, 2)[0]) == ("failed", "done")

    play(story)
    assert "cannot tell the steps of cordon_node" in caplog.text


def test_a_mended_node_is_taken_back_and_its_fault_is_over(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, None, None, nodes) as bench:
            job = FakeJob()
            await bench.send(*job.frames([], bench.clock, {"node-b": (job.xid(),)}))
            await bench.tick(0.1)
            assert [row["kind"] for row in await bench.incidents("open")] == ["gpu-fault"]
            decide(bench, "approve", 1, "ada", "yes")
            await carry_out(bench)
            made, ended = decide(bench, "repaired", "node-b", "ada", "A new GPU is in.")
            assert (made.state, [row.state for row in ended]) == ("approved", ["resolved"])
            await carry_out(bench)
            assert nodes.asked == ["cordon node-b", "evict node-b", "uncordon node-b"]
            assert await bench.incidents("open") == []
            bench.clock.move(60.0)  # The same fault again, on the same boot, is another incident.
            await bench.send(*job.frames([], bench.clock, {"node-b": (job.xid(id="boot-node-b:epoch-1:2"),)}))
            await bench.tick(0.1)
            assert [row["kind"] for row in await bench.incidents("open")] == ["gpu-fault"]
            assert len(await bench.incidents()) == 2

    play(story)
