"""With RBAC a token may do what its roles grant and nothing else, and the server keeps who called what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client, config
from kubernetes.client.rest import ApiException

from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import REAL, kubectl_with

ROLES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: instep}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch, patch]}
- {apiGroups: [""], resources: [pods/eviction], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: instep}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: instep}
subjects: [{kind: ServiceAccount, name: instep, namespace: default}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: leader, namespace: default}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [instep], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: leader, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: leader}
subjects: [{kind: ServiceAccount, name: instep}]
"""


@pytest.fixture
def guarded(tmp_path, request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    import os

    if os.environ.get(REAL):
        pytest.skip(f"needs the stand-in: unset {REAL}")
    with ApiServer(has_rbac=True) as server:
        server.add_node("node-a")
        admin = kubectl_with(server.kubeconfig(tmp_path / "admin"), tmp_path)
        done = admin("apply", "-f", "-", stdin=ROLES)
        assert done.returncode == 0, done.stderr
        yield server


def test_a_token_may_do_what_its_roles_grant(guarded: ApiServer, tmp_path):
    token = guarded.service_account_token("default", "instep")
    guarded.add_pod("default", "job-0", node="node-a")
    with config.new_client_from_config(str(guarded.kubeconfig(tmp_path / "sa", token=token))) as api:
        core = client.CoreV1Api(api)
        core.list_node()
        core.patch_node("node-a", {"spec": {"unschedulable": True}})
        core.create_namespaced_pod_eviction("job-0", "default", client.V1Eviction(metadata={"name": "job-0"}))
        for refused in (
            lambda: core.list_pod_for_all_namespaces(),
            lambda: core.patch_node_status("node-a", {}),
            lambda: core.delete_node("node-a"),
        ):
            with pytest.raises(ApiException) as error:
                refused()
            assert error.value.status == 403
            assert "system:serviceaccount:default:instep" in error.value.body


def test_the_calls_of_a_token_are_kept_in_the_words_of_rbac(guarded: ApiServer, tmp_path):
    token = guarded.service_account_token("default", "instep")
    with config.new_client_from_config(str(guarded.kubeconfig(tmp_path / "sa", token=token))) as api:
        core = client.CoreV1Api(api)
        core.list_node()
        core.patch_node("node-a", {"spec": {"unschedulable": True}})
        with pytest.raises(ApiException):
            core.patch_node_status("node-a", {})
    assert [(*call.rule, call.code) for call in guarded.calls(token)] == [
        ("list", "", "nodes", "", 200),
        ("patch", "", "nodes", "", 200),
        ("patch", "", "nodes", "status", 403),
    ]
    assert guarded.calls("another") == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["list", "nodes"], "yes"),
        (["delete", "nodes"], "no"),
        (["create", "pods/eviction"], "yes"),
        (["update", "leases.coordination.k8s.io/instep"], "yes"),
        (["update", "leases.coordination.k8s.io/other"], "no"),
    ],
)
def test_kubectl_can_ask_what_it_may(guarded: ApiServer, tmp_path, words: list[str], answer: str):
    if words[1] == "pods/eviction":
        words = ["create", "pods", "--subresource=eviction"]
    token = guarded.service_account_token("default", "instep")
    kubectl = kubectl_with(guarded.kubeconfig(tmp_path / "sa", token=token), tmp_path)
    assert kubectl("auth", "can-i", *words).stdout.strip() == answer


def test_kubectl_makes_a_token_for_a_service_account(guarded: ApiServer, tmp_path):
    admin = kubectl_with(guarded.kubeconfig(tmp_path / "admin"), tmp_path)
    assert admin("create", "serviceaccount", "instep").returncode == 0
    done = admin("create", "token", "instep")
    assert done.returncode == 0, done.stderr
    kubectl = kubectl_with(guarded.kubeconfig(tmp_path / "sa", token=done.stdout.strip()), tmp_path)
    assert kubectl("get", "nodes").returncode == 0
    assert kubectl("get", "pods").returncode == 1
