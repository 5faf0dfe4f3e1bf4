"""Node actions in a cluster: what they leave there, what they wait for, and whom they do not touch."""

from __future__ import annotations

import time

import pytest
from instep_collector.errors import StartError
from instep_remediation.actions import CordonNode, DrainNode, UncordonNode
from instep_remediation.executors.kubernetes.connection import connect
from instep_remediation.executors.kubernetes.executor import KubernetesExecutor
from instep_remediation.executors.kubernetes.settings import KubernetesConfig
from instep_remediation.node_executor import Outcome, Progress

from tests.cluster.api_server import ApiServer

NODE = "node-b"
DRAIN, UNCORDON = DrainNode(NODE, "Xid 79 on GPU 0"), UncordonNode(NODE, "GPU replaced")
END_SECONDS = 20.0


class Cluster:
    """A stand-in cluster and an executor that speaks to it."""

    def __init__(self, server: ApiServer, folder, **settings) -> None:
        self.server = server
        self.executor_kubeconfig = server.kubeconfig(folder / "kubeconfig")
        config = KubernetesConfig(kubeconfig=self.executor_kubeconfig, **settings)
        self.executor = KubernetesExecutor(connect(config), config)

    def carry_out(self, action, mark="plan-1-0") -> list[Progress]:
        """Ask for every step as the plan runner does, without its pauses; stop at a failure."""
        answers = []
        for step in self.executor.steps(action, mark):
            answers.append(self.until_answered(step))
            if answers[-1].outcome is not Outcome.DONE:
                break
        return answers

    def until_answered(self, step) -> Progress:
        """Ask until the answer is final, looking at the cluster in between as the plan runner's pauses do."""
        end = time.monotonic() + END_SECONDS
        while (progress := self.executor.carry_out(step)).outcome is Outcome.WAITING and time.monotonic() < end:
            time.sleep(0.02)
        return progress

    def step(self, name, action=DRAIN):
        return next(step for step in self.executor.steps(action, "plan-1-0") if step.name == name)

    def node(self, name=NODE):
        return self.server.get("Node", name)

    def condition(self, kind="InstepHealthy"):
        return next((each for each in self.node()["status"]["conditions"] if each["type"] == kind), None)

    def events(self):
        return [event for event in self.server.all("Event") if event["involvedObject"]["name"] == NODE]


@pytest.fixture
def cluster(tmp_path):
    with ApiServer() as server:
        for name in ("node-a", NODE, "node-c"):
            server.add_node(name)
        yield Cluster(server, tmp_path)


def test_a_drained_node_is_tainted_cordoned_told_of_and_empty_but_for_its_daemons(cluster):
    cluster.server.add_pod("default", "train-0", node=NODE, owner="StatefulSet/train")
    cluster.server.add_pod("kube-system", "agent-b", node=NODE, owner="DaemonSet/agent")
    cluster.server.add_pod("kube-system", "static", node=NODE, mirror=True)
    cluster.server.add_pod("default", "train-1", node="node-a", owner="StatefulSet/train")
    answers = cluster.carry_out(DRAIN)
    assert [answer.outcome for answer in answers] == [Outcome.DONE] * 5
    node = cluster.node()
    assert node["spec"]["unschedulable"] is True
    assert {"key": "instep.dev/faulty", "value": "plan-1-0", "effect": "NoSchedule"} in node["spec"]["taints"]
    assert (cluster.condition()["status"], cluster.condition()["message"]) == ("False", "Xid 79 on GPU 0")
    (event,) = cluster.events()
    assert (event["reason"], event["message"], event["type"]) == ("InstepDrain", "Xid 79 on GPU 0", "Warning")
    assert sorted(cluster.server.pods_on(NODE)) == ["kube-system/agent-b", "kube-system/static"]
    assert "default/train-1" in cluster.server.pods_on("node-a")


