"""Who brought a job down: one verdict that joins exit codes, operations and the node's kernel log."""

import pytest
from instep_diagnosis.detectors.crash import judge_crash
from instep_diagnosis.verdict import Cause, Certainty, Kind, Owner

from tests.diagnosis.scenarios import XID_79, Scenario, group


def test_no_exit_is_no_crash():
    assert judge_crash(Scenario().job()) is None
    assert judge_crash(Scenario().exited(0, 0).job()) is None


def test_the_killed_rank_is_to_blame_even_when_its_peers_were_noticed_first():
    job = Scenario().exited(0, 1, ago=0.9).exited(1, 1, ago=0.8).exited(2, -9, ago=0.5).job()
    verdict = judge_crash(job)
    assert [suspect.rank for suspect in verdict.suspects] == [2]
    assert (verdict.kind, verdict.certainty) == (Kind.CRASH, Certainty.CONFIRMED)
    assert (verdict.owner, verdict.is_node_at_fault) == (Owner.UNKNOWN, False)
    assert "Rank 2 on node-b was killed by SIGKILL, last in all_reduce seq 510" in verdict.summary


def test_among_errors_the_earliest_is_to_blame():
    verdict = judge_crash(Scenario().exited(0, 1, ago=0.5).exited(3, 1, ago=2.0).job())
    assert [suspect.rank for suspect in verdict.suspects] == [3]
    assert verdict.owner is Owner.JOB


def test_errors_without_times_are_a_tie():
    verdict = judge_crash(Scenario().exited(0, 1).exited(3, 1).job())
    assert {suspect.rank for suspect in verdict.suspects} == {0, 3}
    assert verdict.confidence <= 0.5


def test_an_xid_on_the_dead_ranks_gpu_joins_into_one_verdict():
    job = Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", XID_79, ago=0.5, gpu="GPU-2").job()
    verdict = judge_crash(job)
    assert (verdict.kind, verdict.cause, verdict.owner) == (Kind.CRASH, Cause.GPU_FAULT, Owner.NODE)
    assert verdict.is_node_at_fault
    assert [(s.rank, s.node, s.gpu) for s in verdict.suspects] == [(2, "node-b", "GPU-2")]
    assert verdict.confidence >= 0.95
    assert verdict.fault_class == "xid-79"
    assert "Rank 2 on node-b" in verdict.summary and "Xid 79" in verdict.summary and "seq 510" in verdict.summary
    assert {item.source for item in verdict.evidence} == {"supervisor", "kernel-log"}


def asks(scenario, action, *, ago=0.1, gpu="GPU-2", node="node-b"):
    text = f"GPU 0 asks for recovery action {action}."
    return scenario.told(node, "gpu_recovery", text, ago=ago, gpu=gpu, action=str(action))


def with_xid_79(code=79):
    line = XID_79.replace(" 79,", f" {code},")
    return Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", line, ago=0.5, gpu="GPU-2")


def kernel_action(scenario):
    verdict = judge_crash(scenario.job())
    (action,) = [item.fields["action"] for item in verdict.evidence if item.source == "kernel-log"]
    return action, verdict


@pytest.mark.parametrize(
    ("asked", "action", "words"), [(1, "reset-gpu", "a reset of the GPU"), (2, "reboot-node", "a reboot of the node")]
)
def test_what_the_driver_asks_for_overrules_the_catalogue(asked, action, words):
    told, verdict = kernel_action(asks(with_xid_79(), asked))
    assert told == action
    assert f"the driver asks for {words}" in verdict.summary
    assert verdict.is_node_at_fault


def test_a_driver_that_asks_for_a_reset_makes_an_application_error_a_fault():
    assert not kernel_action(with_xid_79(31))[1].is_node_at_fault
    assert kernel_action(asks(with_xid_79(31), 1))[1].is_node_at_fault


@pytest.mark.parametrize(
    "other",
    [{"action": 0}, {"action": 99}, {"action": 1, "gpu": "GPU-3"}, {"action": 1, "node": "node-a"}],
    ids=["nothing", "an unknown number", "another GPU", "another node"],
)
def test_without_such_a_wish_of_this_gpu_the_catalogue_counts(other):
    assert kernel_action(asks(with_xid_79(), **other)) == kernel_action(with_xid_79())


def test_a_wish_that_is_over_counts_no_more():
    job = asks(asks(with_xid_79(), 1, ago=0.4), 0, ago=0.1)
    assert kernel_action(job) == kernel_action(with_xid_79())


def test_an_xid_on_the_node_alone_is_less_sure():
    def sure(**where):
        return judge_crash(Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", XID_79, **where).job())

    assert sure().is_node_at_fault
    assert sure().confidence < sure(gpu="GPU-2").confidence


def test_the_gpu_may_be_named_by_its_index():
    job = Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", XID_79, index=1)
    job._change(2, gpu="1")
    assert judge_crash(job.job()).is_node_at_fault
    job._change(2, gpu="0")
    assert not judge_crash(job.job()).is_node_at_fault


@pytest.mark.parametrize("code", [13, 31, 43, 45, 63, 94, 121, 137])
def test_application_lines_never_put_the_node_at_fault(code):
    line = f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=4242, name=python, something"
    verdict = judge_crash(Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", line, gpu="GPU-2").job())
    assert not verdict.is_node_at_fault
    assert any(item.source == "kernel-log" for item in verdict.evidence)


def test_a_line_on_another_node_changes_nothing():
    verdict = judge_crash(Scenario().exited(2, -9, ago=0.3).kernel_line("node-a", XID_79, gpu="GPU-0").job())
    assert not verdict.is_node_at_fault


@pytest.mark.parametrize("culprit", range(4))
def test_unequal_sizes_that_abort_a_victim_are_a_mismatch_of_the_minority(culprit):
    job = Scenario().waits(0, 1, 2, 3).in_groups(culprit, group(511, done=510, op="all_reduce", payload=8))
    victim = (culprit + 1) % 4
    verdict = judge_crash(job.exited(victim, -6, ago=0.4).job())
    assert verdict.kind is Kind.MISMATCH
    assert [suspect.rank for suspect in verdict.suspects] == [culprit]
    assert verdict.owner is Owner.JOB


def test_a_rank_that_died_before_its_first_report_is_named():
    job = Scenario().never_heard(3).exited(3, 1, ago=0.2)
    verdict = judge_crash(job.job())
    assert [suspect.rank for suspect in verdict.suspects] == [3]
