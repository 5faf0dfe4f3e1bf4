"""Instep's drain leaves what `kubectl drain` leaves: the same pods in the same state, on two clusters made alike."""

from __future__ import annotations

import random
import re

import pytest
from instep_remediation.node_executor import Outcome

from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import kubectl_with
from tests.remediation.executors.test_kubernetes import DRAIN, NODE, UNCORDON, Cluster

pytestmark = pytest.mark.real
SEEDS = range(10)
FLAGS = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
OWNERS = ("ReplicaSet", "StatefulSet", "Deployment", "DaemonSet", "Job")
OUR_NAME = re.compile(r"work-\d-\d")
"""A drawn name may be five digits too: work-1-64569."""
OURS = ("instep.dev/faulty", "instep.dev/cordoned-by", "InstepHealthy")


def fill(server: ApiServer, seed: int) -> None:
    """Nodes, pods of every sort and budgets, drawn from a seed. A budget leaves room for one eviction at a time."""
    draw = random.Random(seed)
    for name in ("node-a", NODE, "node-c"):
        server.add_node(name)
    for number in range(draw.randint(3, 8)):
        owner, name = draw.choice(OWNERS), f"work-{number}"
        finished = owner == "Job" and draw.random() < 0.6
        for copy in range(1 if owner == "DaemonSet" else draw.randint(1, 3)):
            server.add_pod(
                "default",
                f"{name}-{copy}",
                node=NODE if owner == "DaemonSet" or draw.random() < 0.7 else "node-a",
                owner=f"{owner}/{name}",
                grace_seconds=draw.choice([0, 1, 30]),
                phase=draw.choice(["Succeeded", "Failed"]) if finished else "Running",
                spec={"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}]} if draw.random() < 0.4 else None,
            )
        if owner in ("ReplicaSet", "StatefulSet", "Deployment") and draw.random() < 0.5:
            server.add_budget("default", name, labels={"app": name}, max_unavailable=1)
    server.add_pod("kube-system", "static", node=NODE, mirror=True)
    server.add_pod("kube-system", "proxy", node=NODE, owner="DaemonSet/proxy")


def left(server: ApiServer) -> list[tuple]:
    """The pods of the node, and those of ours elsewhere, in their states. Where a scheduler puts one that was made
    again is drawn, and so are the names that some controllers give.
    """
    return sorted(
        (pod["metadata"]["namespace"], name, is_here, pod["status"]["phase"])
        for pod in server.all("Pod")
        for name, is_here in [(pod["metadata"]["name"], pod["spec"].get("nodeName") == NODE)]
        if name in ("static", "proxy") or OUR_NAME.fullmatch(name)
    )


def spec(server: ApiServer) -> dict:
    """The node's spec without our taint and the taint that a node controller adds to whatever is cordoned."""
    found = server.get("Node", NODE)["spec"]
    taints = [taint for taint in found.get("taints", []) if taint["key"] not in OURS]
    return {**found, "taints": taints}


@pytest.mark.parametrize("seed", SEEDS)
def test_our_drain_leaves_what_kubectl_drain_leaves(tmp_path, seed):
    with ApiServer() as theirs, ApiServer() as ours:
        for server in (theirs, ours):
            fill(server, seed)
        assert left(theirs) == left(ours)
        kubectl = kubectl_with(theirs.kubeconfig(tmp_path / "theirs"), tmp_path)
        answer = kubectl("drain", NODE, *FLAGS)
        assert answer.returncode == 0, answer.stderr
        cluster = Cluster(ours, tmp_path)
        answers = cluster.carry_out(DRAIN)
        assert [each.outcome for each in answers] == [Outcome.DONE] * 5, answers
        assert left(ours) == left(theirs)
        assert sorted(ours.pods_on(NODE)) == sorted(theirs.pods_on(NODE))
        assert {"kube-system/static", "kube-system/proxy"} <= set(ours.pods_on(NODE))
        assert spec(ours) == spec(theirs)
        assert kubectl("uncordon", NODE).returncode == 0
        cluster.carry_out(UNCORDON, "plan-2-0")
        assert spec(ours) == spec(theirs)


def test_where_kubectl_drain_refuses_so_do_we_and_nothing_is_evicted(tmp_path):
    with ApiServer() as theirs, ApiServer() as ours:
        for server in (theirs, ours):
            fill(server, 0)
            server.add_pod("default", "notebook", node=NODE)
        before = left(theirs)
        kubectl = kubectl_with(theirs.kubeconfig(tmp_path / "theirs"), tmp_path)
        assert kubectl("drain", NODE, *FLAGS).returncode != 0
        assert Cluster(ours, tmp_path).carry_out(DRAIN)[-1].outcome is Outcome.FAILED
        assert left(ours) == left(theirs) == before