def test_every_step_asked_twice_leaves_what_one_asking_leaves(cluster):
    cluster.server.add_pod("default", "train-0", node=NODE, owner="StatefulSet/train")
    cluster.carry_out(DRAIN)
    before = cluster.node()
    cluster.server.forget_calls()
    answers = cluster.carry_out(DRAIN)
    assert [answer.outcome for answer in answers] == [Outcome.DONE] * 5
    assert cluster.node()["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert len(cluster.events()) == 1
    assert {call.verb for call in cluster.server.calls()} == {"get", "list", "create"}


def test_a_repaired_node_gets_back_what_it_had_and_keeps_what_others_put_there(cluster):
    from kubernetes import client

    core = client.CoreV1Api(connect(KubernetesConfig(kubeconfig=cluster.executor_kubeconfig)))
    others = [{"key": "example.org/pool", "value": "a", "effect": "NoSchedule"}]
    core.patch_node(NODE, {"spec": {"taints": others}})
    cluster.carry_out(DRAIN)
    cluster.carry_out(UNCORDON, "plan-2-0")
    node = cluster.node()
    assert not node["spec"].get("unschedulable")
    assert node["spec"]["taints"] == others
    assert (cluster.condition()["status"], cluster.condition()["reason"]) == ("True", "InstepReturn")
    assert "instep.dev/cordoned-by" not in (node["metadata"].get("annotations") or {})
    assert [event["type"] for event in cluster.events()] == ["Warning", "Normal"]


def test_a_cordon_that_somebody_else_made_stays(cluster):
    from kubernetes import client

    client.CoreV1Api(connect(KubernetesConfig(kubeconfig=cluster.executor_kubeconfig))).patch_node(
        NODE, {"spec": {"unschedulable": True}}
    )
    cluster.carry_out(CordonNode(NODE, "noise"))
    *_, uncordoned, _event = cluster.carry_out(UNCORDON, "plan-2-0")
    assert "kubectl uncordon node-b" in uncordoned.detail
    assert cluster.node()["spec"]["unschedulable"] is True


def test_a_budget_is_waited_for_with_growing_pauses_and_never_passed_by(cluster):
    for number in (0, 1):
        cluster.server.add_pod("default", f"web-{number}", node=NODE, owner="StatefulSet/web")
    cluster.server.add_budget("default", "web", labels={"app": "web"}, max_unavailable=0)
    cluster.executor.carry_out(cluster.step("cordon"))
    step = cluster.step("evict")
    answers = [cluster.executor.carry_out(step) for _ in range(8)]
    assert {answer.outcome for answer in answers} == {Outcome.WAITING}
    assert "a disruption budget holds default/web-0" in answers[0].detail.lower()
    pauses = [answer.retry_after_seconds for answer in answers]
    assert 0.5 <= pauses[0] <= 1.0
    assert 15.0 <= pauses[-1] <= 30.0
    assert len(cluster.server.pods_on(NODE)) == 2
    cluster.server.remove("PodDisruptionBudget", "web", "default")
    assert cluster.until_answered(step).outcome is Outcome.DONE


def test_pods_that_nobody_makes_again_stop_the_drain_before_anything_is_evicted(cluster, tmp_path):
    cluster.server.add_pod("default", "web-0", node=NODE, owner="StatefulSet/web")
    cluster.server.add_pod("default", "notebook", node=NODE)
    progress = cluster.executor.carry_out(cluster.step("evict"))
    assert progress.outcome is Outcome.FAILED
    assert "default/notebook has no controller" in progress.detail
    assert len(cluster.server.pods_on(NODE)) == 2
    willing = Cluster(cluster.server, tmp_path, drain_unmanaged_pods=True)
    assert willing.until_answered(willing.step("evict")).outcome is Outcome.DONE
    assert cluster.server.pods_on(NODE) == []


def test_data_in_an_empty_dir_is_kept_where_the_configuration_says_so(cluster, tmp_path):
    spec = {"volumes": [{"name": "scratch", "emptyDir": {}}]}
    cluster.server.add_pod("default", "web-0", node=NODE, owner="StatefulSet/web", spec=spec)
    careful = Cluster(cluster.server, tmp_path, drain_empty_dir=False)
    progress = careful.executor.carry_out(careful.step("evict"))
    assert (progress.outcome, "emptyDir" in progress.detail) == (Outcome.FAILED, True)
    assert cluster.until_answered(cluster.step("evict")).outcome is Outcome.DONE


def test_a_pod_that_is_ending_is_waited_for_and_not_evicted_again(cluster):
    cluster.server.silence(NODE)
    cluster.server.add_pod("default", "web-0", node=NODE, owner="StatefulSet/web")
    step = cluster.step("evict")
    answers = [cluster.executor.carry_out(step) for _ in range(3)]
    assert {answer.outcome for answer in answers} == {Outcome.WAITING}
    assert answers[-1].detail == "Ending: default/web-0."
    assert [call.verb for call in cluster.server.calls() if call.subresource == "eviction"] == ["create"]
    cluster.server.revive(NODE)
    assert cluster.until_answered(step).outcome is Outcome.DONE


def test_a_node_that_left_the_cluster_needs_nothing_taken_back(cluster):
    cluster.carry_out(DRAIN)
    cluster.server.remove("Node", NODE)
    answers = cluster.carry_out(UNCORDON, "plan-2-0")
    assert [answer.outcome for answer in answers] == [Outcome.DONE] * 4
    assert all("not in the cluster any more" in answer.detail for answer in answers)


@pytest.mark.parametrize("name", ["taint", "cordon", "condition", "event"])
def test_a_node_that_is_gone_fails_with_one_sentence(cluster, name):
    cluster.server.remove("Node", NODE)
    progress = cluster.executor.carry_out(cluster.step(name))
    assert progress.outcome is Outcome.FAILED
    assert progress.detail.startswith("Node node-b is not in the cluster any more")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_api_server_is_asked_again(cluster, status):
    cluster.server.inject(code=status, verb="patch", resource="nodes", count=1)
    step = cluster.step("cordon")
    assert cluster.executor.carry_out(step).outcome is Outcome.WAITING
    assert cluster.executor.carry_out(step).outcome is Outcome.DONE


def test_a_change_by_somebody_else_in_between_is_a_conflict_and_is_tried_again(cluster):
    cluster.server.inject(code=409, verb="patch", resource="nodes", count=1)
    step = cluster.step("taint")
    first = cluster.executor.carry_out(step)
    assert (first.outcome, first.retry_after_seconds) == (Outcome.WAITING, 0.5)
    assert cluster.executor.carry_out(step).outcome is Outcome.DONE


def test_an_api_server_that_is_away_is_waited_for(cluster):
    step = cluster.step("cordon")
    cluster.server.stop()
    progress = cluster.executor.carry_out(step)
    assert progress.outcome is Outcome.WAITING
    assert "cannot be reached to read the node" in progress.detail


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("name", ["taint", "cordon", "condition", "event", "evict"])
def test_an_answer_that_is_lost_does_nothing_twice(cluster, name, is_after):
    cluster.server.add_pod("default", "web-0", node=NODE, owner="StatefulSet/web")
    verb = "create" if name in ("event", "evict") else "patch"
    fault = cluster.server.inject(verb=verb, closes=True, is_after=is_after)
    step = cluster.step(name)
    assert cluster.executor.carry_out(step).outcome is Outcome.WAITING
    assert cluster.until_answered(step).outcome is Outcome.DONE
    assert fault.hits == 1
    calls = [call for call in cluster.server.calls() if call.verb == verb and call.code < 300]
    assert len(calls) <= 2
    assert len(cluster.events()) == (name == "event")


def test_a_missing_right_is_named(tmp_path):
    with ApiServer(has_rbac=True) as server:
        server.add_node(NODE)
        token = server.service_account_token("instep", "instep-server")
        config = KubernetesConfig(kubeconfig=server.kubeconfig(tmp_path / "kubeconfig", token=token))
        executor = KubernetesExecutor(connect(config), config)
        progress = executor.carry_out(executor.steps(DRAIN, "plan-1-0")[0])
    assert progress.outcome is Outcome.FAILED
    assert "We may not read the node" in progress.detail
    assert "nodes" in progress.detail and "instep-server" in progress.detail


def test_credentials_that_nobody_knows_are_one_sentence(tmp_path):
    with ApiServer() as server:
        server.add_node(NODE)
        config = KubernetesConfig(kubeconfig=server.kubeconfig(tmp_path / "kubeconfig", token="stranger"))
        executor = KubernetesExecutor(connect(config), config)
        progress = executor.carry_out(executor.steps(DRAIN, "plan-1-0")[0])
    assert progress.outcome is Outcome.FAILED
    assert "does not know our credentials" in progress.detail


def test_a_kubeconfig_that_is_not_there_is_one_sentence_at_the_start(tmp_path):
    with pytest.raises(StartError, match=r"set kubernetes\.kubeconfig"):
        connect(KubernetesConfig(kubeconfig=tmp_path / "none"))
