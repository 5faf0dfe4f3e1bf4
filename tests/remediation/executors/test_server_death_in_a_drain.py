"""The server is killed with -9 around every step of a drain: the node ends as it would have, nothing is done twice."""

from __future__ import annotations

import time

import pytest
from instep_remediation.executors.kubernetes.connection import connect
from instep_remediation.executors.kubernetes.executor import KubernetesExecutor
from instep_remediation.executors.kubernetes.settings import KubernetesConfig

from tests.cluster.api_server import ApiServer
from tests.remediation.bench import FakeClock, play, server
from tests.remediation.executors.test_kubernetes import NODE
from tests.remediation.test_plan_life import decide, known
from tests.remediation.test_server_death import ask, real_server

pytestmark = pytest.mark.real
END_SECONDS = 40.0
PODS = 4


def fill(cluster: ApiServer) -> None:
    """A node whose pods may go one by one."""
    for name in ("node-a", NODE):
        cluster.add_node(name)
    for number in range(PODS):
        cluster.add_pod("default", f"web-{number}", node=NODE, owner="ReplicaSet/web")
    cluster.add_pod("kube-system", "agent", node=NODE, owner="DaemonSet/agent")
    cluster.add_budget("default", "web", labels={"app": "web"}, max_unavailable=1)


def moments(cluster: ApiServer):
    """What can be seen in the cluster after each step, in order, and between evictions."""

    def node():
        return cluster.get("Node", NODE)

    def evicted():
        return {call.name for call in cluster.calls() if call.subresource == "eviction" and call.code < 300}

    return [
        ("before anything", lambda: True),
        ("tainted", lambda: any(taint["key"].startswith("instep") for taint in node()["spec"].get("taints", []))),
        ("cordoned", lambda: node()["spec"].get("unschedulable")),
        ("told of", lambda: cluster.all("Event")),
        ("the first pod is evicted", lambda: len(evicted()) >= 1),
        ("the third pod is evicted", lambda: len(evicted()) >= 3),
        ("empty", lambda: cluster.pods_on(NODE) == ["kube-system/agent"]),
    ]


def test_a_server_killed_around_every_step_of_a_drain_does_nothing_twice(tmp_path, database):
    with ApiServer(termination_seconds=0.2) as cluster:
        fill(cluster)
        kubeconfig = cluster.kubeconfig(tmp_path / "kubeconfig")
        approve(tmp_path, database, kubeconfig)
        cluster.forget_calls()
        (tmp_path / "server.toml").write_text(
            f'executor = "kubernetes"\ndatabase = "{database}"\n[kubernetes]\nkubeconfig = "{kubeconfig}"\n'
        )
        options = ("--config", str(tmp_path / "server.toml"))
        for what, is_so in moments(cluster):
            with real_server(tmp_path, *options) as (process, ready):
                assert ready, process.stderr.read()
                cluster.wait_until(is_so, what)
                process.kill()
        with real_server(tmp_path, *options) as (_, ready):
            end = time.monotonic() + END_SECONDS
            while (plan := ask(ready, "/api/v1/plans/1"))["state"] != "done":
                assert time.monotonic() < end, plan
                time.sleep(0.1)
        assert cluster.pods_on(NODE) == ["kube-system/agent"]
        check(cluster)


def approve(folder, database, kubeconfig) -> None:
    """A plan to drain the node, approved right before its server ended."""

    async def story():
        config = KubernetesConfig(kubeconfig=kubeconfig)
        nodes = KubernetesExecutor(connect(config), config)
        async with server(folder, FakeClock(since_1970=time.time()), None, nodes, database=database) as bench:
            await known(bench, NODE)
            decide(bench, "change_node", NODE, "drain", "ada", "Xid 79")

    play(story)


def check(cluster: ApiServer) -> None:
    taken = [call for call in cluster.calls() if call.code < 300]
    changes = [(call.verb, call.resource, call.subresource) for call in taken if call.verb in ("patch", "create")]
    assert changes.count(("patch", "nodes", "")) == 2, "one taint and one cordon"
    assert changes.count(("patch", "nodes", "status")) == 1
    assert changes.count(("create", "events", "")) == 1
    evicted = sorted(call.name for call in taken if call.subresource == "eviction")
    assert evicted == sorted({*evicted}), "no pod is evicted twice"
    assert {f"web-{number}" for number in range(PODS)} <= {*evicted}
