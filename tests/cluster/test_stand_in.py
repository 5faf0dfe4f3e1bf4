"""What the stand-in does by itself: graceful ends, finalizers, budgets, watches, namespaces, its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kubernetes import client, watch
from kubernetes.client.rest import ApiException

from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import Kubectl, kubectl_with

ROOT = Path(__file__).parents[2]


def test_a_pod_ends_when_its_kubelet_confirms_it(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    server.silence("node-a")
    server.add_pod("default", "p", node="node-a", grace_seconds=7)
    core.delete_namespaced_pod("p", "default")
    metadata = server.get("Pod", "p", "default")["metadata"]
    assert metadata["deletionGracePeriodSeconds"] == 7
    core.delete_namespaced_pod("p", "default", grace_period_seconds=3)
    assert server.get("Pod", "p", "default")["metadata"]["deletionGracePeriodSeconds"] == 3
    core.delete_namespaced_pod("p", "default", grace_period_seconds=0)
    assert not server.exists("Pod", "p", "default")


def test_a_finalizer_holds_an_object_until_it_is_taken_away(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    about = {"name": "held", "finalizers": ["instep.test/hold"]}
    core.create_namespaced_config_map("default", {"metadata": about})
    core.delete_namespaced_config_map("held", "default")
    assert server.get("ConfigMap", "held", "default")["metadata"]["deletionTimestamp"]
    with pytest.raises(ApiException) as refused:
        core.patch_namespaced_config_map("held", "default", {"metadata": {"finalizers": ["instep.test/more"]}})
    assert refused.value.status == 422
    core.patch_namespaced_config_map(
        "held", "default", {"metadata": {"$deleteFromPrimitiveList/finalizers": ["instep.test/hold"]}}
    )
    assert not server.exists("ConfigMap", "held", "default")


def test_a_delete_meant_for_another_object_is_refused(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    made = core.create_namespaced_config_map("default", {"metadata": {"name": "one"}})
    for wanted in ({"uid": "another"}, {"resourceVersion": "1"}):
        with pytest.raises(ApiException) as refused:
            core.delete_namespaced_config_map("one", "default", body={"preconditions": wanted})
        assert refused.value.status == 409
    core.delete_namespaced_config_map("one", "default", body={"preconditions": {"uid": made.metadata.uid}})


@pytest.mark.parametrize(
    ("limits", "pods", "allowed"),
    [
        ({"min_available": 2}, 3, 1),
        ({"min_available": 3}, 3, 0),
        ({"min_available": 5}, 3, 0),
        ({"min_available": "50%"}, 3, 1),
        ({"max_unavailable": 1}, 3, 1),
        ({"max_unavailable": 0}, 3, 0),
        ({"max_unavailable": "34%"}, 3, 2),
        ({"max_unavailable": 1}, 0, 0),
    ],
)
def test_a_budget_allows_what_its_live_pods_leave_over(server: ApiServer, limits: dict, pods: int, allowed: int):
    for index in range(pods):
        server.add_pod("default", f"p-{index}", node="node-a", owner="ReplicaSet/web")
    budget = server.add_budget("default", "web", labels={"app": "web"}, **limits)
    assert budget["status"]["disruptionsAllowed"] == allowed
    assert budget["status"]["currentHealthy"] == pods


def test_a_pod_that_is_not_ready_counts_as_disrupted(server: ApiServer):
    server.add_pod("default", "p-0", node="node-a", owner="ReplicaSet/web")
    server.add_pod("default", "p-1", node="node-a", owner="ReplicaSet/web", is_ready=False)
    budget = server.add_budget("default", "web", labels={"app": "web"}, max_unavailable=1)
    assert budget["status"]["disruptionsAllowed"] == 0


def test_an_evicted_pod_comes_back_on_a_node_that_takes_it(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    server.add_pod("default", "web-0", node="node-a", owner="StatefulSet/web", gpus=8)
    server.add_pod("default", "other", node="node-b", gpus=8)
    core.patch_node("node-a", {"spec": {"unschedulable": True}})
    core.create_namespaced_pod_eviction("web-0", "default", client.V1Eviction(metadata={"name": "web-0"}))
    server.wait_until(lambda: server.pods_on("node-c") == ["default/web-0"])
    server.wait_until(lambda: server.get("Pod", "web-0", "default")["status"]["phase"] == "Running")


def test_without_controllers_an_evicted_pod_stays_away():
    with ApiServer(has_controllers=False) as server:
        server.add_node("node-a")
        server.add_pod("default", "web-0", node="node-a", owner="StatefulSet/web")
        server.evict("default", "web-0")
        server.wait_until(lambda: not server.exists("Pod", "web-0", "default"))
        server.add_node("node-b")
        assert server.all("Pod") == []


def test_a_namespace_takes_everything_in_it_along(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    server.add_namespace("job")
    server.add_pod("job", "p", node="node-a")
    server.silence("node-a")
    core.delete_namespace("job")
    assert server.get("Namespace", "job")["status"]["phase"] == "Terminating"
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_config_map("job", {"metadata": {"name": "late"}})
    assert refused.value.status == 403
    server.revive("node-a")
    server.wait_until(lambda: not server.exists("Namespace", "job"))


def test_a_watch_by_label_sees_objects_come_and_go(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    version = core.list_node().metadata.resource_version
    core.patch_node("node-a", {"metadata": {"labels": {"rack": "r1"}}})
    core.patch_node("node-a", {"spec": {"unschedulable": True}})
    core.patch_node("node-a", {"metadata": {"labels": {"rack": None}}})
    stream = watch.Watch().stream(core.list_node, label_selector="rack=r1", resource_version=version, timeout_seconds=1)
    assert [event["type"] for event in stream] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_watch_can_be_cut(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    with ThreadPoolExecutor(1) as aside:
        stream = watch.Watch().stream(core.list_node, resource_version="1", timeout_seconds=600)
        first = aside.submit(next, stream)
        assert first.result()["type"] == "ADDED"
        server.drop_watches()
        rest = aside.submit(lambda: [event["object"].metadata.name for event in stream])
        assert rest.result()[-1] == "node-c"


def test_events_are_one_storage_under_two_groups(server: ApiServer, api: client.ApiClient):
    event = {
        **{
            "metadata": {"name": "e"},
            "regarding": {"kind": "Node", "name": "node-a"},
            "note": "Xid 79",
            "reason": "Xid",
        },
        **{"eventTime": "2026-01-01T00:00:00.000000Z", "action": "Found", "type": "Warning"},
        **{"reportingController": "instep", "reportingInstance": "instep-0"},
    }
    new, core = client.EventsV1Api(api), client.CoreV1Api(api)
    new.create_namespaced_event("default", event)
    found = core.list_namespaced_event("default", field_selector="involvedObject.name=node-a").items[0]
    assert (found.message, found.reporting_component, found.involved_object.name) == ("Xid 79", "instep", "node-a")
    again = new.list_namespaced_event("default", field_selector="regarding.name=node-a").items[0]
    assert (again.note, again.reporting_controller) == ("Xid 79", "instep")


def test_a_collection_is_deleted_by_its_labels(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    for name in ("a", "b", "c"):
        core.create_namespaced_config_map("default", {"metadata": {"name": name, "labels": {"keep": str(name == "c")}}})
    core.delete_collection_namespaced_config_map("default", label_selector="keep=False")
    assert [found["metadata"]["name"] for found in server.all("ConfigMap", "default")] == ["c"]


def test_a_deployment_is_scaled_and_takes_its_pods_along(server: ApiServer, kubectl: Kubectl):
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    server.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
    server.wait_until(lambda: len(server.all("Pod")) == 2)
    assert kubectl("scale", "deployment/web", "--replicas=3").returncode == 0
    server.wait_until(lambda: len(server.all("Pod")) == 3)
    assert kubectl("delete", "deployment/web").returncode == 0
    server.wait_until(lambda: not server.all("Pod") and not server.all("ReplicaSet"))


def test_every_node_gets_a_pod_of_a_daemon_set(server: ApiServer):
    template = {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}
    spec = {"selector": {"matchLabels": {"app": "agent"}}, "template": template}
    server.create({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"}, "spec": spec})
    server.wait_until(lambda: all(len(server.pods_on(f"node-{x}")) == 1 for x in "abc"))


def test_runs_as_a_process_of_its_own(tmp_path: Path):
    kubeconfig = tmp_path / "kubeconfig"
    command = [sys.executable, "-m", "tests.cluster.api_server", "--print-port", "--nodes", "2"]
    with subprocess.Popen(
        [*command, "--kubeconfig", str(kubeconfig)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        done = kubectl_with(kubeconfig, tmp_path)("get", "nodes", "-o", "name")
        assert done.stdout.split() == ["node/node-a", "node/node-b"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
