"""The real kubectl applies, watches, explains and deletes; server-side apply knows whose a field is."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster.conftest import Kubectl, kubectl_path
from tests.cluster.test_nodes_with_kubectl import Cluster, succeeded

CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default, labels: {app: web}}
data: {colour: COLOUR, size: "1"}
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: example/web:1
        ports: [{containerPort: 80}, {containerPort: 81}]
        env: [{name: A, value: "1"}, {name: B, value: "2"}]
"""


@pytest.fixture(autouse=True)
def _nothing_stays(cluster: Cluster, kubectl: Kubectl):
    yield
    kubectl("delete", "deployment,configmap", "-l", "app=web", "--wait=false")
    kubectl("delete", "deployment/web", "--ignore-not-found", "--wait=false")


def test_applies_twice_and_changes_only_what_changed(cluster: Cluster, kubectl: Kubectl):
    assert "created" in succeeded(kubectl("apply", "-f", "-", stdin=DEPLOYMENT))
    assert "unchanged" in succeeded(kubectl("apply", "-f", "-", stdin=DEPLOYMENT))
    changed = DEPLOYMENT.replace("web:1", "web:2").replace('{name: A, value: "1"}, ', "")
    assert "configured" in succeeded(kubectl("apply", "-f", "-", stdin=changed))
    container = cluster.get("Deployment", "web", "default")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "example/web:2"
    assert container["env"] == [{"name": "B", "value": "2"}]
    assert [port["containerPort"] for port in container["ports"]] == [80, 81]


def test_refuses_a_field_that_does_not_exist(cluster: Cluster, kubectl: Kubectl):
    done = kubectl("apply", "-f", "-", stdin=DEPLOYMENT.replace("replicas: 0", "replicaz: 0"))
    assert done.returncode == 1
    assert "unknown field" in done.stderr and "replicaz" in done.stderr  # old servers leave this to kubectl's own words
    assert not cluster.exists("Deployment", "web", "default")


def test_a_field_of_another_manager_is_a_conflict_until_it_is_forced(cluster: Cluster, kubectl: Kubectl):
    red, blue = CONFIG.replace("COLOUR", "red"), CONFIG.replace("COLOUR", "blue")
    succeeded(kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", stdin=red))
    refused = kubectl("apply", "--server-side", "--field-manager=two", "-f", "-", stdin=blue)
    assert refused.returncode == 1
    assert 'conflict with "one": .data.colour' in refused.stderr
    assert cluster.get("ConfigMap", "settings", "default")["data"]["colour"] == "red"
    succeeded(kubectl("apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-", stdin=blue))
    assert cluster.get("ConfigMap", "settings", "default")["data"]["colour"] == "blue"


def test_the_same_value_is_shared_and_left_when_one_lets_go(cluster: Cluster, kubectl: Kubectl):
    red = CONFIG.replace("COLOUR", "red")
    succeeded(kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", stdin=red))
    succeeded(kubectl("apply", "--server-side", "--field-manager=two", "-f", "-", stdin=red))
    less = red.replace(', size: "1"', "")
    succeeded(kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", stdin=less))
    assert cluster.get("ConfigMap", "settings", "default")["data"] == {"colour": "red", "size": "1"}
    succeeded(kubectl("apply", "--server-side", "--field-manager=two", "-f", "-", stdin=less))
    assert cluster.get("ConfigMap", "settings", "default")["data"] == {"colour": "red"}


def test_a_dry_run_keeps_nothing(cluster: Cluster, kubectl: Kubectl):
    red = CONFIG.replace("COLOUR", "red")
    succeeded(kubectl("apply", "--dry-run=server", "-f", "-", stdin=red))
    succeeded(kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=red))
    assert not cluster.exists("ConfigMap", "settings", "default")


def test_watches_what_changes(cluster: Cluster, kubectl: Kubectl, tmp_path):
    kubeconfig = cluster.kubeconfig(tmp_path / "watching")
    command = [
        kubectl_path(),
        "--kubeconfig",
        str(kubeconfig),
        "get",
        "configmaps",
        "-l",
        "app=web",
        "-w",
        "--no-headers",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as watching:
        try:
            assert watching.stdout is not None
            succeeded(kubectl("apply", "-f", "-", stdin=CONFIG.replace("COLOUR", "red")))
            assert watching.stdout.readline().split()[:2] == ["settings", "2"]
            succeeded(kubectl("delete", "configmap", "settings"))
            assert watching.stdout.readline().split()[:2] == ["settings", "2"]
        finally:
            watching.kill()


def test_deletes_and_says_so_when_there_is_nothing(cluster: Cluster, kubectl: Kubectl):
    succeeded(kubectl("apply", "-f", "-", stdin=CONFIG.replace("COLOUR", "red")))
    assert 'configmap "settings" deleted' in succeeded(kubectl("delete", "configmap", "settings"))
    again = kubectl("delete", "configmap", "settings")
    assert again.returncode == 1
    assert "(NotFound)" in again.stderr


def test_explains_a_field_and_answers_can_i(cluster: Cluster, kubectl: Kubectl):
    assert "NodeSpec" in succeeded(kubectl("explain", "node.spec"))
    assert succeeded(kubectl("auth", "can-i", "evict", "pods")).strip() == "yes"
