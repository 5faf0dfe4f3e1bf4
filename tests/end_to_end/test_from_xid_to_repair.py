"""One fault from its kernel line to the repaired node, over real processes.

Agents, supervisors and ranks, the server on PostgreSQL, Alertmanager, and the API of a cluster.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from instep.local.cluster import LocalCluster, wait_until
from instep.local.ports import free_port

from tests import services
from tests.cluster.api_server import ApiServer
from tests.remediation.alerts.people import People, routing

pytestmark = pytest.mark.real
NODES = ("node-a", "node-b", "node-c")
RUN, PCI = "run-1", "0000:3b:00"
TOKENS = {"view": "only-looks-0123456789", "operate": "may-decide-0123456789"}
WAIT_SECONDS = 60.0
SHAPE = ("--layers", "2", "--width", "32", "--heads", "2", "--sequence-length", "16", "--batch-size", "2")


class Caller:
    """A person with a token."""

    def __init__(self, url: str, scope: str) -> None:
        self._url, self._token = url, TOKENS[scope]

    def __call__(self, method: str, path: str, **body: object) -> tuple[int, dict]:
        data = json.dumps(body).encode() if body else None
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


def until(seen, what):
    assert wait_until(seen, WAIT_SECONDS), f"{what} was not seen within {WAIT_SECONDS:.0f} s"


def configuration(folder, database, kubeconfig, alertmanager, webhook):
    """The server's TOML: everything that the scenario joins."""
    path = folder / "server.toml"
    tokens = "".join(
        f'[[tokens]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\nscopes = ["{name}"]\n'
        for name, token in TOKENS.items()
    )
    path.write_text(
        f'database = "{database}"\nexecutor = "kubernetes"\nalertmanager = ["{alertmanager}"]\n'
        f'webhook = "{webhook}"\nwebhook_on_resolve = true\n[kubernetes]\nkubeconfig = "{kubeconfig}"\n{tokens}'
    )
    return path


def start_job(local: LocalCluster) -> None:
    """Four ranks on two nodes; the third stands by."""
    endpoint = f"127.0.0.1:{free_port()}"
    script = ["-m", "instep_trainer.train", *SHAPE, "--steps", "100000", "--out", str(local.folder / "out")]
    for place, node in enumerate(NODES):
        local.start_supervisor(
            node,
            endpoint,
            RUN,
            nnodes="2:3",
            per_node=2,
            options=["--job", "gpt", "--max-restarts", "3", "--node-rank", str(place)],
            script=[*script, "--checkpoint-every-disk", "0"],
        )


def break_gpu(local: LocalCluster) -> None:
    """The GPU of rank 2 falls off the bus of node-b, and its process dies of it."""
    with ThreadPoolExecutor(2) as both:
        line = both.submit(local.inject, "xid", "node-b", kernel_log=local.kernel_log("node-b"), pci=PCI, code=79)
        kill = both.submit(local.inject, "kill", "node-b", run=RUN, rank=2)
        line.result(), kill.result()


def fill(cluster: ApiServer) -> None:
    """The nodes as Kubernetes sees them: pods of other work, one after the other to be evicted."""
    for node in NODES:
        cluster.add_node(node)
        cluster.add_pod("instep", f"agent-{node}", node=node, owner="DaemonSet/agent")
    for number in (0, 1):
        cluster.add_pod("default", f"web-{number}", node="node-b", owner="ReplicaSet/web")
    cluster.add_budget("default", "web", labels={"app": "web"}, max_unavailable=1)


def shown_alerts(address: str) -> list[dict]:
    command = ["amtool", "alert", "query", "-o", "json", f"--alertmanager.url={address}"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout)


def test_a_gpu_falls_off_the_bus_and_the_node_comes_back_repaired(tmp_path, new_postgresql_database):
    services.needed("prometheus-alertmanager", "prometheus-alertmanager", "amtool")
    people = People()
    with (
        ApiServer(termination_seconds=0.2) as cluster,
        services.alertmanager(tmp_path, routing(people)) as alertmanager,
    ):
        cluster.add_namespace("instep")
        fill(cluster)
        config = configuration(
            tmp_path,
            new_postgresql_database(),
            cluster.kubeconfig(tmp_path / "kubeconfig"),
            alertmanager,
            f"http://{people.address}/webhook",
        )
        gpus = dict.fromkeys(NODES, (PCI, "0000:5e:00"))
        with LocalCluster(NODES, gpus=gpus, server_options=("--config", str(config))) as local:
            Scenario(local, cluster, alertmanager, people).play()
    people.close()


