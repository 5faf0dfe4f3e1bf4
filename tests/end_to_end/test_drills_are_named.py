"""A drill is called one on every surface: raw fact, incident, alert, message, plan, audit line, page and API.

`instep inject` over a real agent process and a real server; whoever is told of alerts listens for real. The driver is
the NVML stand-in. Without an injection nothing says so anywhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from instep.local.cluster import LocalCluster, wait_until
from nvml_scenario import Scenario, pci
from sysfs_trees import Tree

from tests.remediation.alerts.people import People

pytestmark = pytest.mark.real
NODE, WAIT_SECONDS = "n1", 60.0
FAULTS = {
    "thermal": ("--gpu", 1),
    "remap-pending": ("--gpu", 1),
    "ecc-corrected": ("--gpu", 1),
    "link-down": ("--device", "mlx5_0"),
    "driver-hang": (),
}
"""Each lasts, and opens no incident by itself: it shows where its node does."""
KINDS = {"link-down": "link_down", "driver-hang": "source_stuck"}
"""The fact that comes of it, besides the one that it has begun."""


def until(seen, what):
    assert wait_until(seen, WAIT_SECONDS), f"{what} was not seen within {WAIT_SECONDS:.0f} s"


class Place:
    """One server, one node with two GPUs and an RDMA port, and people who are told."""

    def __init__(self, folder, library) -> None:
        self.people = People()
        config = folder / "server.toml"
        address = f"http://{self.people.address}"
        config.write_text(f'alertmanager = ["{address}"]\nwebhook = "{address}/webhook"\n')
        self.local = LocalCluster((), server_options=("--config", str(config)))
        self.local.__enter__()
        self.root, self.drills, self._scenario = folder / "root", folder / "drills", Scenario(folder / "scenario.txt")
        self._scenario.healthy(2)
        (self.root / "dev").mkdir(parents=True)
        (self.root / "dev/kmsg").touch()
        Tree(self.root).hca()
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(library),
            "INSTEP_NVML_SCENARIO": str(self._scenario.path),
        }
        options = ["--node", NODE, "--server", self.local.url, "--token-file", self.local.token_file]
        options += ["--root", self.root, "--proc", "/proc", "--drills", self.drills, "--interval", 0.2]
        command = [sys.executable, "-m", "instep", "agent", *map(str, options)]
        self._agent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def wait_for_node(self) -> None:
        until(lambda: self.get("/api/v1/nodes")["nodes"], "the node")

    def close(self) -> None:
        self._agent.send_signal(signal.SIGTERM)
        self._agent.wait(20)
        self.local.close()
        self.people.close()

    def text(self, path: str) -> str:
        headers = {"Authorization": f"Bearer {self.local.token_file.read_text().strip()}"}
        request = urllib.request.Request(self.local.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read().decode()

    def get(self, path: str) -> dict:
        return json.loads(self.text(path))

    def node(self) -> dict:
        return self.get(f"/api/v1/nodes/{NODE}")

    def repaired(self) -> None:
        headers = {"Authorization": f"Bearer {self.local.token_file.read_text().strip()}"}
        body = json.dumps({"reason": "the drill is over"}).encode()
        address = f"{self.local.url}/api/v1/nodes/{NODE}/repaired"
        request = urllib.request.Request(address, body, headers | {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200

    def told(self, path: str) -> list:
        return [body for heard, body in self.people.told if heard == path]

    def inject(self, fault: str, *options: object) -> subprocess.Popen:
        words = ["--node", NODE, "--drills", self.drills, "--kernel-log", self.root / "dev/kmsg", *options]
        command = [sys.executable, "-m", "instep", "inject", fault, *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with process.stdout as said:
            assert said.readline(), "the command failed"
        return process


@pytest.fixture(scope="module")
def place(tmp_path_factory, nvml_library):
    place = Place(tmp_path_factory.mktemp("place"), nvml_library)
    try:
        place.wait_for_node()
        yield place
    finally:
        place.close()


def test_without_an_injection_nothing_says_that_it_is_a_drill(place):
    assert place.get("/api/v1/incidents")["incidents"] == []
    node = place.node()
    assert node["drills"] == [] and not any(fact["is_drill"] for fact in node["facts"])
    assert "DRILL" not in place.text("/") + place.text(f"/nodes/{NODE}")
    assert place.people.told == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_drill_that_lasts_shows_on_its_node_until_it_has_ended(place, fault):
    drill = place.inject(fault, *FAULTS[fault])
    until(lambda: [lasting["fault"] for lasting in place.node()["drills"]] == [fault], "the drill")
    kinds = {"drill_began", KINDS.get(fault, "drill_began")}
    until(lambda: kinds <= {fact["kind"] for fact in place.node()["facts"]}, f"{kinds}")
    assert all(fact["is_drill"] for fact in place.node()["facts"] if fact["kind"] in kinds)
    words = fault.replace("-", " ")
    assert f"DRILL: {words}" in place.text("/") and f"DRILL: {words}" in place.text(f"/nodes/{NODE}")
    assert place.get("/api/v1/incidents")["incidents"] == [], "it is no fault that keeps a GPU from work"
    drill.terminate()
    assert drill.wait(20) == 0
    until(lambda: place.node()["drills"] == [], "the end of the drill")
    assert f"DRILL: {words}" not in place.text("/")


READINGS = {"remap-failed": "Row remap failure", "ecc-uncorrected": "Uncorrected ECC error"}


def incidents_open(place) -> list[dict]:
    return [one for one in place.get("/api/v1/incidents")["incidents"] if one["state"] == "open"]


@pytest.mark.parametrize("fault", READINGS)
def test_the_drill_of_a_reading_that_puts_a_gpu_out_of_use_opens_the_incident_of_a_drill(place, fault):
    drill = place.inject(fault, "--gpu", 0)
    until(lambda: incidents_open(place), "the incident")
    (incident,) = incidents_open(place)
    assert (incident["is_drill"], incident["labels"]["drill"], incident["kind"]) == (True, "true", "gpu-fault")
    assert incident["summary"].startswith(f"{READINGS[fault]} on {NODE} GPU 0 (a drill): ")
    drill.terminate()
    assert drill.wait(20) == 0
    place.repaired()
    until(lambda: incidents_open(place) == [], "its end")
    place.people.told.clear()


def test_the_drill_of_a_lost_gpu_is_called_one_from_its_line_to_whoever_is_told(place):
    assert place.inject("xid", "--pci", pci(1), "--code", 79).wait(20) == 0
    until(lambda: incidents_open(place), "the incident")
    (incident,) = incidents_open(place)
    assert (incident["is_drill"], incident["labels"]["drill"], incident["kind"]) == (True, "true", "gpu-fault")
    line = next(fact for fact in place.node()["facts"] if fact["kind"] == "kernel_line")
    assert line["is_drill"] and "79" in line["text"]
    (plan,) = [one for one in place.get("/api/v1/plans")["plans"] if one["incident"] == incident["id"]]
    assert plan["is_drill"] and "[DRILL]" in plan["text"]
    assert all(a["arguments"]["reason"].startswith("[DRILL] ") for a in plan["actions"] if a["name"] == "drain_node")
    audit = [line for line in place.get("/api/v1/audit")["audit"] if line["subject"] == f"plan {plan['id']}"]
    assert audit and all("[DRILL]" in line["reason"] for line in audit)
    for path in ("/", f"/incidents/{incident['id']}", f"/nodes/{NODE}", f"/plans/{plan['id']}"):
        assert '<span class="pill drill">DRILL</span>' in place.text(path), path
    until(lambda: place.told("api/v2/alerts") and place.told("webhook"), "the alert and the message")
    alert = place.told("api/v2/alerts")[0][0]
    assert alert["labels"]["drill"] == "true" and alert["annotations"]["summary"].startswith("[DRILL] ")
    message = place.told("webhook")[0]
    assert message["is_drill"] and message["what"].startswith("[DRILL] ")
