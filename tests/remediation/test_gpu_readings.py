"""What a GPU's readings say by themselves opens one incident: frames of a node over the real application."""

import functools
import inspect
import math
import struct
from dataclasses import dataclass, field

import msgspec
import pytest
from instep_agent.uplink.frames import make_dictionary
from instep_agent.wire import Frame
from msgspec.structs import replace

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.test_drills import wish
from tests.remediation.test_job_stories import begin
from tests.remediation.test_late_faults import XID_64, XID_95, of_boot

FAILED, PENDING = "instep_gpu_row_remap_has_failed", "instep_gpu_row_remap_is_pending"
CORRECTED = "instep_gpu_ecc_corrected_volatile_total"
ASKED = "instep_gpu_recovery_action"
DRILL = ("drill", "true")


def gpu(name, index=0, *labels):
    return name, tuple(sorted((("gpu", str(index)), ("uuid", f"GPU-node-b-{index}"), *labels)))


def gpus(seen_by):
    return "instep_gpus", (("seen_by", seen_by),)


HEALTHY = {
    gpu(name, index): value for index in range(2) for name, value in ((FAILED, 0.0), (PENDING, 0.0), (CORRECTED, 9e4))
}


@dataclass
class Node:
    """One node that sends its readings every second of its own, monotonic clock."""

    bench: object
    job: FakeJob = field(default_factory=FakeJob)
    boot: str = "boot-1"
    up: float = 1000.0

    async def says(self, changes=(), *events, seconds=1):
        values = HEALTHY | dict(changes)
        dictionary = make_dictionary(tuple(sorted(values)))
        column = struct.pack(f"<{len(values)}d", *(values[series] for series in dictionary.series))
        answer = await self.bench.client.post("/ingest/v1/dictionary", content=msgspec.msgpack.encode(dictionary))
        assert answer.status_code == 204
        for number in range(seconds):
            raw = of_boot(self.job.frame("node-b", [], self.bench.clock, () if number else events), self.boot, self.up)
            told = msgspec.msgpack.decode(raw, type=Frame)
            told = replace(told, dictionary_hash=dictionary.hash, values=column)
            await self.bench.send(msgspec.msgpack.encode(told))
            await self.bench.tick(1.0)
            self.up += 1.0


