"""Uncorrected ECC errors that are only counted: a counter that rises opens one incident, one that stands high none."""

import math

import pytest

from tests.remediation.bench import play, server
from tests.remediation.test_gpu_readings import DRILL, Node, asks, gpu, of_all, on_one_node
from tests.remediation.test_job_stories import begin
from tests.remediation.test_late_faults import XID_95

UNCORRECTED = "instep_gpu_ecc_uncorrected_volatile_total"
XID_48 = "NVRM: Xid (PCI:0000:3b:00): 48, pid=7, An uncorrectable double bit error (DBE) has been detected on GPU."
XID_94 = "NVRM: Xid (PCI:0000:3b:00): 94, pid=7, name=python, Contained: SM (0x1)."


def counted(count, index=0, *labels):
    return {gpu(UNCORRECTED, index, *labels): float(count)}


def sram(count, kind="parity", period="volatile"):
    return {gpu("instep_gpu_sram_errors_total", 0, ("kind", kind), ("period", period)): float(count)}


@pytest.mark.parametrize(
    ("before", "after", "series"),
    [
        (counted(3), counted(5), "ecc_uncorrected_volatile_total by 2 to 5"),
        (counted(0), counted(1), "ecc_uncorrected_volatile_total by 1 to 1"),
        (counted(3), counted(1), "ecc_uncorrected_volatile_total by 1 to 1"),
        (sram(0), sram(1), "sram_errors_total (parity) by 1 to 1"),
        (sram(4, "secded"), sram(5, "secded"), "sram_errors_total (secded) by 1 to 5"),
        (sram(0) | counted(0), sram(1) | counted(1), "(parity) by 1 to 1"),
    ],
    ids=["rises", "first", "driver loaded again", "sram parity", "sram secded", "both"],
)
@on_one_node
async def test_a_count_that_rises_opens_one_incident(bench, node, before, after, series):
    await node.says(before, seconds=20)
    assert await of_all(bench) == []
    await node.says(after, seconds=20)
    (incident,) = await of_all(bench)
    assert (incident["kind"], incident["owner"], incident["is_drill"]) == ("gpu-fault", "node", False)
    assert incident["summary"].startswith("Uncorrected ECC error on node-b GPU 0: it counted an ECC error")
    assert incident["summary"].endswith("action reset-gpu.")
    assert incident["suspects"][0]["gpu"] == "GPU-node-b-0"
    assert incident["latched"]["clears"] == ["recovery-none", "reset", "reboot", "person"]
    (fact,) = (await bench.get("/api/v1/nodes/node-b"))["facts"]
    assert series in fact["text"] and fact["text"].startswith("Within 1 s GPU 0 counted errors")


STANDS = {
    "of before": [counted(3)],
    "cleared": [counted(3), counted(0)],
    "not read between": [counted(3), counted(math.nan), counted(3)],
    "first read late": [{}, counted(3)],
    "another GPU has as many": [counted(3), counted(3) | counted(3, 1)],
    "corrected on the chip": [sram(3, "corrected"), sram(900, "corrected")],
    "over the board's life": [sram(3, "parity", "aggregate"), sram(4, "parity", "aggregate")],
}


@pytest.mark.parametrize("case", STANDS)
@on_one_node
async def test_a_count_that_does_not_rise_opens_none(bench, node, case):
    for values in STANDS[case]:
        await node.says(values, seconds=15)
    assert await of_all(bench) == []
    assert (await bench.get("/api/v1/nodes/node-b"))["facts"] == []


@pytest.mark.parametrize("is_higher", [True, False])
@on_one_node
async def test_what_an_agent_that_starts_again_reads_is_held_against_what_was_read_before(bench, node, is_higher):
    await node.says(counted(3), seconds=5)
    await bench.tick(120.0)
    node.up += 120.0
    await node.says({}, seconds=2)
    await node.says(counted(4 if is_higher else 3), seconds=15)
    found = await of_all(bench)
    assert len(found) == is_higher
    if is_higher:
        (fact,) = (await bench.get("/api/v1/nodes/node-b"))["facts"]
        assert fact["text"].startswith("Within 123 s GPU 0")


