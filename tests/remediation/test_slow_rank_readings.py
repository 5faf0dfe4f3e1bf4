"""What a slow rank's node says of itself names owner and cause; what all say, or say at another time, does not."""

import math
import struct

import msgspec
import pytest
from instep_agent.uplink.frames import make_dictionary
from instep_agent.wire import Frame
from instep_diagnosis.detectors.node_or_job import Attribution, RankNodeFacts
from instep_diagnosis.node_readings import NodeReadings, Seen, with_readings
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Kind, Owner, Suspect, Verdict
from instep_remediation.policy import NodePolicy, Policy
from msgspec.structs import replace

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.scripted import ScriptedExecutor
from tests.remediation.test_job_stories import begin

MASK = "instep_gpu_clock_reasons_mask"
HOT, CAPPED, BRAKED, IDLE = 0x40 | 0x8, 0x4, 0x80, 0x1
SLOW_RANK, SLOW = 3, ("node-b", 1)
"""Rank 3 runs on GPU 1 of node-b."""
DRILL = ("drill", "true")


def healthy(node):
    """What a node says of two GPUs, two ports and itself."""
    found = {}
    for gpu in range(2):
        labels = (("gpu", str(gpu)), ("uuid", f"GPU-{node}-{gpu}"))
        found |= {
            (MASK, labels): 0.0,
            ("instep_gpu_sm_clock_hertz", labels): 1.98e9,
            ("instep_gpu_temperature_celsius", labels): 55.0,
            ("instep_gpu_power_watts", labels): 650.0,
            ("instep_gpu_pcie_width", labels): 16.0,
            ("instep_gpu_pcie_width_max", labels): 16.0,
            ("instep_gpu_pcie_generation", labels): 5.0,
        }
    for port in ("mlx5_0", "mlx5_1"):
        labels = (("device", port), ("port", "1"))
        found[("node_infiniband_state_id", labels)] = 4.0
        found[("node_infiniband_rate_bytes_per_second", labels)] = 5e10
    found[("instep_host_pressure_ratio", (("kind", "some"), ("resource", "memory")))] = 0.0
    return found


def gpu(name, value, where=SLOW, *labels):
    """A change of one GPU's series."""
    node, index = where
    return node, (name, tuple(sorted((("gpu", str(index)), ("uuid", f"GPU-{node}-{index}"), *labels)))), value


def port(name, value):
    return "node-b", (name, (("device", "mlx5_1"), ("port", "1"))), value


def memory(value):
    return "node-b", ("instep_host_pressure_ratio", (("kind", "some"), ("resource", "memory"))), value


async def send(bench, job, ranks, changes):
    """One frame of each node, with its readings."""
    for frame in job.frames(ranks, bench.clock):
        told = msgspec.msgpack.decode(frame, type=Frame)
        values = healthy(told.node) | {series: value for node, series, value in changes if node == told.node}
        for name, labels in [series for series in values if DRILL in series[1]]:
            values[name, tuple(label for label in labels if label != DRILL)] = math.nan  # The real one pauses.
        dictionary = make_dictionary(tuple(sorted(values)))
        column = struct.pack(f"<{len(values)}d", *(values[series] for series in dictionary.series))
        answer = await bench.client.post("/ingest/v1/dictionary", content=msgspec.msgpack.encode(dictionary))
        assert answer.status_code == 204
        await bench.send(msgspec.msgpack.encode(replace(told, dictionary_hash=dictionary.hash, values=column)))


async def run(bench, job, changes, *, rounds=30, slow=1.3):
    for _ in range(rounds):
        job.step += 2
        await send(bench, job, job.healthy(2, slow={SLOW_RANK: slow}), changes)
        await bench.report(job.report("heartbeat"))
        await bench.tick(0.5)


async def slow_rank(folder, changes, **settings):
    """The verdict about the slow rank, and its incident."""
    async with server(folder, **settings) as bench:
        job = FakeJob()
        await begin(bench, job)
        await run(bench, job, changes)
        (incident,) = await bench.incidents("open")
        assert (incident["kind"], incident["suspects"][0]["rank"]) == ("straggler", SLOW_RANK)
        full = await bench.get(f"/api/v1/incidents/{incident['id']}")
        bundle = await bench.client.get(f"/api/v1/incidents/{incident['id']}/bundle")
        return full, bundle.content


def said(incident):
    return [item for item in incident["verdict"]["evidence"] if item["source"] == "node-readings"]


