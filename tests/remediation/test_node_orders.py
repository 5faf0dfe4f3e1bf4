"""Stacks by the agents, when a run's supervisors are silent or there are none."""

import asyncio
import hashlib

import msgspec
import pytest
from instep_agent.wire import NodeDump, RankDump, StackFrame, ThreadStack

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.test_job_stories import begin, freeze

NODES = ("node-a", "node-b")


def stacks(function):
    frame = StackFrame(function=function, file="train.py", line=12)
    return (ThreadStack(name="MainThread", is_main=True, is_active=False, owns_gil=False, frames=(frame,)),)


def answer(job, order, ranks_of, **changes):
    """What the agent of a node sees of its ranks."""
    dumps = tuple(
        RankDump(report=report, stacks=stacks("seen_by_the_agent"))
        for report in job.stuck(2, 4.5)
        if report.node == ranks_of
    )
    dump = NodeDump(node=ranks_of, order=order["id"], run=job.run, attempt=job.attempt, dumps=dumps)
    return msgspec.json.encode(msgspec.structs.replace(dump, **changes))


class Agents:
    """Agents of some nodes that wait at the server, as long polls."""

    def __init__(self, bench, nodes=NODES):
        self.bench = bench
        self.polls = {node: asyncio.create_task(self._poll(node)) for node in nodes}

    async def _poll(self, node, after=0):
        query = {"node": node, "after": after, "wait_seconds": 30}
        given = await self.bench.client.get("/control/v1/node-orders", params=query)
        assert given.status_code == 200, given.text
        return given.json()["orders"]

    async def __aenter__(self):
        while not all(self.bench.runtime.node_orders.waiting(node) for node in self.polls):
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        for poll in self.polls.values():
            poll.cancel()
        await asyncio.gather(*self.polls.values(), return_exceptions=True)

    async def order(self, node):
        """The one order that the node's agent is given; it has been woken already."""
        (order,) = await asyncio.wait_for(self.polls[node], 10)
        return order

    @property
    def are_asked(self):
        return any(poll.done() for poll in self.polls.values())

    async def send(self, content, **options):
        return await self.bench.client.post("/control/v1/node-dumps", content=content, **options)


async def alarm(bench, job):
    """Freeze a rank until the alarm, and give the order for evidence that it made."""
    for tenths in range(0, 60, 2):
        await bench.send(*job.frames(job.stuck(2, tenths / 10), bench.clock))
        await bench.tick(0.2)
        if found := await bench.orders():
            (order,) = found
            return order
    raise AssertionError("no alarm")


async def asked(bench, agents, node):
    """A job whose stall was put to the agents, as its supervisors are silent, and the order that a node's agent has."""
    job = FakeJob()
    await begin(bench, job)
    await alarm(bench, job)
    await bench.tick(1.1)
    return job, await agents.order(node)


async def verdict_of(bench):
    (incident,) = await bench.incidents("open", "resolved")
    return incident["verdict"], incident["latencies"]["alarm_to_verdict_seconds"]


