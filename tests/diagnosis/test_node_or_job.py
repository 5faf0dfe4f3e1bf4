"""The owner of a slow rank: the node where its device says so, the job where its own pauses explain it."""

import pytest
from instep_diagnosis.detectors.node_or_job import RankNodeFacts, attribute
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.verdict import Owner

from tests.diagnosis.training import job_steps, own_work


def straggler(*, is_computing=True):
    own_TR = own_work()
    cpu_TR = own_TR.copy()
    own_TR[30:, 2] *= 1.3
    (verdict,) = detect_stragglers(job_steps(own_TR, cpu_TR=own_TR if is_computing else cpu_TR))
    return verdict


@pytest.mark.parametrize(
    ("facts", "owner", "word", "is_node"),
    [
        (RankNodeFacts(is_thermally_throttled=True, lost_seconds=1.0, data_seconds=0.9), Owner.NODE, "heat", True),
        (RankNodeFacts(is_power_capped=True), Owner.NODE, "power", True),
        (RankNodeFacts(pcie_lanes=8, pcie_lanes_max=16), Owner.NODE, "8 of 16 lanes", True),
        (RankNodeFacts(lost_seconds=1.0, starved_seconds=0.8), Owner.NODE, "core", False),
        (RankNodeFacts(lost_seconds=1.0, data_seconds=0.8), Owner.JOB, "data", False),
        (RankNodeFacts(lost_seconds=1.0, collector_seconds=0.8, data_seconds=0.1), Owner.JOB, "garbage", False),
        (RankNodeFacts(lost_seconds=1.0, checkpoint_seconds=0.8), Owner.JOB, "checkpoint", False),
    ],
)
def test_what_was_seen_names_the_owner(facts, owner, word, is_node):
    found = attribute(straggler(), facts)
    assert (found.owner, found.is_node_at_fault) == (owner, is_node)
    assert word in found.reason
    assert found.fix.endswith(".")


def test_healthy_facts_leave_the_ranks_own_cause():
    well = RankNodeFacts(False, False, 16, 16, lost_seconds=1.0, data_seconds=0.1, checkpoint_seconds=0.0)
    assert attribute(straggler(), well).owner is Owner.NODE
    assert attribute(straggler(is_computing=False), well).owner is Owner.JOB
    assert not attribute(straggler(), well).is_node_at_fault


def test_the_cost_is_in_gpu_hours():
    verdict = straggler()
    hours = attribute(verdict, RankNodeFacts()).cost_gpu_hours
    assert hours == pytest.approx(verdict.cost_gpu_seconds / 3600, abs=1e-4)
