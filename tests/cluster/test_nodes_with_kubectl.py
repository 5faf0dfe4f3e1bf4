"""The real kubectl looks at nodes and pods, cordons, taints, labels and drains."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import Kubectl
from tests.cluster.real_cluster import RealCluster

Cluster = ApiServer | RealCluster


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lists_nodes_and_pods_as_tables(cluster: Cluster, kubectl: Kubectl):
    cluster.add_pod("default", "web-0", node="node-b", owner="StatefulSet/web")
    nodes = succeeded(kubectl("get", "nodes"))
    assert [line.split()[:2] for line in nodes.splitlines()[1:]] == [[f"node-{x}", "Ready"] for x in "abc"]
    pods = succeeded(kubectl("get", "pods", "-A", "-o", "wide")).splitlines()
    assert pods[1].split()[:4] == ["default", "web-0", "1/1", "Running"]
    assert "node-b" in pods[1]


def test_lists_the_pods_of_one_node(cluster: Cluster, kubectl: Kubectl):
    cluster.add_pod("default", "here", node="node-a", owner="ReplicaSet/x")
    cluster.add_pod("default", "there", node="node-b", owner="ReplicaSet/x")
    found = succeeded(kubectl("get", "pods", "--field-selector", "spec.nodeName=node-a", "-o", "name"))
    assert found.split() == ["pod/here"]


def test_describes_a_node_with_its_pods_and_events(cluster: Cluster, kubectl: Kubectl):
    cluster.add_pod("default", "web-0", node="node-a", owner="StatefulSet/web")
    cluster.create(event("node-a"))
    text = succeeded(kubectl("describe", "node", "node-a"))
    assert "web-0" in text
    assert "GpuFellOffTheBus" in text


def event(node: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e1", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "reason": "GpuFellOffTheBus",
        "message": "Xid 79",
        "type": "Warning",
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
    }


def test_cordons_and_uncordons(cluster: Cluster, kubectl: Kubectl):
    succeeded(kubectl("cordon", "node-a"))
    assert cluster.get("Node", "node-a")["spec"]["unschedulable"] is True
    assert "Ready,SchedulingDisabled" in succeeded(kubectl("get", "nodes"))
    succeeded(kubectl("uncordon", "node-a"))
    assert not cluster.get("Node", "node-a")["spec"].get("unschedulable")


def test_taints_and_takes_the_taint_away(cluster: Cluster, kubectl: Kubectl):
    succeeded(kubectl("taint", "nodes", "node-a", "instep.test/faulty=gpu:NoSchedule"))
    taint = {"key": "instep.test/faulty", "value": "gpu", "effect": "NoSchedule"}
    assert taints(cluster) == [taint]
    succeeded(kubectl("taint", "nodes", "node-a", "instep.test/faulty-"))
    assert taints(cluster) == []


def taints(cluster: Cluster) -> list:
    """Those of node-a, without what a real server adds to a node that is not ready."""
    found = cluster.get("Node", "node-a")["spec"].get("taints") or []
    return [taint for taint in found if not taint["key"].startswith("node.kubernetes.io/")]


def test_labels_and_annotates(cluster: Cluster, kubectl: Kubectl):
    succeeded(kubectl("label", "node", "node-a", "rack=r1"))
    succeeded(kubectl("annotate", "node", "node-a", "note=looked at"))
    metadata = cluster.get("Node", "node-a")["metadata"]
    assert metadata["labels"]["rack"] == "r1"
    assert metadata["annotations"]["note"] == "looked at"
    assert succeeded(kubectl("get", "nodes", "-l", "rack in (r1,r2)", "-o", "name")).split() == ["node/node-a"]


def test_refuses_a_label_value_that_is_none(cluster: Cluster, kubectl: Kubectl):
    patch = json.dumps({"metadata": {"labels": {"rack": "not a label"}}})
    done = kubectl("patch", "node", "node-a", "--type=merge", "-p", patch)
    assert done.returncode == 1
    assert "metadata.labels: Invalid value" in done.stderr


@pytest.mark.parametrize(
    ("pod", "flag", "words"),
    [
        ({"owner": "DaemonSet/agent"}, "--ignore-daemonsets", "DaemonSet-managed"),
        ({"owner": None}, "--force", "declare no controller"),
        (
            {"owner": "ReplicaSet/web", "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}},
            "--delete-emptydir-data",
            "local storage",
        ),
    ],
)
def test_drain_refuses_without_its_flag(cluster: Cluster, kubectl: Kubectl, pod: dict, flag: str, words: str):
    cluster.add_pod("default", "one", node="node-a", **pod)
    refused = kubectl("drain", "node-a")
    assert refused.returncode == 1
    assert words in refused.stderr
    assert cluster.pods_on("node-a") == ["default/one"]
    succeeded(kubectl("drain", "node-a", flag))
    assert cluster.pods_on("node-a") == (["default/one"] if pod["owner"] == "DaemonSet/agent" else [])


def test_drain_leaves_mirror_pods(cluster: Cluster, kubectl: Kubectl):
    cluster.add_pod("kube-system", "static", node="node-a", mirror=True)
    succeeded(kubectl("drain", "node-a"))
    assert cluster.pods_on("node-a") == ["kube-system/static"]


def test_drain_moves_pods_to_other_nodes(server: ApiServer, kubectl: Kubectl):
    for index in range(3):
        server.add_pod("default", f"web-{index}", node="node-a", owner="ReplicaSet/web")
    succeeded(kubectl("drain", "node-a", "--timeout=50s"))
    assert server.pods_on("node-a") == []
    server.wait_until(lambda: len(server.pods_on("node-b") + server.pods_on("node-c")) == 3)


def test_drain_waits_for_a_budget_and_goes_on_when_it_allows(cluster: Cluster, kubectl: Kubectl):
    cluster.add_pod("default", "web-0", node="node-a", owner="ReplicaSet/web")
    cluster.add_budget("default", "web", labels={"app": "web"}, max_unavailable=0)
    with ThreadPoolExecutor(1) as aside:
        drain = aside.submit(kubectl, "drain", "node-a", "--timeout=50s")
        cluster.wait_until(lambda: any(call.code == 429 for call in cluster.calls()), "a refusal by the budget")
        succeeded(kubectl("patch", "pdb", "web", "--type=merge", "-p", '{"spec":{"maxUnavailable":1}}'))
        done = drain.result()
    succeeded(done)
    assert "will retry after" in done.stderr
    assert cluster.pods_on("node-a") == []


def test_drain_times_out_when_the_budget_never_allows(cluster: Cluster, kubectl: Kubectl):
    cluster.add_pod("default", "web-0", node="node-a", owner="ReplicaSet/web")
    cluster.add_budget("default", "web", labels={"app": "web"}, max_unavailable=0)
    done = kubectl("drain", "node-a", "--timeout=1s")
    assert done.returncode == 1
    assert "disruption budget" in done.stderr
    assert cluster.pods_on("node-a") == ["default/web-0"]
    assert cluster.get("Node", "node-a")["spec"]["unschedulable"] is True


def test_drain_waits_for_a_pod_that_ends_slowly(cluster: Cluster, kubectl: Kubectl):
    cluster.silence("node-a")
    cluster.add_pod("default", "web-0", node="node-a", owner="ReplicaSet/web")
    done = kubectl("drain", "node-a", "--timeout=1s")
    assert done.returncode == 1
    assert cluster.get("Pod", "web-0", "default")["metadata"]["deletionTimestamp"]
    cluster.revive("node-a")
    succeeded(kubectl("drain", "node-a", "--timeout=20s"))
    assert cluster.pods_on("node-a") == []