async def settle(bench):
    """Let whoever was woken answer."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_agents_complete_the_verdict_when_the_supervisors_are_silent(tmp_path):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            job = FakeJob()
            await begin(bench, job)
            dump = await alarm(bench, job)
            await bench.tick(0.2)
            await settle(bench)
            assert not agents.are_asked, "the supervisors have a second"
            await bench.tick(0.85)
            for node in NODES:
                order = await agents.order(node)
                assert (order["id"], order["run"], order["attempt"], order["action"]) == (
                    dump["id"],
                    "run-1",
                    0,
                    "dump",
                )
                assert (await verdict_of(bench))[0] is None, "not before every agent has answered"
                given = await agents.send(answer(job, order, node))
                assert (given.status_code, given.json()) == (200, {"acknowledged": order["id"]})
                await bench.tick(0.1)
            verdict, seconds = await verdict_of(bench)
            assert "seen_by_the_agent" in str(verdict)
            assert seconds < 2.0
            assert [order["action"] for order in await bench.orders()] == ["restart"], "the dump is no longer wanted"
            (done,) = [order for order in (await bench.get("/api/v1/orders"))["orders"] if order["action"] == "dump"]
            assert (done["outcome"], done["detail"]) == ("done", "answered by the agents of node-a, node-b")

    play(story)


def test_the_agents_are_not_asked_when_the_supervisors_answer(tmp_path):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            job = FakeJob()
            await begin(bench, job)
            dump = await alarm(bench, job)
            await bench.report(job.dump(dump["id"], job.stuck(2, 4.5)))
            await bench.tick(0.1)
            verdict, seconds = await verdict_of(bench)
            assert verdict["suspects"][0]["rank"] == 2
            assert seconds <= 0.11, "as soon as the answer came"
            for _ in range(20):
                await bench.tick(0.25)
            await settle(bench)
            assert not agents.are_asked

    play(story)


def test_a_run_without_a_supervisor_is_looked_at_by_the_agents_at_once(tmp_path):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            job = FakeJob()
            for _ in range(3):
                await bench.send(*job.frames(job.healthy(), bench.clock))
                await bench.tick(0.25)
            for tenths in range(0, 60, 5):
                await bench.send(*job.frames(job.stuck(2, tenths / 10), bench.clock))
                await bench.tick(0.25)
                await settle(bench)
                if agents.are_asked:
                    break
            for node in NODES:
                assert (await agents.send(answer(job, await agents.order(node), node))).status_code == 200
            await bench.tick(0.1)
            verdict, seconds = await verdict_of(bench)
            assert "seen_by_the_agent" in str(verdict)
            assert seconds < 0.5

    play(story)


def test_a_run_without_supervisor_or_agents_that_listen_gets_its_verdict_at_once(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            for _ in range(3):
                await bench.send(*job.frames(job.healthy(), bench.clock))
                await bench.tick(0.25)
            await freeze(bench, job)
            assert (await verdict_of(bench))[1] == pytest.approx(0.0, abs=0.01)
            assert (await bench.get("/api/v1/orders"))["orders"] == []

    play(story)


def test_an_agent_that_never_answers_delays_the_verdict_by_its_bound_only(tmp_path):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            job = FakeJob()
            await begin(bench, job)
            await alarm(bench, job)
            for _ in range(16):
                await bench.send(*job.frames(job.stuck(2, 4.0), bench.clock))
                await bench.tick(0.25)
            assert agents.are_asked
            verdict, seconds = await verdict_of(bench)
            assert verdict["suspects"][0]["rank"] == 2
            assert 2.0 < seconds <= 3.8  # a second for the supervisors, two for the agents, and the ticks between

    play(story)


@pytest.mark.parametrize("is_agent_first", [True, False], ids=["agent first", "supervisor first"])
def test_the_supervisors_evidence_wins_when_both_come(tmp_path, is_agent_first):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            job, order = await asked(bench, agents, "node-b")
            of_rank_2 = [report for report in job.stuck(2, 4.5) if report.rank == 2]
            told = job.dump(order["id"], of_rank_2)
            told["body"]["dumps"][0]["stacks"] = msgspec.to_builtins(stacks("seen_by_the_supervisor"))
            if is_agent_first:
                await agents.send(answer(job, order, "node-b"))
            await bench.report(told)
            if not is_agent_first:
                await agents.send(answer(job, order, "node-b"))
            kept = bench.runtime.registry.runs["run-1"].current().dumps
            assert {rank: dump.stacks[0].frames[0].function for rank, (dump, _) in sorted(kept.items())} == {
                2: "seen_by_the_supervisor",
                3: "seen_by_the_agent",
            }

    play(story)


def test_an_agent_speaks_for_its_own_node_and_only_when_asked(tmp_path):
    token = "node-b-token-of-some-length"
    book = [{"name": "b", "sha256": hashlib.sha256(token.encode()).hexdigest(), "scopes": ["agent"], "node": "node-b"}]

    async def story():
        async with server(tmp_path, tokens=book) as bench, Agents(bench) as agents:
            of_node_b = {"headers": {"Authorization": f"Bearer {token}"}}
            job = FakeJob()
            await begin(bench, job)
            await alarm(bench, job)
            unasked = {"id": 1}
            assert (await agents.send(answer(job, unasked, "node-b"))).status_code == 409
            await bench.tick(1.1)
            order = await agents.order("node-a")
            before = bench.runtime.journal.written_bytes_total
            for content, status, words in (
                (answer(job, order, "node-a"), 403, "speaks for node 'node-b' only"),
                (answer(job, order, "node-a", node="node-b"), 400, "its own ranks"),
                (answer(job, order, "node-b", attempt=1), 400, "its own ranks"),
                (answer(job, order, "node-b", dumps=(), run="another"), 409, "is not asked"),
                (answer(job, {"id": order["id"] + 1}, "node-b"), 409, "is not asked"),
                (answer(job, order, "node-b", dumps=(), node=""), 400, "no usable name"),
                (b"{}", 400, "not an answer to a dump order"),
                (b"[" * 100_000, 400, "not an answer to a dump order"),
            ):
                given = await agents.send(content, **of_node_b)
                assert (given.status_code, words in given.json()["detail"]) == (status, True), given.text
            query = {"node": "node-a", "wait_seconds": 0}
            assert (await bench.client.get("/control/v1/node-orders", params=query, **of_node_b)).status_code == 403
            assert bench.runtime.journal.written_bytes_total == before
            assert bench.runtime.registry.runs["run-1"].current().dumps == {}
            assert (await agents.send(answer(job, order, "node-b"), **of_node_b)).status_code == 200
            assert (await agents.send(answer(job, order, "node-b"), **of_node_b)).status_code == 200, "and once more"

    play(story)


def test_a_rank_that_is_known_on_another_node_is_not_taken_from_it(tmp_path):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            job, order = await asked(bench, agents, "node-a")
            claimed = tuple(RankDump(report=job.rank(rank, node="node-a"), stacks=stacks("claimed")) for rank in (0, 2))
            assert (await agents.send(answer(job, order, "node-a", dumps=claimed))).status_code == 200
            assert list(bench.runtime.registry.runs["run-1"].current().dumps) == [0]

    play(story)


def test_an_answer_after_the_deadline_is_refused(tmp_path):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            job, order = await asked(bench, agents, "node-a")
            bench.clock.move(order["deadline_seconds"] + 0.1)
            assert (await agents.send(answer(job, order, "node-a"))).status_code == 409
            query = {"node": "node-a", "wait_seconds": 0}
            assert (await bench.client.get("/control/v1/node-orders", params=query)).json()["orders"] == []

    play(story)


def test_a_number_counts_only_in_the_life_of_the_server_that_gave_it(tmp_path):
    async def story():
        async with server(tmp_path) as bench, Agents(bench) as agents:
            _, order = await asked(bench, agents, "node-a")
            query = {"node": "node-a", "wait_seconds": 0, "after": order["id"], "epoch": "another server's"}
            listed = (await bench.client.get("/control/v1/node-orders", params=query)).json()
            assert [one["id"] for one in listed["orders"]] == [order["id"]]
            query["epoch"] = listed["epoch"]
            assert (await bench.client.get("/control/v1/node-orders", params=query)).json()["orders"] == []

    play(story)


def test_an_acknowledged_answer_outlives_the_server(tmp_path):
    async def story():
        job = FakeJob()
        async with server(tmp_path) as bench, Agents(bench) as agents:
            await begin(bench, job)
            await alarm(bench, job)
            await bench.tick(1.1)
            order = await agents.order("node-b")
            assert (await agents.send(answer(job, order, "node-b"))).status_code == 200
            clock = bench.clock
        async with server(tmp_path, clock) as bench:
            kept = bench.runtime.registry.runs["run-1"].current()
            assert sorted(kept.dumps) == [2, 3]
            assert kept.nodes_dumped == {order["id"]: {"node-b"}}

    play(story)


def test_too_many_that_wait_for_one_node_are_refused(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            query = {"node": "node-a", "wait_seconds": 30}
            polls = [asyncio.create_task(bench.client.get("/control/v1/node-orders", params=query)) for _ in range(8)]
            while bench.runtime.node_orders.waiting("node-a") < 8:
                await asyncio.sleep(0)
            assert (await bench.client.get("/control/v1/node-orders", params=query)).status_code == 429
            bench.runtime.node_orders.release()
            assert [(await poll).json()["orders"] for poll in polls] == [[]] * 8

    play(story)
