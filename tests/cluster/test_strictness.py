"""The stand-in refuses what real servers refuse: bodies of the wrong type, unknown callers, names that are none."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import kubernetes
import pytest
from kubernetes import client
from kubernetes.client.rest import ApiException

from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import Kubectl

Raw = Callable[..., tuple[int, dict[str, Any]]]
POD = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "x"}]}}


@pytest.fixture
def raw(server: ApiServer) -> Raw:
    """One request as it is written: (code, body)."""
    context = ssl.create_default_context(cadata=server.ca_pem.decode())

    def call(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        headers.setdefault("Authorization", f"Bearer {server.token}")
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(server.url + path, data=data, headers=headers, method=method)
        if "Content-Type" in headers and not headers["Content-Type"]:
            asked.remove_header("Content-type")
        try:
            with urllib.request.urlopen(asked, context=context, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    return call


def test_kubernetes_is_the_official_client():
    assert hasattr(kubernetes, "client")


@pytest.mark.parametrize(
    "content_type", ["text/plain; charset=utf-8", "application/x-www-form-urlencoded", "text/json"]
)
def test_a_body_that_is_not_said_to_be_json_is_refused(raw: Raw, content_type: str):
    code, status = raw("POST", "/api/v1/namespaces/default/pods", POD, Content_Type=content_type)
    assert (code, status["reason"]) == (415, "UnsupportedMediaType")
    code, _ = raw("POST", "/api/v1/namespaces/default/pods", POD, Content_Type="application/json; charset=utf-8")
    assert code == 201


def test_a_delete_and_an_eviction_are_as_strict(server: ApiServer, raw: Raw):
    server.add_pod("default", "p", node="node-a")
    evict = {"metadata": {"name": "p"}}
    path = "/api/v1/namespaces/default/pods/p"
    assert raw("POST", f"{path}/eviction", evict, Content_Type="text/plain")[0] == 415
    assert raw("DELETE", path, {"gracePeriodSeconds": 0}, Content_Type="text/plain")[0] == 415
    assert server.pods_on("node-a") == ["default/p"]


def test_a_patch_must_say_which_kind_it_is(raw: Raw):
    for content_type in ("application/json", "text/plain"):
        assert raw("PATCH", "/api/v1/nodes/node-a", {"spec": {}}, Content_Type=content_type)[0] == 415
    assert raw("PATCH", "/api/v1/nodes/node-a", {"spec": {}}, Content_Type="application/merge-patch+json")[0] == 200


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic YTpi"])
def test_an_unknown_caller_gets_401(raw: Raw, authorization: str):
    code, status = raw("GET", "/api/v1/nodes", Authorization=authorization)
    assert (code, status["reason"]) == (401, "Unauthorized")
    assert raw("GET", "/api/v1/nodes")[0] == 200


@pytest.mark.parametrize("name", ["UPPER", "under_score", "-dash", "a" * 254])
def test_a_name_that_is_none_is_422(raw: Raw, name: str):
    pod = {**POD, "metadata": {"name": name}}
    code, status = raw("POST", "/api/v1/namespaces/default/pods", pod, Content_Type="application/json")
    assert code == 422
    assert status["details"]["causes"][0]["field"] == "metadata.name"


def test_what_is_missing_and_what_is_doubled(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    for namespace, code in (("nowhere", 404), ("default", 201)):
        if code == 201:
            core.create_namespaced_pod(namespace, POD)
            continue
        with pytest.raises(ApiException) as refused:
            core.create_namespaced_pod(namespace, POD)
        assert refused.value.status == code
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_pod("default", POD)
    assert '"reason":"AlreadyExists"' in refused.value.body
    generated = core.create_namespaced_pod("default", {"metadata": {"generateName": "p-"}, "spec": POD["spec"]})
    assert generated.metadata.name.startswith("p-")


def test_a_taint_must_have_an_effect_that_exists(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    with pytest.raises(ApiException) as refused:
        core.patch_node("node-a", {"spec": {"taints": [{"key": "a", "effect": "Never"}]}})
    assert refused.value.status == 422
    core.patch_node("node-a", {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})


@pytest.mark.parametrize(
    ("is_oldest", "style", "namespace", "is_taken"),
    [
        (False, "new", "default", True),
        (False, "new", "kube-system", True),
        (False, "old", "default", True),
        (False, "old", "kube-public", False),
        (True, "new", "default", False),
        (True, "new", "kube-system", True),
        (True, "old", "default", True),
        (True, "old", "kube-system", False),
    ],
)
def test_where_an_event_about_a_node_may_live(is_oldest: bool, style: str, namespace: str, is_taken: bool):
    node = {"kind": "Node", "name": "node-a"}
    new = {
        **{"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": node, "note": "Xid 79", "reason": "Xid"},
        **{"eventTime": "2026-01-01T00:00:00.000000Z", "action": "Found", "type": "Warning"},
        **{"reportingController": "instep", "reportingInstance": "instep-0"},
    }
    old = {"apiVersion": "v1", "kind": "Event", "involvedObject": node, "message": "Xid 79", "type": "Warning"}
    server = ApiServer(is_oldest=is_oldest)
    try:
        event = {**(new if style == "new" else old), "metadata": {"name": "e", "namespace": namespace}}
        if is_taken:
            server.create(event)
            assert server.get("Event", "e", namespace)["message"] == "Xid 79"  # one storage under both groups
        else:
            with pytest.raises(Exception, match=r"does not match event\.namespace"):
                server.create(event)
    finally:
        server.stop()


def test_kubectl_sees_why_it_is_refused(server: ApiServer, kubectl: Kubectl, tmp_path):
    from tests.cluster.conftest import kubectl_with

    stranger = kubectl_with(server.kubeconfig(tmp_path / "stranger", token="wrong"), tmp_path)
    done = stranger("get", "nodes")
    assert done.returncode == 1
    assert "Unauthorized" in done.stderr or "provide credentials" in done.stderr