class Scenario:
    """What happens, in order, and what each of those who look at it sees."""

    def __init__(self, local: LocalCluster, cluster: ApiServer, alertmanager: str, people: People) -> None:
        self.local, self.cluster, self.alertmanager, self.people = local, cluster, alertmanager, people
        self.view, self.operate = Caller(local.url, "view"), Caller(local.url, "operate")

    def play(self) -> None:
        self.the_job_runs()
        incident = self.one_alert_tells_of_it()
        self.the_job_has_moved(incident)
        plan = self.only_who_may_decide_approves()
        self.the_node_is_drained_within_its_budget(plan)
        self.the_audit_says_who_and_why(plan)
        self.the_repaired_node_ends_the_alert(incident)

    def job(self) -> dict:
        return self.view("GET", f"/api/v1/jobs/{RUN}")[1]

    def the_job_runs(self) -> None:
        start_job(self.local)
        until(lambda: self.job().get("step", 0) >= 20, "step 20")
        assert shown_alerts(self.alertmanager) == []
        break_gpu(self.local)

    def one_alert_tells_of_it(self) -> str:
        until(lambda: shown_alerts(self.alertmanager), "an alert")
        (alert,) = shown_alerts(self.alertmanager)
        assert alert["labels"]["kind"] == "crash"
        assert alert["labels"]["drill"] == "true"
        assert "Xid 79" in alert["annotations"]["evidence"]
        assert "rank 2" in alert["annotations"]["where"] and "node-b" in alert["annotations"]["where"]
        until(lambda: any(path == "webhook" for path, _ in self.people.told), "the webhook")
        (body,) = [body for path, body in self.people.told if path == "webhook"]
        assert body["incident"] == alert["labels"]["incident"]
        return body["incident"]

    def the_job_has_moved(self, incident: str) -> None:
        def has_kept_a_step() -> bool:
            return self.view("GET", f"/api/v1/incidents/{incident}")[1]["step_kept"] is not None

        until(has_kept_a_step, "the next kept step")
        nodes = {member["node"] for member in self.job()["attempts"][-1]["members"] if member["ranks"]}
        assert nodes == {"node-a", "node-c"}
        assert self.view("GET", f"/api/v1/incidents/{incident}")[1]["state"] == "open", "its node is not repaired"
        assert len(shown_alerts(self.alertmanager)) == 1

    def only_who_may_decide_approves(self) -> int:
        (plan,) = [each for each in self.view("GET", "/api/v1/plans")[1]["plans"] if each["state"] == "waiting"]
        status, refused = self.view("POST", f"/api/v1/plans/{plan['id']}/approve", reason="please")
        assert (status, refused["type"]) == (403, "urn:instep:problem:forbidden")
        assert not self.cluster.get("Node", "node-b")["spec"].get("unschedulable")
        assert self.operate("POST", f"/api/v1/plans/{plan['id']}/approve", reason="GPU 0 is to be replaced")[0] == 200
        return plan["id"]

    def the_node_is_drained_within_its_budget(self, plan: int) -> None:
        until(lambda: self.view("GET", f"/api/v1/plans/{plan}")[1]["state"] == "done", "the drained node")
        node = self.cluster.get("Node", "node-b")
        assert node["spec"]["unschedulable"] is True
        assert [taint["key"] for taint in node["spec"]["taints"] if "instep" in taint["key"]] == ["instep.dev/faulty"]
        assert self.cluster.pods_on("node-b") == ["instep/agent-node-b"]
        evictions = [call for call in self.cluster.calls() if call.subresource == "eviction"]
        assert len([call for call in evictions if call.code < 300]) == 2, "each pod once"

    def the_audit_says_who_and_why(self, plan: int) -> None:
        rows = self.view("GET", "/api/v1/audit")[1]["audit"]
        (approval,) = [row for row in rows if row["action"] == "approve"]
        assert (approval["actor"], approval["subject"]) == ("operate", f"plan {plan}")
        assert approval["reason"] == "[DRILL] GPU 0 is to be replaced"
        assert all(row["actor"] != "view" for row in rows)

    def the_repaired_node_ends_the_alert(self, incident: str) -> None:
        assert self.view("POST", "/api/v1/nodes/node-b/repaired", reason="no")[0] == 403
        assert self.operate("POST", "/api/v1/nodes/node-b/repaired", reason="GPU 0 was replaced")[0] == 200
        until(lambda: not self.cluster.get("Node", "node-b")["spec"].get("unschedulable"), "the node's return")
        until(lambda: shown_alerts(self.alertmanager) == [], "the end of the alert")
        found = self.view("GET", f"/api/v1/incidents/{incident}")[1]
        assert (found["state"], "GPU 0 was replaced" in found["resolution"]) == ("resolved", True)
        node = self.cluster.get("Node", "node-b")
        assert not [taint for taint in node["spec"].get("taints", []) if "instep" in taint["key"]]
        self.people.hear("drills", "resolved")
        until(lambda: self.people.states_at("webhook")[1:], "the webhook's second message")
        assert self.people.states_at("webhook") == ["open", "resolved"]
        step = self.job()["step"]
        until(lambda: self.job()["step"] > step, "a job that goes on")
