"""A fault that is told late opens one incident with its true onset and plans nothing; one that was over is history."""

import msgspec
import pytest
from instep_agent.wire import Frame
from instep_remediation.policy import NodePolicy, Policy
from msgspec.structs import replace

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.scripted import ScriptedExecutor
from tests.remediation.test_job_stories import begin

XID_64 = "NVRM: Xid (PCI:0000:3b:00): 64, Row remapper failure."
XID_95 = "NVRM: Xid (PCI:0000:3b:00): 95, Uncontained ECC error."


def of_boot(frame, boot, uptime_seconds):
    """The same frame, of another boot of the node."""
    told = msgspec.msgpack.decode(frame, type=Frame)
    anchor = replace(told.anchor, boot_id=boot, monotonic_ns=int(uptime_seconds * 1e9))
    return msgspec.msgpack.encode(replace(told, boot_id=boot, anchor=anchor))


async def settle(bench, seconds=10):
    for _ in range(seconds):
        await bench.tick(1.0)


@pytest.mark.parametrize("age", [31.0, 600.0])
@pytest.mark.parametrize("has_job", [False, True])
def test_a_fault_that_is_told_late_opens_its_incident_and_plans_nothing(tmp_path, age, has_job):
    async def story():
        policy = Policy(nodes=NodePolicy(drain="auto"))
        async with server(tmp_path, policy=policy, nodes=ScriptedExecutor()) as bench:
            job = FakeJob()
            if has_job:
                await begin(bench, job)
            happened_at = bench.clock.realtime() - age
            await bench.send(job.frame("node-b", [], bench.clock, (job.xid(age=age),)))
            await settle(bench)
            (incident,) = await bench.incidents("open")
            assert incident["kind"] == "gpu-fault"
            assert incident["timeline"]["onset_realtime"] == pytest.approx(happened_at, abs=0.01)
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert [action["name"] for action in plan["actions"]] == ["notify"]
            assert "Nothing is planned about nodes: the evidence is" in plan["reason"]

    play(story)


def test_a_fresh_fault_is_planned_for(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            await bench.send(FakeJob().frame("node-b", [], bench.clock, (FakeJob().xid(age=5.0),)))
            await settle(bench)
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert [action["name"] for action in plan["actions"]] == ["drain_node", "notify"]

    play(story)


def test_a_fact_that_is_told_again_after_a_reconnection_opens_no_second_incident(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            for number, age in enumerate((40.0, 52.0, 700.0)):
                event = job.xid(age=age, id=f"boot-node-b:epoch-{number}:1")
                await bench.send(job.frame("node-b", [], bench.clock, (event,)))
                await settle(bench)
            assert len(await bench.incidents("open", "resolved", "merged", "withdrawn")) == 1
        async with server(tmp_path, bench.clock) as bench:
            await settle(bench)
            await bench.send(job.frame("node-b", [], bench.clock, (job.xid(age=800.0, id="boot-node-b:epoch-9:1"),)))
            await settle(bench)
            assert len(await bench.incidents("open", "resolved", "merged", "withdrawn")) == 1

    play(story)


@pytest.mark.parametrize("is_boot_known_first", [True, False])
@pytest.mark.parametrize(("text", "opens"), [(XID_95, False), (XID_64, True)], ids=["reboot ends it", "it does not"])
def test_a_fault_of_before_the_last_boot_is_history_where_a_boot_ends_it(tmp_path, is_boot_known_first, text, opens):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            old = of_boot(job.frame("node-b", [], bench.clock, (job.xid(age=120.0, text=text),)), "boot-1", 50_000.0)
            new = of_boot(job.frame("node-b", [], bench.clock), "boot-2", 60.0)
            await bench.send(*((new, old) if is_boot_known_first else (old, new)))
            await settle(bench)
            assert [row["kind"] for row in await bench.incidents()] == (["gpu-fault"] if opens else [])
            node = await bench.get("/api/v1/nodes/node-b")
            assert node["boot_id"] == "boot-2"
            assert text in {fact["text"] for fact in node["facts"]}, "it is recorded"
            assert [latch["fault_class"] for latch in node["latched"]] == (["xid-64"] if opens else [])

    play(story)


def test_a_fault_of_this_boot_stands_although_an_earlier_boot_is_told_after_it(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            now = job.frame("node-b", [], bench.clock, (job.xid(age=1.0, text=XID_95),))
            await bench.send(of_boot(now, "boot-2", 60.0))
            await settle(bench, 1)
            event = job.xid(age=300.0, text=XID_95, id="boot-1:epoch-1:1")
            await bench.send(of_boot(job.frame("node-b", [], bench.clock, (event,)), "boot-1", 50_000.0))
            await settle(bench)
            (incident,) = await bench.incidents("open")
            assert incident["verdict"]["boot_id"] == "boot-2"
            assert [latch["count"] for latch in (await bench.get("/api/v1/nodes/node-b"))["latched"]] == [1]

    play(story)


@pytest.mark.parametrize("clock_error", [0.0, 90.0], ids=["right clock", "90 s off"])
def test_a_frame_that_waited_while_the_server_was_away_is_as_old_as_it_is(tmp_path, clock_error):
    async def story():
        job = FakeJob()
        policy = Policy(nodes=NodePolicy(drain="auto"))
        async with server(tmp_path) as bench:
            await bench.send(wrong(of_boot(job.frame("node-b", [], bench.clock), "boot-1", 500.0), clock_error))
            await settle(bench, 1)
        spooled = of_boot(job.frame("node-b", [], bench.clock, (job.xid(text=XID_95),)), "boot-1", 560.0)
        happened_at = bench.clock.realtime() + 58.8  # A minute after the first frame, less 1 s and 0.2 s.
        (tmp_path / "journal").rename(tmp_path / "lost")  # As if its segments had been used up.
        bench.clock.move(1800.0)
        bench.clock.seconds += 77_777.0  # Another start of the machine: only its real time goes on.
        async with server(tmp_path, bench.clock, policy, ScriptedExecutor()) as again:
            await again.send(wrong(spooled, clock_error))
            await settle(again)
            (incident,) = await again.incidents("open")
            assert incident["timeline"]["onset_realtime"] == pytest.approx(happened_at, abs=0.1)
            (plan,) = (await again.get("/api/v1/plans"))["plans"]
            assert "Nothing is planned about nodes: the evidence is" in plan["reason"]

    play(story)


def wrong(frame, seconds):
    """The same frame of a node whose real time is wrong."""
    told = msgspec.msgpack.decode(frame, type=Frame)
    anchor = replace(told.anchor, realtime_ns=told.anchor.realtime_ns + int(seconds * 1e9))
    return msgspec.msgpack.encode(replace(told, anchor=anchor))
