"""The planner holds its limits: each refusal has its reason, and what is not evidence against a node leaves the node
alone.
"""

import dataclasses

import pytest
from instep_diagnosis.verdict import Cause, Certainty, Kind, Owner, Suspect, Verdict
from instep_remediation.actions import ACTIONS, CordonNode, DrainNode, Notify, Restart, UncordonNode, read_action
from instep_remediation.errors import PolicyError
from instep_remediation.guards import JobBudget
from instep_remediation.plans import describe, make_plan
from instep_remediation.policy import Policy
from instep_remediation.toml_file import read_toml

BUDGET = JobBudget(max_restarts=3, restarts_used=1, standby=1)


def verdict(kind=Kind.HANG, cause=Cause.UNKNOWN, *, at_fault=False, certainty=Certainty.CONFIRMED, confidence=0.97):
    return Verdict(
        kind,
        certainty,
        "Rank 2 is stuck.",
        (Suspect(2, "node-b", "GPU-1", cause, confidence),),
        Owner.NODE,
        (),
        job="gpt",
        run="run-1",
        attempt=4,
        is_node_at_fault=at_fault,
    )


def names(plan):
    return [action.name for action in plan.actions]


def test_a_confirmed_hang_restarts_in_place():
    plan = make_plan("inc-1", verdict(cause=Cause.STOPPED), Policy(), BUDGET)
    assert plan.restart == Restart("gpt", "run-1", 4, ())
    assert names(plan) == ["restart", "notify"]


def test_evidence_against_the_node_leaves_it_out_and_proposes_its_draining():
    plan = make_plan("inc-1", verdict(Kind.CRASH, Cause.GPU_FAULT, at_fault=True), Policy(), BUDGET)
    assert plan.restart.exclude == ("node-b",)
    assert names(plan) == ["restart", "drain_node", "notify"]
    text = describe(plan)
    assert "drain node node-b" in text and "[proposed: nodes are watch-only]" in text


def test_without_a_node_to_stand_in_the_restart_is_in_place_and_says_so():
    plan = make_plan("inc-1", verdict(Kind.CRASH, at_fault=True), Policy(), dataclasses.replace(BUDGET, standby=0))
    assert plan.restart.exclude == ()
    assert "0 nodes stand by for node-b" in plan.reason


def test_an_unsure_accusation_leaves_the_node_alone():
    plan = make_plan("inc-1", verdict(Kind.CRASH, at_fault=True, confidence=0.5), Policy(), BUDGET)
    assert (plan.restart.exclude, names(plan)) == ((), ["restart", "notify"])


def test_a_node_is_proposed_for_draining_once():
    budget = dataclasses.replace(BUDGET, nodes_proposed=frozenset({"node-b"}))
    assert names(make_plan("inc-1", verdict(Kind.CRASH, at_fault=True), Policy(), budget)) == ["restart", "notify"]


def test_stale_evidence_proposes_nothing_about_a_node():
    budget = dataclasses.replace(BUDGET, evidence_age_seconds=31.0)
    assert names(make_plan("inc-1", verdict(Kind.HANG, at_fault=True), Policy(), budget)) == ["notify"]
    assert "drain_node" in names(make_plan("inc-1", verdict(Kind.HANG, at_fault=True), Policy(), BUDGET))


@pytest.mark.parametrize(
    ("drain", "words"), [("approve", "[waits for approval]"), ("auto", "[carried out by itself, within the guards]")]
)
def test_a_plan_says_what_becomes_of_a_drain(drain, words):
    policy = Policy(nodes={"drain": drain})
    assert words in describe(make_plan("inc-1", verdict(Kind.CRASH, at_fault=True), policy, BUDGET), drain)


def test_suspects_plan_nothing():
    assert make_plan("inc-1", verdict(certainty=Certainty.SUSPECT), Policy(), BUDGET) is None


@pytest.mark.parametrize("kind", [Kind.STRAGGLER, Kind.GPU_FAULT])
def test_stragglers_and_faults_alone_restart_nothing(kind):
    assert make_plan("inc-1", verdict(kind, at_fault=True), Policy(), BUDGET).restart is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_restarts": 0}, "0 restarts"),
        ({"restarts_used": 3}, "3 of 3 restarts are used"),
        ({"is_controlled": False}, "no coordinator"),
        ({"is_current_attempt": False}, "attempt 4 is over"),
        ({"has_plan_pending": True}, "another plan for this job"),
        ({"local_decision": "restart"}, "decided by itself (restart)"),
        ({"evidence_age_seconds": 31.0}, "the evidence is 31 s old"),
    ],
)
def test_each_guard_refuses_with_its_reason(change, words):
    plan = make_plan("inc-1", verdict(), Policy(), dataclasses.replace(BUDGET, **change))
    assert plan.restart is None
    assert words in plan.reason
    assert names(plan) == ["notify"]


def test_the_policy_file_changes_what_is_planned(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('[jobs]\nrestart_interval_seconds_min = 60\n[nodes]\ndrain = "off"\nexclude = false\n')
    policy = read_toml(path, Policy)
    budget = dataclasses.replace(BUDGET, last_restart_age_seconds=10.0)
    assert make_plan("inc-1", verdict(at_fault=True), policy, budget).restart is None
    plan = make_plan("inc-1", verdict(at_fault=True), policy, BUDGET)
    assert (plan.restart.exclude, names(plan)) == ((), ["restart", "notify"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[nodes]\ndrian = 1\n",
            "there is no key 'nodes.drian'; keys here are confidence_min, drain, drain_timeout_seconds, exclude, "
            "unavailable_max.",
        ),
        ('[nodes]\ndrain = "now"\n', "nodes.drain = 'now' is not allowed"),
        ("[nodes]\nconfidence_min = 2\n", "nodes.confidence_min = 2 is not allowed"),
        ("nodes = [", "is not TOML"),
    ],
)
def test_a_wrong_policy_names_file_key_and_what_is_allowed(tmp_path, text, words):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(PolicyError) as error:
        read_toml(path, Policy)
    assert str(path) in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    "action",
    [
        Restart("j", "r", 1, ("n",)),
        DrainNode("n", "why"),
        CordonNode("n", "why"),
        UncordonNode("n", "why"),
        Notify("inc-1"),
    ],
)
def test_an_action_comes_back_from_the_store_as_it_was(action):
    assert read_action(action.name, action.arguments()) == action
    assert type(action) in ACTIONS