def on_one_node(test):
    """A test of one node that reports to a server of its own: it is given both, before its own arguments."""

    @functools.wraps(test)
    def told(tmp_path, **given):
        async def story():
            async with server(tmp_path) as bench:
                await test(bench, Node(bench), **given)

        play(story)

    own = [one for name, one in inspect.signature(test).parameters.items() if name not in ("bench", "node")]
    folder = inspect.Parameter("tmp_path", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    told.__signature__ = inspect.Signature([folder, *own])
    return told


async def of_all(bench):
    return await bench.incidents("open", "resolved", "withdrawn", "merged")


@on_one_node
async def test_a_row_that_could_not_be_remapped_opens_one_incident_and_its_healthy_twin_none(bench, node):
    await node.says(seconds=5)
    assert await of_all(bench) == []
    await node.says({gpu(FAILED, 1): 1.0}, seconds=20)
    (incident,) = await of_all(bench)
    assert (incident["kind"], incident["owner"], incident["is_drill"]) == ("gpu-fault", "node", False)
    assert incident["summary"].startswith("Row remap failure on node-b GPU 1: a memory row could not")
    assert incident["suspects"][0]["gpu"] == "GPU-node-b-1"
    assert incident["latched"]["clears"] == ["person"]
    (plan,) = (await bench.get("/api/v1/plans"))["plans"]
    assert "drain_node" in [action["name"] for action in plan["actions"]]
    page = (await bench.client.get("/nodes/node-b")).text
    assert "Still latched" in page and "instep_gpu_row_remap_has_failed of GPU 1 is 1." in page


WARNINGS = {
    "a remap that waits for a reset": {gpu(PENDING): 1.0},
    "corrected errors": {gpu(CORRECTED): 1e6},
    "no reading": {gpu(FAILED): math.nan},
    "all GPUs": {gpus("expected"): 2.0, gpus("driver"): 2.0, gpus("pci"): 2.0},
    "more GPUs than expected": {gpus("expected"): 1.0, gpus("driver"): 2.0, gpus("pci"): 2.0},
    "nothing expected": {gpus("driver"): 1.0, gpus("pci"): 2.0},
    "a driver that is not there yet": {gpus("expected"): 2.0, gpus("driver"): 0.0, gpus("pci"): 2.0},
}


@pytest.mark.parametrize("case", WARNINGS)
@on_one_node
async def test_what_does_not_keep_a_gpu_from_work_opens_none(bench, node, case):
    await node.says(WARNINGS[case], seconds=90)
    assert await of_all(bench) == []
    assert (await bench.get("/api/v1/nodes/node-b"))["facts"] == []


@on_one_node
async def test_what_was_so_when_the_agent_began_counts_and_explains_no_crash(bench, node):
    await begin(bench, node.job)
    await node.says({gpu(FAILED): 1.0})
    await bench.report(node.job.exited(2))
    await node.says({gpu(FAILED): 1.0}, seconds=15)
    found = {row["kind"]: row for row in await bench.incidents("open")}
    assert sorted(found) == ["crash", "gpu-fault"]
    assert not (await bench.get(f"/api/v1/incidents/{found['crash']['id']}"))["verdict"]["is_node_at_fault"]


@pytest.mark.parametrize("is_line_first", [True, False])
@on_one_node
async def test_the_line_and_the_reading_of_one_fault_are_one_incident(bench, node, is_line_first):
    line, reading = ({}, node.job.xid(text=XID_64)), ({gpu(FAILED): 1.0},)
    await node.says(*(line if is_line_first else reading), seconds=10)
    await node.says({gpu(FAILED): 1.0}, *(() if is_line_first else line[1:]), seconds=10)
    (incident,) = await of_all(bench)
    assert incident["state"] == "open"
    latched = (await bench.get("/api/v1/nodes/node-b"))["latched"]
    assert [latch["fault_class"] for latch in latched] == ["xid-64"]


def test_it_stays_one_incident_over_restarts_and_reboots_until_a_person_ends_it(tmp_path):
    async def story():
        failed = {gpu(FAILED): 1.0}
        async with server(tmp_path) as bench:
            node = Node(bench)
            await node.says(failed, seconds=10)
        async with server(tmp_path, bench.clock) as bench:
            node.bench = bench
            await node.says(failed, seconds=10)
            node.boot, node.up = "boot-2", 5.0
            await node.says(failed, seconds=10)
            assert len(await of_all(bench)) == 1
            await bench.post("/api/v1/nodes/node-b/repaired", reason="rows were counted anew")
            await node.says(failed, seconds=10)
            assert [row["state"] for row in await of_all(bench)] == ["resolved"]

    play(story)


def test_repaired_said_while_the_reading_stands_holds_over_a_restart_but_not_over_a_reboot(tmp_path):
    async def story():
        failed = {gpu(FAILED): 1.0}
        async with server(tmp_path) as bench:
            node = Node(bench)
            await node.says(failed, seconds=10)
            await bench.post("/api/v1/nodes/node-b/repaired", reason="looks fine")
        async with server(tmp_path, bench.clock) as bench:
            node.bench = bench
            await node.says(failed, seconds=10)
            assert [row["state"] for row in await of_all(bench)] == ["resolved"]
            node.boot, node.up = "boot-2", 5.0
            await node.says(failed, seconds=10)
            assert sorted(row["state"] for row in await of_all(bench)) == ["open", "resolved"]

    play(story)


@on_one_node
async def test_a_drill_opens_the_incident_of_a_drill_and_hides_no_real_one(bench, node):
    drill = {gpu(FAILED): math.nan, gpu(FAILED, 0, DRILL): 1.0}
    await node.says(seconds=2)
    await node.says(drill, seconds=10)
    (incident,) = await of_all(bench)
    assert (incident["is_drill"], incident["labels"]["drill"]) == (True, "true")
    await node.says({gpu(FAILED): 1.0}, seconds=10)
    assert sorted(row["is_drill"] for row in await bench.incidents("open")) == [False, True]


def asks(node, action, number):
    return wish(node.job, action, drill=False, number=number)


@on_one_node
async def test_what_the_driver_asks_for_opens_an_incident_that_ends_when_it_asks_for_nothing(bench, node):
    await node.says({}, asks(node, 2, 1), seconds=12)
    (incident,) = await of_all(bench)
    assert "the driver asks for a reboot of the node; action reboot-node" in incident["summary"]
    await node.says({}, asks(node, 0, 2), seconds=3)
    (over,) = await of_all(bench)
    assert (over["state"], "which ends what the driver asked for" in over["resolution"]) == ("resolved", True)


@pytest.mark.parametrize("is_standing", [True, False])
@on_one_node
async def test_what_was_asked_for_before_the_agent_began_says_so_and_explains_no_crash(bench, node, is_standing):
    await begin(bench, node.job)
    asked = asks(node, 2, 1)
    if is_standing:
        asked = replace(asked, fields=asked.fields | {"is_standing": "true"})
    await bench.report(node.job.exited(2))
    await node.says({}, asked, seconds=15)
    found = {row["kind"]: row for row in await bench.incidents("open")}
    assert sorted(found) == (["crash", "gpu-fault"] if is_standing else ["crash"])
    verdict = (await bench.get(f"/api/v1/incidents/{found['crash']['id']}"))["verdict"]
    assert verdict["is_node_at_fault"] is not is_standing
    if is_standing:
        assert "a reboot of the node, since before anybody looked; action" in found["gpu-fault"]["summary"]


@pytest.mark.parametrize("read", [0.0, 2.0, math.nan])
@pytest.mark.parametrize("is_told", [True, False])
@on_one_node
async def test_a_reading_ends_what_was_asked_for_where_no_agent_was_there_to_tell(bench, node, read, is_told):
    await node.says({gpu(ASKED): 0.0}, seconds=3)
    await node.says({gpu(ASKED): 2.0}, asks(node, 2, 1), seconds=12)
    assert [row["state"] for row in await of_all(bench)] == ["open"]
    await bench.tick(300.0)
    node.up += 300.0
    await node.says({gpu(ASKED): read}, *((asks(node, int(read), 2),) if is_told and read == read else ()))
    await node.says({gpu(ASKED): read}, seconds=10)
    (incident,) = await of_all(bench)
    assert incident["state"] == ("resolved" if read == 0.0 else "open")
    ends = [one["text"] for one in (await bench.get("/api/v1/nodes/node-b"))["facts"] if "nothing" in one["text"]]
    assert len(ends) == (read == 0.0 and not is_told)


@on_one_node
async def test_what_is_asked_for_and_taken_back_at_once_opens_none(bench, node):
    await node.says({}, asks(node, 1, 1), seconds=3)
    await node.says({}, asks(node, 0, 2), seconds=12)
    assert await of_all(bench) == []


@on_one_node
async def test_a_fault_that_was_fatal_for_what_the_driver_asked_only_and_is_no_more_holds_nothing_up(bench, node):
    await begin(bench, node.job)
    line = node.job.xid(text="NVRM: Xid (PCI:0000:3b:00): 13, pid=1, name=python, Graphics Exception")
    await node.says({}, line, asks(node, 1, 2), seconds=3)
    await node.says({}, asks(node, 0, 3), seconds=12)
    assert await bench.incidents("open") == []


@pytest.mark.parametrize("order", ["the fault first", "both at once", "the wish first"])
@on_one_node
async def test_what_the_driver_asks_for_is_a_part_of_the_fault_that_has_it_ask(bench, node, order):
    line, asked = node.job.xid(text=XID_95), asks(node, 1, 2)
    first = {"the fault first": (line,), "both at once": (asked, line), "the wish first": (asked,)}[order]
    await node.says({}, *first, seconds=10)
    await node.says({}, *(one for one in (line, asked) if one not in first), seconds=12)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith("Xid 95 on node-b GPU 0")
    assert incident["state"] == "open"


@on_one_node
async def test_a_gpu_that_is_missing_is_told_when_it_stays_so(bench, node):
    missing = {gpus("expected"): 2.0, gpus("driver"): 1.0, gpus("pci"): 2.0}
    await node.says(missing, seconds=45)
    assert await of_all(bench) == []
    await node.says(missing, seconds=30)
    (incident,) = await of_all(bench)
    assert "a GPU that is expected here is missing" in incident["summary"]
    node.boot, node.up = "boot-2", 5.0
    await node.says(missing | {gpus("driver"): 2.0}, seconds=70)
    assert [row["state"] for row in await of_all(bench)] == ["resolved"]


@on_one_node
async def test_a_gpu_that_is_missing_because_it_was_lost_is_a_part_of_that_incident(bench, node):
    missing = {gpus("expected"): 2.0, gpus("driver"): 1.0, gpus("pci"): 2.0}
    await node.says(missing, node.job.xid(), seconds=90)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith("Xid 79")


@pytest.mark.parametrize(("asked", "read"), [(1, 0.0), (1, 1.0), (0, 0.0)])
def test_a_server_that_starts_again_hears_that_a_reset_is_over_and_takes_silence_for_none(tmp_path, asked, read):
    """The agent was stopped for the reset, and the server for itself: no event tells of it, the reading does. A driver
    that never asked for anything says nothing with its 0."""

    async def story():
        async with server(tmp_path) as bench:
            node = Node(bench)
            events = (node.job.xid(text=XID_95), *((asks(node, asked, 2),) if asked else ()))
            await node.says({gpu(ASKED): float(asked)}, *events, seconds=12)
            assert [row["state"] for row in await of_all(bench)] == ["open"]
        bench.clock.move(7200.0)
        async with server(tmp_path, bench.clock) as bench:
            node.bench, node.up = bench, node.up + 7200.0
            await node.says({gpu(ASKED): read}, seconds=10)
            (incident,) = await of_all(bench)
            assert incident["state"] == ("resolved" if asked and read == 0.0 else "open")

    play(story)