CASES = {
    "heat": ((gpu(MASK, HOT), gpu("instep_gpu_sm_clock_hertz", 3.45e8)), "node", "thermal", "for heat", True),
    "a power cap": ((gpu(MASK, CAPPED),), "node", "power-cap", "for a power limit", True),
    "a power brake": ((gpu(MASK, BRAKED),), "node", "power-cap", "for a power limit", True),
    "half the lanes": ((gpu("instep_gpu_pcie_width", 8.0),), "node", None, "8 of 16 lanes", True),
    "an older PCIe generation": ((gpu("instep_gpu_pcie_generation", 3.0),), "node", None, "generation 3", True),
    "a lost link": ((port("node_infiniband_state_id", 1.0),), "network", None, "1 RDMA ports up", True),
    "a slow link": ((port("node_infiniband_rate_bytes_per_second", 1e10),), "network", None, "RDMA links", True),
    "memory": ((memory(0.4),), "node", None, "waits for memory 40%", False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_stands_out_on_the_slow_ranks_node_names_owner_and_cause(tmp_path, case):
    changes, owner, cause, words, is_node_at_fault = CASES[case]

    async def story():
        incident, _ = await slow_rank(tmp_path, changes)
        assert (incident["owner"], incident["verdict"]["is_node_at_fault"]) == (owner, is_node_at_fault)
        assert words in incident["summary"]
        if cause is not None:
            assert incident["suspects"][0]["cause"] == cause
        reading, advice = said(incident)
        assert (reading["node"], reading["fields"]["value"]) == ("node-b", pytest.approx(changes[0][2]))
        assert 0.0 <= reading["age_seconds"] < 2.0
        assert len(advice["text"]) > len(words) and "cost_gpu_hours" in advice["fields"]

    play(story)


def test_the_evidence_has_the_clock_and_the_temperature_beside_the_peers(tmp_path):
    async def story():
        changes = (*CASES["heat"][0], gpu("instep_gpu_temperature_celsius", 92.0))
        incident, _ = await slow_rank(tmp_path, changes)
        text = said(incident)[0]["text"]
        assert "345 MHz (peers 1980)" in text and "92 °C (peers 55)" in text
        assert "fans" in incident["next"]

    play(story)


ALL = [(node, index) for node in ("node-a", "node-b") for index in (0, 1)]
TWINS = {
    "nothing": (),
    "all are hot alike": tuple(gpu(MASK, HOT, where) for where in ALL),
    "all are capped alike": tuple(gpu(MASK, CAPPED, where) for where in ALL),
    "another GPU is hot": (gpu(MASK, HOT, ("node-b", 0)),),
    "it is idle": (gpu(MASK, IDLE),),
    "a port is down everywhere": tuple(
        (node, *port("node_infiniband_state_id", 1.0)[1:]) for node in ("node-a", "node-b")
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_what_explains_no_difference_blames_no_node(tmp_path, twin):
    async def story():
        plain, _ = await slow_rank(tmp_path / "plain", ())
        incident, _ = await slow_rank(tmp_path / "twin", TWINS[twin])
        assert not incident["verdict"]["is_node_at_fault"] and said(incident) == []
        assert (incident["owner"], incident["verdict"]["cause"]) == (plain["owner"], plain["verdict"]["cause"])

    play(story)


def test_a_hot_gpu_whose_rank_is_not_slow_is_no_incident(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await run(bench, job, CASES["heat"][0], slow=1.0)
            assert await bench.incidents() == []

    play(story)


def test_heat_that_was_over_when_the_rank_became_slow_is_no_cause(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await run(bench, job, CASES["heat"][0], slow=1.0)
            await run(bench, job, (), rounds=40)
            (incident,) = await bench.incidents("open")
            assert not incident["verdict"]["is_node_at_fault"] and said(incident) == []

    play(story)


def test_the_readings_of_a_drill_are_told_as_such_and_blame_nobody(tmp_path):
    async def story():
        incident, _ = await slow_rank(tmp_path, (gpu(MASK, HOT, SLOW, DRILL),))
        (reading,) = said(incident)
        assert reading["text"].startswith("[DRILL] ") and reading["fields"]["is_drill"]
        assert not incident["verdict"]["is_node_at_fault"] and "heat" not in incident["summary"]
        assert incident["is_drill"] is False, "the rank may really be slow"

    play(story)


def test_the_same_verdict_follows_from_the_bundle(tmp_path):
    from instep_diagnosis.bundles import diagnose
    from instep_diagnosis.files.bundle import read_bundle

    async def story():
        _, data = await slow_rank(tmp_path, CASES["heat"][0])
        (tmp_path / "bundle.zip").write_bytes(data)
        bundle, packed = read_bundle(tmp_path / "bundle.zip")
        assert diagnose(bundle) == packed and packed[0].cause == "thermal"

    play(story)


def test_a_slow_rank_drains_nothing_by_itself_whatever_the_policy_says(tmp_path):
    async def story():
        executor = ScriptedExecutor()
        async with server(tmp_path, policy=Policy(nodes=NodePolicy(drain="auto")), nodes=executor) as bench:
            job = FakeJob()
            await begin(bench, job)
            await run(bench, job, CASES["heat"][0])
            await bench.runtime.runner.tick()
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert (plan["state"], plan["is_automatic"], executor.changed) == ("waiting", False, {})
            assert "a slow rank drains nothing by itself" in plan["text"]

    play(story)


@pytest.mark.parametrize(
    ("cause", "starved_seconds", "is_blamed"),
    [
        (Cause.SLOW_COMPUTE, None, True),
        (Cause.DATA, None, False),
        (Cause.SLOW_STALL, None, True),
        (Cause.STARVED, None, False),
        (Cause.SLOW_COMPUTE, 0.9, False),
    ],
)
def test_a_device_that_looks_idle_since_its_rank_waits_is_not_accused(cause, starved_seconds, is_blamed):
    suspect = Suspect(3, "node-b", "1", cause, 0.9)
    verdict = Verdict(Kind.STRAGGLER, Certainty.CONFIRMED, "Slow.", (suspect,), Owner.UNKNOWN, (), cause=cause)
    facts = RankNodeFacts(lost_seconds=1.0, starved_seconds=starved_seconds)
    other = Attribution(Owner.NODE, "The GPU runs PCIe generation 1, its peers 5.", "Reseat it.", 0.0, True)
    seen = Seen(facts, (Evidence("PCIe generation 1.", node="node-b"),), other)
    found = with_readings(verdict, {3: NodeReadings(real=seen)})
    assert found.is_node_at_fault is is_blamed
    assert "PCIe generation 1." in [item.text for item in found.evidence], "it is told all the same"
