"""The official Python client lists, cordons, evicts, watches and elects a leader."""

from __future__ import annotations

import threading

import pytest
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

from tests.cluster.api_server import ApiServer
from tests.cluster.test_nodes_with_kubectl import Cluster


def eviction(name: str, **options: object) -> client.V1Eviction:
    return client.V1Eviction(metadata=client.V1ObjectMeta(name=name), delete_options=client.V1DeleteOptions(**options))


def test_lists_by_node_page_by_page(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    for index in range(5):
        cluster.add_pod("default", f"p-{index}", node="node-a", labels={"paged": "yes"})
    first = core.list_pod_for_all_namespaces(field_selector="spec.nodeName=node-a", label_selector="paged=yes", limit=3)
    cluster.remove("Pod", "p-4", "default")  # after the first page: the snapshot still has it
    rest = core.list_pod_for_all_namespaces(
        field_selector="spec.nodeName=node-a", label_selector="paged=yes", limit=3, _continue=first.metadata._continue
    )
    assert [pod.metadata.name for pod in first.items + rest.items] == [f"p-{index}" for index in range(5)]
    assert not rest.metadata._continue


def test_cordons_with_a_patch(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    core.patch_node("node-a", {"spec": {"unschedulable": True}})
    assert core.read_node("node-a").spec.unschedulable is True


def test_a_patch_of_the_status_leaves_the_spec_alone_and_the_reverse(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    condition = {"type": "GpuHealthy", "status": "False", "reason": "Xid79", "message": "fell off the bus"}
    core.patch_node_status("node-a", {"spec": {"unschedulable": True}, "status": {"conditions": [condition]}})
    core.patch_node("node-a", {"status": {"conditions": [{"type": "GpuHealthy", "status": "True"}]}})
    node = core.read_node("node-a")
    assert not node.spec.unschedulable
    assert {found.type: found.status for found in node.status.conditions} == {"GpuHealthy": "False", "Ready": "True"}


def test_evicts_and_then_there_is_nothing_to_evict(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    cluster.add_pod("default", "job-0", node="node-a")
    core.create_namespaced_pod_eviction("job-0", "default", eviction("job-0"))
    cluster.wait_until(lambda: not cluster.exists("Pod", "job-0", "default"))
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_pod_eviction("job-0", "default", eviction("job-0"))
    assert refused.value.status == 404


def test_a_budget_refuses_with_429_and_no_retry_after(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    cluster.add_pod("default", "web-0", node="node-a", owner="StatefulSet/web")
    cluster.add_budget("default", "web", labels={"app": "web"}, min_available="100%")
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_pod_eviction("web-0", "default", eviction("web-0"))
    assert refused.value.status == 429
    assert "Retry-After" not in refused.value.headers
    assert '"reason":"DisruptionBudget"' in refused.value.body
    assert cluster.pods_on("node-a") == ["default/web-0"]


def test_evicts_only_the_pod_that_was_meant(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    pod = cluster.add_pod("default", "job-0", node="node-a")
    meant = {"preconditions": client.V1Preconditions(uid="another")}
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_pod_eviction("job-0", "default", eviction("job-0", **meant))
    assert refused.value.status == 409
    meant = {"preconditions": client.V1Preconditions(uid=pod["metadata"]["uid"])}
    core.create_namespaced_pod_eviction("job-0", "default", eviction("job-0", **meant))
    cluster.wait_until(lambda: not cluster.exists("Pod", "job-0", "default"))


def test_a_dry_run_of_an_eviction_evicts_nothing(cluster: Cluster, api: client.ApiClient):
    cluster.add_pod("default", "job-0", node="node-a")
    core = client.CoreV1Api(api)
    core.create_namespaced_pod_eviction("job-0", "default", eviction("job-0"), dry_run="All")
    assert "deletionTimestamp" not in cluster.get("Pod", "job-0", "default")["metadata"]


def test_a_stale_object_is_not_written(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    stale = core.read_node("node-a")
    core.patch_node("node-a", {"metadata": {"labels": {"rack": "r1"}}})
    with pytest.raises(ApiException) as refused:
        core.replace_node("node-a", stale)
    assert (refused.value.status, refused.value.reason) == (409, "Conflict")
    with pytest.raises(ApiException) as refused:
        version = stale.metadata.resource_version
        core.patch_node("node-a", {"metadata": {"resourceVersion": version, "labels": {"rack": "r2"}}})
    assert refused.value.status == 409
    assert core.read_node("node-a").metadata.labels["rack"] == "r1"


def test_watches_from_a_list_on(cluster: Cluster, api: client.ApiClient):
    core = client.CoreV1Api(api)
    version = core.list_node().metadata.resource_version
    core.patch_node("node-b", {"spec": {"unschedulable": True}})
    stream = watch.Watch().stream(core.list_node, resource_version=version, timeout_seconds=20)
    found = next(event for event in stream if event["object"].metadata.name == "node-b")
    assert found["type"] == "MODIFIED"
    assert found["object"].spec.unschedulable is True


def test_a_bookmark_tells_how_far_the_watch_is(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    listed = core.list_namespaced_pod("default").metadata.resource_version
    moved = core.patch_node("node-a", {"metadata": {"labels": {"rack": "r1"}}}).metadata.resource_version
    server.send_bookmarks()
    stream = watch.Watch().stream(
        core.list_namespaced_pod, "default", resource_version=listed, allow_watch_bookmarks=True, timeout_seconds=2
    )
    found = next(iter(stream))
    assert found["type"] == "BOOKMARK"
    assert found["raw_object"]["metadata"]["resourceVersion"] == moved


def test_a_watch_from_before_the_compaction_ends_with_410(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    version = core.list_node().metadata.resource_version
    core.patch_node("node-a", {"metadata": {"labels": {"rack": "r1"}}})
    server.compact()
    with pytest.raises(ApiException) as lost:
        list(watch.Watch().stream(core.list_node, resource_version=version, timeout_seconds=5))
    assert lost.value.status == 410


def test_a_page_from_before_the_compaction_is_410_and_the_future_is_504(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    first = core.list_node(limit=1)
    core.patch_node("node-a", {"metadata": {"labels": {"rack": "r1"}}})
    server.compact()
    with pytest.raises(ApiException) as lost:
        core.list_node(limit=1, _continue=first.metadata._continue)
    assert lost.value.status == 410
    with pytest.raises(ApiException) as early:
        core.list_node(resource_version="999999")
    assert early.value.status == 504
    assert '"retryAfterSeconds":1' in early.value.body


def test_elects_one_leader_by_a_lease(
    cluster: Cluster, api: client.ApiClient, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    config.load_kube_config(str(cluster.kubeconfig(tmp_path / "leader")))
    leads = threading.Event()
    lock = LeaseLock("instep-leader", "default", "one")
    asked = electionconfig.Config(
        lock, lease_duration=3, renew_deadline=2, retry_period=1, onstarted_leading=leads.set, onstopped_leading=None
    )
    election = threading.Thread(target=leaderelection.LeaderElection(asked).run)
    election.start()
    assert leads.wait(20)
    monkeypatch.setattr(lock, "update", lambda *_: False)  # it cannot renew any more, and steps down
    election.join()
    assert cluster.get("Lease", "instep-leader", "default")["spec"]["holderIdentity"] == "one"