def test_a_server_that_starts_again_and_a_reboot_find_what_stands_of_before(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            node = Node(bench)
            await node.says(counted(3), seconds=5)
        async with server(tmp_path, bench.clock) as bench:
            node.bench = bench
            await node.says(counted(3), seconds=10)
            node.boot, node.up = "boot-2", 5.0
            await node.says(counted(2), seconds=10)
            assert await of_all(bench) == []

    play(story)


def test_the_same_rise_is_told_once_over_a_start_of_the_server(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            node = Node(bench)
            await node.says(counted(3), seconds=5)
            await node.says(counted(4), seconds=15)
        async with server(tmp_path, bench.clock) as bench:
            node.bench = bench
            await node.says(counted(4), seconds=20)
            assert len(await of_all(bench)) == 1

    play(story)


@pytest.mark.parametrize("text", [XID_48, XID_95], ids=["Xid 48", "Xid 95"])
@pytest.mark.parametrize("order", ["line", "both", "count"])
@on_one_node
async def test_the_line_and_the_count_of_one_error_are_one_incident(bench, node, text, order):
    line = node.job.xid(text=text)
    await node.says(counted(3), seconds=5)
    await node.says(counted(3 if order == "line" else 4), *(() if order == "count" else (line,)), seconds=10)
    await node.says(counted(4), *((line,) if order == "count" else ()), seconds=20)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith(f"Xid {48 if text == XID_48 else 95} on node-b GPU 0")
    assert incident["state"] == "open"


@pytest.mark.parametrize("order", ["line", "both", "count"])
@on_one_node
async def test_a_count_whose_error_was_contained_opens_none(bench, node, order):
    line = node.job.xid(text=XID_94)
    await node.says(counted(3), seconds=5)
    await node.says(counted(3 if order == "line" else 4), *(() if order == "count" else (line,)), seconds=5)
    await node.says(counted(4), *((line,) if order == "count" else ()), seconds=20)
    assert await of_all(bench) == []


@on_one_node
async def test_an_error_long_after_one_that_was_contained_opens_its_incident(bench, node):
    await node.says(counted(3), node.job.xid(text=XID_94), seconds=5)
    await node.says(counted(4), seconds=100)
    await node.says(counted(5), seconds=20)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith("Uncorrected ECC error")


@on_one_node
async def test_what_the_driver_asks_for_because_of_the_errors_is_a_part_of_their_incident(bench, node):
    await node.says(counted(0), seconds=5)
    await node.says(counted(0), asks(node, 2, 1), seconds=10)
    await node.says(counted(1), seconds=20)
    (incident,) = await of_all(bench)
    assert incident["summary"].startswith("Uncorrected ECC error on node-b GPU 0")
    assert incident["summary"].endswith("action reboot-node.")


@on_one_node
async def test_errors_that_go_on_are_told_once_a_minute_in_one_incident(bench, node):
    for count in range(70):
        await node.says(counted(count))
    assert len(await of_all(bench)) == 1
    texts = [fact["text"] for fact in (await bench.get("/api/v1/nodes/node-b"))["facts"]]
    assert sorted(text.rpartition(": ")[2] for text in texts) == [
        f"{UNCORRECTED} by {n}." for n in ("1 to 1", "60 to 61")
    ]


@on_one_node
async def test_errors_after_a_repair_are_another_incident(bench, node):
    await node.says(counted(0), seconds=2)
    await node.says(counted(1), seconds=70)
    await bench.post("/api/v1/nodes/node-b/repaired", reason="diagnosed")
    await node.says(counted(1), seconds=10)
    assert [row["state"] for row in await of_all(bench)] == ["resolved"]
    await node.says(counted(2), seconds=20)
    assert sorted(row["state"] for row in await of_all(bench)) == ["open", "resolved"]


@on_one_node
async def test_each_drill_counts_up_from_the_real_value_and_leaves_no_real_incident(bench, node):
    await node.says(counted(3), seconds=2)
    for _ in range(2):
        await node.says(counted(math.nan) | counted(4, 0, DRILL), seconds=15)
        await node.says(counted(3), seconds=70)
    (incident,) = await of_all(bench)
    assert (incident["is_drill"], incident["labels"]["drill"]) == (True, "true")
    facts = (await bench.get("/api/v1/nodes/node-b"))["facts"]
    assert [(fact["is_drill"], fact["text"].rpartition(" ")[2]) for fact in facts] == [(True, "4.")] * 2


@pytest.mark.parametrize("is_contained", [False, True])
@on_one_node
async def test_a_crash_by_an_error_that_was_counted_is_the_nodes_unless_it_was_contained(bench, node, is_contained):
    await begin(bench, node.job)
    await node.says(counted(0), seconds=2)
    await bench.report(node.job.exited(2))
    await node.says(counted(1), *((node.job.xid(text=XID_94),) if is_contained else ()), seconds=15)
    (crash,) = await bench.incidents("open")
    assert crash["kind"] == "crash"
    verdict = (await bench.get(f"/api/v1/incidents/{crash['id']}"))["verdict"]
    assert verdict["is_node_at_fault"] is not is_contained


@on_one_node
async def test_a_frame_that_comes_late_is_no_fall_of_the_counter(bench, node):
    await node.says(counted(2))
    await node.says(counted(3), seconds=140)
    found = await of_all(bench)
    node.up -= 70.5
    await node.says(counted(2))
    node.up += 70.5
    await node.says(counted(3), seconds=20)
    assert await of_all(bench) == found
    assert len((await bench.get("/api/v1/nodes/node-b"))["facts"]) == 1


@pytest.mark.parametrize("is_started_again", [False, True])
def test_an_incident_is_corrected_when_the_driver_says_late_that_the_error_was_contained(tmp_path, is_started_again):
    async def story():
        async with server(tmp_path) as bench:
            node = Node(bench)
            await node.says(counted(3), seconds=5)
            await node.says(counted(4), seconds=14)
            (incident,) = await of_all(bench)
            assert incident["state"] == "open"
            if not is_started_again:
                await late_line(bench, node, incident)
        if is_started_again:
            async with server(tmp_path, bench.clock) as bench:
                node.bench = bench
                await late_line(bench, node, incident)

    async def late_line(bench, node, incident):
        await node.says(counted(4), node.job.xid(text=XID_94), seconds=5)
        (after,) = await of_all(bench)
        assert (after["id"], after["state"]) == (incident["id"], "resolved")
        assert "94" in after["resolution"] and "The error was contained" in after["resolution"]
        latched = (await bench.get("/api/v1/nodes/node-b"))["latched"]
        assert [latch["fault_class"] for latch in latched] == ["xid-94"]
        await node.says(counted(4), seconds=100)
        await node.says(counted(5), seconds=20)
        assert sorted(row["state"] for row in await of_all(bench)) == ["open", "resolved"]

    play(story)


@pytest.mark.parametrize(
    "case", ["long after", "of another GPU", "of a drill", "of one error of two", "with a reset asked for"]
)
@on_one_node
async def test_an_incident_stands_where_the_line_is_not_about_its_errors(bench, node, case):
    await node.says(counted(3), seconds=5)
    await node.says(counted(4), seconds=14)
    text = XID_94.replace("3b", "5e") if case == "of another GPU" else XID_94
    line = node.job.xid(text=text, drill=case == "of a drill")
    if case == "long after":
        await node.says(counted(4), seconds=60)
    if case == "of one error of two":
        await node.says(counted(4), seconds=50)
        await node.says(counted(5), seconds=12)
    asked = (asks(node, 1, 2),) if case == "with a reset asked for" else ()
    await node.says(counted(4 + (case == "of one error of two")), *asked, line, seconds=20)
    (incident,) = [row for row in await of_all(bench) if not row["is_drill"]]
    assert incident["state"] == "open"
    assert incident["summary"].startswith("Uncorrected ECC error")


@on_one_node
async def test_a_stop_by_an_error_that_turns_out_contained_says_so_and_latches_nothing(bench, node):
    await begin(bench, node.job)
    await node.says(counted(0), seconds=2)
    await bench.report(node.job.exited(2))
    await node.says(counted(1), seconds=14)
    (crash,) = await bench.incidents("open")
    await node.says(counted(1), node.job.xid(text=XID_94), seconds=5)
    after = await bench.get(f"/api/v1/incidents/{crash['id']}")
    assert any("The error was contained" in done for done in after["done"])
    assert [one["fault_class"] for one in (await bench.get("/api/v1/nodes/node-b"))["latched"]] == ["xid-94"]
