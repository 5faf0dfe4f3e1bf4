"""A drill hides no real fault, mends none, and what is known of the real thing is never taken from one."""

import pytest
from msgspec.structs import replace

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.test_job_stories import begin

WHERE = {"gpu": "0", "uuid": "GPU-node-b-0", "pci": "0000:3b:00"}


def wish(job, action, *, drill, number):
    """The driver asks for something; or a drill has it ask."""
    fields = WHERE | {"action": str(action)}
    return replace(
        job.xid(drill=drill, id=f"boot-node-b:epoch-1:{number}"), kind="gpu_recovery", text="GPU 0.", fields=fields
    )


async def incidents_after(bench, job, *events):
    await bench.send(job.frame("node-b", [], bench.clock, events))
    for _ in range(10):
        await bench.tick(1.0)
    return await bench.incidents("open")


@pytest.mark.parametrize("is_drill_last", [False, True])
def test_a_drill_and_the_real_fault_told_together_are_two_incidents(tmp_path, is_drill_last):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            real, drill = job.xid(id="boot-node-b:epoch-1:1"), job.xid(drill=True, id="boot-node-b:epoch-1:2")
            found = await incidents_after(bench, job, *((real, drill) if is_drill_last else (drill, real)))
            assert sorted(row["labels"]["drill"] for row in found) == ["false", "true"]

    play(story)


@pytest.mark.parametrize(("is_wish_drill", "is_told"), [(True, False), (False, True)])
def test_what_a_drill_has_a_gpu_ask_for_is_not_what_a_real_fault_needs(tmp_path, is_wish_drill, is_told):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            asked = wish(job, 1, drill=is_wish_drill, number=9)
            found = await incidents_after(bench, job, job.xid(id="boot-node-b:epoch-1:1"), asked)
            (incident,) = [row for row in found if not row["is_drill"]]
            assert ("the driver asks for" in incident["summary"]) is is_told

    play(story)


def test_a_crash_is_explained_by_the_real_fault_where_there_is_one(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            both = (job.xid(drill=True, id="boot-node-b:epoch-1:1"), job.xid(id="boot-node-b:epoch-1:2"))
            await bench.send(*job.frames(job.healthy(1), bench.clock, {"node-b": both}))
            await bench.report(job.exited(2))
            await bench.tick(0.7)
            (incident,) = [row for row in await bench.incidents("open") if row["kind"] == "crash"]
            assert (incident["is_drill"], incident["labels"]["drill"]) == (False, "false")

    play(story)


def test_a_drill_that_comes_later_makes_no_drill_of_a_real_incident(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.report(job.exited(2))
            await bench.tick(1.0)
            (incident,) = await bench.incidents("open")
            await incidents_after(bench, job, job.xid(drill=True))
            (again,) = [row for row in await bench.incidents("open") if row["id"] == incident["id"]]
            assert (again["is_drill"], again["labels"]) == (False, incident["labels"])

    play(story)
