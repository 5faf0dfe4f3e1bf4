"""The manifests give what is needed and no more: of the cluster to the server, of the node to the agent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from instep_agent.node import rights_of
from instep_agent.sources import all_sources
from instep_remediation.actions import CordonNode, DrainNode, UncordonNode
from instep_remediation.executors.kubernetes.connection import connect
from instep_remediation.executors.kubernetes.executor import KubernetesExecutor
from instep_remediation.executors.kubernetes.settings import KubernetesConfig
from instep_remediation.node_executor import Outcome, Progress

from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import REAL, kubectl_with
from tests.deploy.manifests import FOLDERS, KUBERNETES, Manifest, manifests, one, pod

NODE = "node-a"
DRAIN, CORDON, UNCORDON = DrainNode(NODE, "Xid 79"), CordonNode(NODE, "noise"), UncordonNode(NODE, "GPU replaced")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """A cluster that enforces the base's rules, with a node and a job on it."""
    if os.environ.get(REAL):
        pytest.skip(f"needs the stand-in: unset {REAL}")
    with ApiServer(has_rbac=True) as started:
        for name in (NODE, "node-b"):
            started.add_node(name)
        started.add_pod("default", "train-0", node=NODE, owner="StatefulSet/train")
        admin = kubectl_with(started.kubeconfig(tmp_path / "admin"), tmp_path)
        done = admin("apply", "--server-side", "-k", str(KUBERNETES / "base"))
        assert done.returncode == 0, done.stderr
        yield started


def carry_out(
    server: ApiServer, folder: Path, name: str = "instep-server"
) -> tuple[list[Progress], set[tuple[str, ...]]]:
    """Drain, cordon and return a node as that service account; the answers, and the calls in the words of RBAC."""
    token = server.service_account_token("instep", name)
    settings = KubernetesConfig(kubeconfig=server.kubeconfig(folder / "account", token=token))
    executor, answers = KubernetesExecutor(connect(settings), settings), []
    for mark, action in (("plan-1-0", DRAIN), ("plan-2-0", UNCORDON), ("plan-3-0", CORDON)):
        for step in executor.steps(action, mark):
            answers.append(until_answered(server, executor, step))
    return answers, {call.rule for call in server.calls(token)}


def until_answered(server: ApiServer, executor: KubernetesExecutor, step) -> Progress:
    """Ask again once the pods that are ending have gone."""
    progress = executor.carry_out(step)
    if progress.outcome is Outcome.WAITING:
        server.wait_until(lambda: server.pods_on(NODE) == [], "the node to be empty")
        progress = executor.carry_out(step)
    return progress


