"""A real cluster on this machine under a real Prometheus: server, agents, a training of two ranks, faults as drills."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from instep.local.cluster import LocalCluster
from instep.local.ports import free_port
from instep.local.processes import Processes, Started, tail

from tests.agent.nvml.nvml_scenario import Scenario

NODES = ("node-a", "node-b", "node-c", "node-d")
"""The job runs on the first two; the third falls silent; the fourth has GPUs, where their stand-in can be built."""
GPUS = {"node-a": ("0000:1b:00",), "node-b": ("0000:43:00",)}
JOB, RUN = "gpt", "run-1"
WAIT_SECONDS_MAX = 120.0


class MoreOptions(Processes):
    """Gives some processes more options and variables than the demo does, by their name."""

    def __init__(self, *arguments: Any, more: dict[str, list[str]], variables: dict[str, dict[str, str]]) -> None:
        super().__init__(*arguments)
        self._more, self._variables = more, variables

    def start(self, name: str, *arguments: str, output: int | None = None, **variables: str) -> Started:
        variables |= self._variables.get(name, {})
        return super().start(name, *arguments, *self._more.get(name, ()), output=output, **variables)


class Watched:
    """The cluster, and a Prometheus that scrapes it every second."""

    def __init__(
        self, cluster: LocalCluster, agents: dict[str, int], prometheus: str, scenario: Scenario | None
    ) -> None:
        self.cluster, self.agents, self.scenario = cluster, agents, scenario
        self.began_at = time.time()
        self.port = free_port()
        self.log = cluster.logs / "prometheus.log"
        folder = cluster.folder / "prometheus"
        folder.mkdir()
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config()))
        listening = [f"--web.listen-address=127.0.0.1:{self.port}", f"--storage.tsdb.path={folder / 'data'}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [prometheus, f"--config.file={config}", *listening], stdout=subprocess.DEVNULL, stderr=log
            )

    def _config(self) -> dict[str, Any]:
        """The scrape configuration of docs/guide/dashboards.md."""
        server = self.cluster.url.removeprefix("http://")
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {
                    "job_name": "instep-server",
                    "honor_labels": True,
                    "authorization": {"credentials_file": str(self.cluster.token_file)},
                    "static_configs": [{"targets": [server]}],
                },
                {
                    "job_name": "instep-agents",
                    "honor_labels": True,
                    "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in self.agents.values()]}],
                },
            ],
        }

    def series(self, expression: str) -> list[dict[str, str]]:
        """The labels of every series that the expression had a number for, from the beginning until now."""
        query = {"query": expression, "start": f"{self.began_at}", "end": f"{time.time()}", "step": "1s"}
        answer = self._get(f"/api/v1/query_range?{urllib.parse.urlencode(query)}")
        found = answer["data"]["result"]
        return [one["metric"] for one in found if any(math.isfinite(float(value)) for _, value in one["values"])]

    def has(self, expression: str) -> bool:
        """Whether the expression has had a number; no while Prometheus is not there yet."""
        try:
            return bool(self.series(expression))
        except OSError:
            return False

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + WAIT_SECONDS_MAX
        while not is_so():
            assert time.monotonic() < until, f"Not seen: {what}.\n{tail(self.log)}\n{self._said()}"
            assert self.process.poll() is None, f"Prometheus ended.\n{tail(self.log)}"
            time.sleep(0.2)

    def page(self, url: str) -> str:
        """A /metrics page."""
        token = self.cluster.token_file.read_text().strip()
        asked = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return str(answer.read().decode())

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def _said(self) -> str:
        return "\n".join(f"{path.name}:\n{tail(path)}" for path in sorted(self.cluster.logs.glob("*.log")))

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def play(watched: Watched) -> None:
    """Train, lose an agent, break a GPU and a rank as drills, and train on."""
    cluster = watched.cluster
    watched.wait("three nodes", lambda: len(cluster.client.get("/api/v1/nodes")["nodes"]) == len(NODES))
    cluster.processes.signal("agent-node-c", signal.SIGKILL)
    if watched.scenario is not None:
        watched.wait("GPUs", lambda: watched.has("instep_gpu_clock_reason"))
        watched.scenario.event(0, 79)
    endpoint = f"127.0.0.1:{free_port()}"
    script = ["-m", "instep_trainer.train", "--steps", "1000000", "--out", str(cluster.folder / "out"), "--width", "32"]
    for place, node in enumerate(("node-a", "node-b")):
        options = ["--max-restarts", "3", "--node-rank", str(place), "--job", JOB]
        cluster.start_supervisor(node, endpoint, RUN, nnodes="2", per_node=1, options=options, script=script)
    watched.wait("steps", lambda: watched.has(f'instep_job_step{{job="{JOB}"}} > 20'))
    cluster.inject("xid", "node-b", kernel_log=cluster.kernel_log("node-b"), pci=GPUS["node-b"][0], code=79)
    cluster.inject("kill", "node-b", run=RUN, rank=1)
    watched.wait("the incident", lambda: watched.has(f'instep_job_incidents_open{{job="{JOB}"}} > 0'))
    watched.wait("the next attempt", lambda: watched.has(f'instep_job_attempt{{job="{JOB}"}} > 0'))
    watched.wait(
        "a kept step", lambda: watched.has(f'instep_job_kept_step_first{{job="{JOB}"}} and instep_job_attempt > 0')
    )
    watched.wait("the silent node", lambda: watched.has('instep_node_silent_seconds{node="node-c"}'))
    if watched.scenario is not None:
        watched.wait("an Xid", lambda: watched.has('instep_gpu_events_total{type="xid"}'))
        watched.wait("memory health", lambda: watched.has("instep_gpu_row_remap_is_pending"))
    watched.wait("an alert", lambda: watched.has('instep_alerts_sent_total{outcome="delivered"}'))
    watched.wait("a message", lambda: watched.has('instep_webhook_deliveries_total{outcome="delivered"}'))


@contextmanager
def receiver() -> Iterator[str]:
    """Takes the server's messages and alerts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing to log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def watched_cluster(prometheus: str, nvml: Path | None) -> Iterator[Watched]:
    """The cluster after its story, with everything that Prometheus kept of it; `nvml` holds the driver's stand-in."""
    agents = {node: free_port() for node in NODES}
    with receiver() as webhook:
        cluster = LocalCluster(NODES, gpus=GPUS)
        more = {f"agent-{node}": ["--listen", f"127.0.0.1:{port}"] for node, port in agents.items()}
        more["server"] = ["--webhook", webhook, "--alertmanager", webhook.rstrip("/")]
        scenario, variables = None, {}
        if nvml is not None:
            scenario = Scenario(cluster.folder / "gpus.txt")
            scenario.healthy(2)
            variables["agent-node-d"] = {"LD_LIBRARY_PATH": str(nvml), "INSTEP_NVML_SCENARIO": str(scenario.path)}
        shared = {"INSTEP_RECORD_ROOT": str(cluster.records), "PYTHONUNBUFFERED": "1"}
        cluster.processes = MoreOptions(cluster.mark, cluster.logs, shared, more=more, variables=variables)
        with cluster:
            watched = Watched(cluster, agents, prometheus, scenario)
            try:
                play(watched)
                yield watched
            finally:
                watched.close()
