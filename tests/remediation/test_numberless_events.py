"""What NVML reports without a number opens one incident where it keeps a GPU from work, and is one with its Xid."""

import pytest
from instep_agent.wire import Event

from tests.remediation.test_gpu_readings import DRILL, asks, gpu, of_all, on_one_node
from tests.remediation.test_job_stories import begin
from tests.remediation.test_late_faults import XID_95

LIMIT = "instep_gpu_sram_threshold_is_exceeded"
XID_48 = "NVRM: Xid (PCI:0000:3b:00): 48, pid=7, An uncorrectable double bit error (DBE) has been detected on GPU."
XID_94 = "NVRM: Xid (PCI:0000:3b:00): 94, pid=7, name=python, Contained: SM (0x1)."
XID_119 = (
    "NVRM: Xid (PCI:0000:3b:00): 119, pid=7, name=python, Timeout after 6s of waiting for RPC response from GPU0 GSP!"
)
SUMMARIES = {
    "ecc_uncorrected": "Uncorrected ECC error on node-b GPU 0: it counted an ECC error",
    "dram_retirement_failure": "Row remap failure on node-b GPU 0: a memory row could not",
    "poison_fatal": "Fatal poison error on node-b GPU 0: poisoned data was used and not contained",
    "gpu_unavailable": "GPU unavailable on node-b GPU 0: the driver has given the GPU up",
}
LINES = {"ecc_uncorrected": XID_48, "poison_fatal": XID_95, "gpu_unavailable": XID_119}


def reported(kind, *, number=1, drill=False, index=0):
    """An event without a number, as the agent sends it."""
    pci = ("0000:3b:00", "0000:5e:00")[index]
    fields = {"type": kind, "gpu": str(index), "uuid": f"GPU-node-b-{index}", "pci": pci}
    return Event(
        id=f"boot-node-b:epoch-1:{700 + number}",
        kind="gpu_event",
        text=f"GPU {index} ({pci}) reported {kind.replace('_', ' ')}.",
        age_seconds=0.1,
        monotonic_ns=1,
        realtime_ns=1_700_000_000_000_000_000,
        fields=fields,
        is_drill=drill,
    )


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("drill", [False, True])
@on_one_node
async def test_an_event_that_keeps_a_gpu_from_work_opens_one_incident(bench, node, kind, drill):
    await node.says({}, reported(kind, drill=drill), seconds=20)
    await node.says({}, reported(kind, number=2, drill=drill), seconds=20)
    (incident,) = await of_all(bench)
    assert (incident["owner"], incident["is_drill"]) == ("node", drill)
    assert incident["summary"].startswith(SUMMARIES[kind].replace(": ", " (a drill): " if drill else ": ", 1))
    assert incident["labels"]["severity"] == "critical"


@pytest.mark.parametrize(
    "kind",
    ["ecc_corrected", "ecc_corrected_storm", "dram_retirement", "poison_nonfatal", "power_source", "type_0x10000", ""],
)
@on_one_node
async def test_an_event_that_hurts_no_further_work_opens_none(bench, node, kind):
    await node.says({}, reported(kind), seconds=20)
    assert await of_all(bench) == []


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("order", ["line", "both", "event"])
@on_one_node
async def test_the_event_and_the_line_of_one_error_are_one_incident(bench, node, kind, order):
    line, event = node.job.xid(text=LINES[kind]), reported(kind)
    first = {"line": (line,), "both": (event, line), "event": (event,)}[order]
    await node.says({}, *first, seconds=10)
    await node.says({}, *(one for one in (line, event) if one not in first), seconds=20)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith("Xid ") and incident["state"] == "open"


@on_one_node
async def test_an_error_that_is_counted_reported_and_asked_for_is_one_incident(bench, node):
    count = gpu("instep_gpu_ecc_uncorrected_volatile_total")
    await node.says({count: 0.0}, seconds=2)
    told = (reported("ecc_uncorrected"), reported("gpu_unavailable", number=2), asks(node, 1, 3))
    await node.says({count: 0.0}, *told, seconds=3)
    await node.says({count: 1.0}, reported("poison_fatal", number=4), seconds=20)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith("Fatal poison error")


@on_one_node
async def test_events_of_two_gpus_are_two_incidents(bench, node):
    two = [reported("gpu_unavailable", number=index, index=index) for index in range(2)]
    await node.says({}, *two, seconds=20)
    assert len(await of_all(bench)) == 2


@pytest.mark.parametrize("is_contained", [False, True])
@on_one_node
async def test_a_crash_by_an_error_that_was_reported_is_the_nodes_unless_it_was_contained(bench, node, is_contained):
    await begin(bench, node.job)
    await bench.report(node.job.exited(2))
    line = (node.job.xid(text=XID_94),) if is_contained else ()
    await node.says({}, reported("ecc_uncorrected"), *line, seconds=15)
    (crash,) = await bench.incidents("open")
    verdict = (await bench.get(f"/api/v1/incidents/{crash['id']}"))["verdict"]
    assert verdict["is_node_at_fault"] is not is_contained
    if not is_contained:
        assert any("Uncorrected ECC error on node-b GPU 0" in one["text"] for one in verdict["evidence"])


@pytest.mark.parametrize("drill", [False, True])
@on_one_node
async def test_the_limit_of_errors_on_the_chip_asks_for_repair_and_wakes_nobody(bench, node, drill):
    await node.says({gpu(LIMIT): 0.0}, seconds=20)
    assert await of_all(bench) == []
    await node.says({gpu(LIMIT, 0, *([DRILL] if drill else [])): 1.0}, seconds=20)
    (incident,) = await of_all(bench)
    assert (incident["labels"]["severity"], incident["is_drill"]) == ("warning", drill)
    assert incident["summary"].startswith("SRAM error limit on node-b GPU 0")
    assert incident["summary"].endswith("action contact-support.")
    assert incident["latched"]["clears"] == ["person"]


@on_one_node
async def test_the_limit_is_a_part_of_the_error_that_passed_it_and_outlasts_its_reset(bench, node):
    await node.says({gpu(LIMIT): 0.0}, node.job.xid(text=XID_48), asks(node, 1, 2), seconds=3)
    await node.says({gpu(LIMIT): 1.0}, seconds=20)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith("Xid 48") and incident["labels"]["severity"] == "critical"
    assert any(LIMIT in done for done in incident["done"])
    await node.says({gpu(LIMIT): 1.0}, asks(node, 0, 3), seconds=20)
    rows = {row["state"]: row["summary"] for row in await of_all(bench)}
    assert rows["resolved"].startswith("Xid 48") and rows["open"].startswith("SRAM error limit")
    assert len(rows) == 2


@on_one_node
async def test_the_limit_that_was_passed_before_is_its_own_incident_in_each_boot_and_explains_no_crash(bench, node):
    await begin(bench, node.job)
    await node.says({gpu(LIMIT): 1.0})
    await bench.report(node.job.exited(2))
    await node.says({gpu(LIMIT): 1.0}, seconds=15)
    found = {row["kind"]: row for row in await bench.incidents("open")}
    assert sorted(found) == ["crash", "gpu-fault"]
    assert not (await bench.get(f"/api/v1/incidents/{found['crash']['id']}"))["verdict"]["is_node_at_fault"]
    node.boot, node.up = "boot-2", 5.0
    await node.says({gpu(LIMIT): 1.0}, seconds=15)
    assert len([row for row in await of_all(bench) if row["kind"] == "gpu-fault"]) == 1