def granted(kind: str, name: str) -> set[tuple[str, ...]]:
    """What a role grants, as (verb, group, resource, subresource)."""
    rules = one("base", kind, name)["rules"]
    return {
        (verb, group, *(f"{resource}/".split("/")[:2]))
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_rules_are_exactly_the_calls_that_the_executor_makes(server: ApiServer, tmp_path: Path):
    answers, calls = carry_out(server, tmp_path)
    assert [answer for answer in answers if answer.outcome is not Outcome.DONE] == []
    assert calls == granted("ClusterRole", "instep-server") | granted("Role", "instep-server-events")


def test_the_agents_account_may_do_nothing(server: ApiServer, tmp_path: Path):
    answers, _calls = carry_out(server, tmp_path, "instep-agent")
    assert {answer.outcome for answer in answers} == {Outcome.FAILED}
    assert all("deploy/kubernetes/base/rbac.yaml" in answer.detail for answer in answers)


def test_events_are_granted_in_one_namespace_only():
    assert one("base", "Role", "instep-server-events")["metadata"]["namespace"] == "default"
    assert not any("events" in resource for _verb, _group, resource, _ in granted("ClusterRole", "instep-server"))


def test_the_file_that_a_refusal_names_holds_the_rules():
    found = [each["kind"] for each in yaml.safe_load_all((KUBERNETES / "base/rbac.yaml").read_text())]
    assert {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"} == set(found)


@pytest.mark.parametrize(
    ("folder", "holds"),
    [("base", False), ("overlays/site", False), ("overlays/postgresql", False), ("overlays/approve", True)],
)
def test_only_a_server_that_carries_plans_out_holds_a_credential_of_the_cluster(folder: str, holds: bool):
    assert pod(folder, "Deployment", "instep-server")["automountServiceAccountToken"] is holds
    assert pod(folder, "DaemonSet", "instep-agent")["automountServiceAccountToken"] is False


# Of the node ----------------------------------------------------------------------------------------------------------


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def workloads() -> list[tuple[str, str, str]]:
    kinds = ("DaemonSet", "Deployment", "Job")
    return [
        (folder, each["kind"], each["metadata"]["name"])
        for folder in FOLDERS
        for each in manifests(folder)
        if each["kind"] in kinds
    ]


@pytest.mark.parametrize(("folder", "kind", "name"), workloads())
def test_no_container_can_gain_rights_or_change_its_image(folder: str, kind: str, name: str):
    for each in containers(pod(folder, kind, name)):
        if each["name"] == "kernel-log":
            continue
        context = each["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True), each["name"]
        assert context["capabilities"]["drop"] == ["ALL"], each["name"]
        assert "privileged" not in context, each["name"]


@pytest.mark.parametrize(("folder", "kind", "name"), workloads())
def test_every_container_says_what_it_needs_and_which_release_it_is(folder: str, kind: str, name: str):
    for each in containers(pod(folder, kind, name)):
        assert set(each["resources"]["requests"]) == {"cpu", "memory"}, each["name"]
        assert "memory" in each["resources"]["limits"], each["name"]
        assert each["image"].rpartition(":")[2] == "0.1.0", each["name"]


def test_the_servers_pod_keeps_to_the_restricted_level():
    spec = pod("overlays/full", "Deployment", "instep-server")
    context = spec["securityContext"]
    assert (context["runAsNonRoot"], context["seccompProfile"]["type"]) == (True, "RuntimeDefault")
    assert not any(spec.get(name) for name in ("hostPID", "hostNetwork", "hostIPC"))
    allowed = {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= allowed
    assert all("add" not in each["securityContext"]["capabilities"] for each in containers(spec))


def capabilities(folder: str) -> set[str]:
    agent = next(each for each in pod(folder, "DaemonSet", "instep-agent")["containers"] if each["name"] == "agent")
    return set(agent["securityContext"]["capabilities"]["add"])


def test_the_agent_has_the_capabilities_that_its_sources_ask_for():
    asked = {word for source in all_sources() for word in re.findall(r"CAP_(\w+)", rights_of(source))}
    assert "SYSLOG" in asked
    given = capabilities("overlays/full") | {"DAC_READ_SEARCH"}  # of which DAC_OVERRIDE is more
    assert asked - given == set()


def test_the_largest_right_is_given_only_where_it_is_asked_for():
    assert capabilities("base") == {"DAC_OVERRIDE", "SYSLOG", "SYS_PTRACE"}
    assert capabilities("overlays/full") == capabilities("base") | {"SYS_ADMIN"}


def test_the_node_is_mounted_for_reading_but_for_records_and_spool():
    spec = pod("base", "DaemonSet", "instep-agent")
    of_node = {volume["name"] for volume in spec["volumes"] if "hostPath" in volume}
    agent = next(each for each in spec["containers"] if each["name"] == "agent")
    written = {
        mount["name"] for mount in agent["volumeMounts"] if mount["name"] in of_node and not mount.get("readOnly")
    }
    assert written == {"records", "spool"}


def test_every_mount_of_the_node_and_every_capability_has_its_reason_beside_it():
    lines = (KUBERNETES / "base/agent.yaml").read_text().splitlines()
    volumes = lines[lines.index("      volumes:") :]
    host = [volumes[index - 1] for index, line in enumerate(volumes) if line.strip() == "hostPath:"]
    capabilities = [
        line for line in lines if line.strip().lstrip("- ").split(" ")[0].isupper() and line.startswith(" " * 16)
    ]
    assert len(host) == 6
    assert len(capabilities) == 3
    assert [line for line in [*host, *capabilities] if " # " not in line] == []


def test_the_agent_goes_to_every_node_and_takes_nobodys_place():
    spec = pod("base", "DaemonSet", "instep-agent")
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert one("base", "PriorityClass", spec["priorityClassName"])["preemptionPolicy"] == "Never"


def test_the_only_privileged_container_is_the_one_that_copies_the_kernel_log():
    found = {
        (folder, each["name"])
        for folder, kind, name in workloads()
        for each in containers(pod(folder, kind, name))
        if each["securityContext"].get("privileged")
    }
    assert found == {("overlays/full", "kernel-log")}
    mounts = {
        mount["mountPath"]
        for mount in containers(pod("overlays/full", "DaemonSet", "instep-agent"))[-1]["volumeMounts"]
    }
    assert mounts == {"/node/kmsg", "/kernel-log", "/copier"}


def test_only_one_port_is_open_to_others():
    policies = {each["metadata"]["name"]: each["spec"] for each in manifests("base") if each["kind"] == "NetworkPolicy"}
    assert policies["instep-nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert policies["instep-server"]["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
