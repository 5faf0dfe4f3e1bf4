"""A fault stands until something that its row names ends it: a reboot, the driver, a person; and it says so."""

import pytest
from msgspec.structs import replace

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.test_drills import wish
from tests.remediation.test_job_stories import begin
from tests.remediation.test_late_faults import XID_64, XID_95, of_boot, settle


async def fault(bench, job, text=XID_95, **changes):
    """A node whose GPU has a fault, two minutes after its boot."""
    event = replace(job.xid(text=text), **changes)
    await bench.send(of_boot(job.frame("node-b", [], bench.clock, (event,)), "boot-1", 120.0))
    await settle(bench)
    (incident,) = await bench.incidents("open")
    return incident


async def reboot(bench, job, boot="boot-2"):
    bench.clock.move(200.0)
    await bench.send(of_boot(job.frame("node-b", [], bench.clock), boot, 30.0))
    await settle(bench, 1)


def test_a_standing_fault_says_since_when_and_what_ends_it(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            incident = await fault(bench, FakeJob())
            assert incident["latched"]["clears"] == ["recovery-none", "reset", "reboot", "person"]
            assert incident["latched"]["since"] == incident["timeline"]["onset_at"]
            (latch,) = (await bench.get("/api/v1/nodes/node-b"))["latched"]
            assert (latch["fault_class"], latch["severity"], latch["count"]) == ("xid-95", "fatal", 1)
            page = (await bench.client.get("/nodes/node-b")).text
            assert "Still latched" in page and "a reboot of the node" in page
            assert "never by time" in (await bench.client.get(f"/incidents/{incident['id']}")).text

    play(story)


@pytest.mark.parametrize("is_restarted", [False, True], ids=["one server", "a server that starts again"])
def test_a_reboot_ends_what_it_ends_and_says_so(tmp_path, is_restarted):
    async def story():
        job = FakeJob()
        async with server(tmp_path) as bench:
            incident = await fault(bench, job)
            if not is_restarted:
                await reboot(bench, job)
                await over(bench, incident)
        if is_restarted:
            async with server(tmp_path, bench.clock) as again:
                await reboot(again, job)
                await over(again, incident)

    async def over(bench, incident):
        (found,) = await bench.incidents()
        assert (found["id"], found["state"]) == (incident["id"], "resolved")
        assert found["resolution"] == "Node node-b was rebooted (boot boot-2), which ends Xid 95."
        node = await bench.get("/api/v1/nodes/node-b")
        assert node["latched"] == [] and node["plans"] == [], "its drain is not proposed any more"

    play(story)


def test_a_remap_failure_outlives_the_reboot(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            incident = await fault(bench, job, XID_64)
            await reboot(bench, job)
            (found,) = await bench.incidents("open")
            assert (found["id"], found["latched"]["clears"]) == (incident["id"], ["person"])
            assert [latch["fault_class"] for latch in (await bench.get("/api/v1/nodes/node-b"))["latched"]] == [
                "xid-64"
            ]

    play(story)


def test_an_agent_that_starts_again_is_no_reboot(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await fault(bench, job)
            await reboot(bench, job, boot="boot-1")
            assert len(await bench.incidents("open")) == 1

    play(story)


def test_the_same_fault_after_the_reboot_is_a_new_incident(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await fault(bench, job)
            await reboot(bench, job)
            event = job.xid(text=XID_95, id="boot-2:epoch-1:1")
            await bench.send(of_boot(job.frame("node-b", [], bench.clock, (event,)), "boot-2", 60.0))
            await settle(bench)
            assert sorted(row["state"] for row in await bench.incidents()) == ["open", "resolved"]

    play(story)


@pytest.mark.parametrize(("is_drill", "left"), [(False, 0), (True, 1)])
def test_the_driver_that_asks_for_nothing_any_more_ends_what_a_reset_ends_and_a_drill_does_not(
    tmp_path, is_drill, left
):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await fault(bench, job)
            asked = wish(job, 0, drill=is_drill, number=5)
            await bench.send(of_boot(job.frame("node-b", [], bench.clock, (asked,)), "boot-1", 140.0))
            await settle(bench, 2)
            assert len(await bench.incidents("open")) == left
            resolved = [row["resolution"] for row in await bench.incidents("resolved")]
            assert len(resolved) == 1 - left and all("asks for nothing any more" in words for words in resolved)

    play(story)


async def crash(bench, job):
    """A job that stops by a fault of node-b."""
    await begin(bench, job)
    await bench.send(*job.frames(job.healthy(1), bench.clock, {"node-b": (job.xid(),)}))
    await bench.report(job.exited(2))
    await bench.tick(0.7)
    (incident,) = await bench.incidents("open")
    assert incident["kind"] == "crash"
    return incident


def test_repaired_said_before_the_stop_is_over_need_not_be_said_again(tmp_path):
    async def story():
        job = FakeJob()
        async with server(tmp_path) as bench:
            incident = await crash(bench, job)
            answer = await bench.post("/api/v1/nodes/node-b/repaired", reason="GPU replaced")
            assert (answer["resolved"], answer["remembered"]) == ([], [incident["id"]])
            (found,) = await bench.incidents("open")
            assert "Repaired, says admin: GPU replaced" in found["latched"]["mended"]
            assert "It ends as soon as the job is over its stop" in (await bench.client.get("/")).text
            (restart,) = await bench.orders()
        async with server(tmp_path, bench.clock) as bench:
            await bench.report(*job.restarted(restart["id"], ("node-a", "node-c")))
            (found,) = await bench.incidents()
            assert (found["id"], found["state"]) == (incident["id"], "resolved")
            assert found["resolution"].startswith("Repaired, says admin: GPU replaced Step 41 was kept")
            assert (await bench.get("/api/v1/nodes/node-b"))["latched"] == []

    play(story)


def test_a_reboot_before_the_stop_is_over_is_remembered_too(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            incident = await crash(bench, job)
            (restart,) = await bench.orders()
            await reboot(bench, job)
            await bench.report(*job.restarted(restart["id"], ("node-a", "node-c")))
            (found,) = await bench.incidents()
            assert (found["id"], found["state"]) == (incident["id"], "resolved")
            assert found["resolution"].startswith("Node node-b was rebooted")

    play(story)


def test_repaired_said_while_the_fault_still_waits_for_its_incident_opens_none(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.send(*job.frames(job.healthy(1), bench.clock, {"node-b": (job.xid(),)}))
            await bench.tick(1.0)
            await bench.post("/api/v1/nodes/node-b/repaired", reason="GPU replaced")
            await settle(bench)
            assert await bench.incidents("open") == []

    play(story)


def test_the_same_fault_after_the_repair_is_a_new_incident_while_the_stop_still_lasts(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await crash(bench, job)
            await bench.post("/api/v1/nodes/node-b/repaired", reason="GPU replaced")
            bench.clock.move(60.0)
            again = job.xid(id="boot-node-b:epoch-1:7")
            await bench.send(job.frame("node-b", [], bench.clock, (again,)))
            await settle(bench)
            assert sorted(row["kind"] for row in await bench.incidents("open")) == ["crash", "gpu-fault"]

    play(story)
