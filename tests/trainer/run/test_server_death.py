"""The server killed with -9 in the middle of a run: the job trains on, and the supervisors do what must be done."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from instep.local.cluster import LocalCluster
from instep.local.ports import free_port

from tests.trainer.run.supervisors import FAST, WAITS, rank_pid, wait_for

pytestmark = pytest.mark.real
NODES = {"node-a": (0, 1), "node-b": (2, 3)}
RUN = "job-1"


class Job:
    """A training under a server, two agents and two supervisors."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster, self.out = cluster, cluster.folder / "out"
        endpoint = f"127.0.0.1:{free_port()}"
        for place, node in enumerate(NODES):
            options = [
                "--max-restarts",
                "9",
                "--node-rank",
                str(place),
                "--job",
                "job",
                "--server-silence-seconds",
                "2",
            ]
            script = ["-m", "instep_trainer.train", "--steps", "1000000", "--out", str(self.out), "--width", "32"]
            script += ["--checkpoint-every-disk", "0"]
            cluster.start_supervisor(node, endpoint, RUN, nnodes="2", per_node=2, options=options, script=script)
        self.log = cluster.logs / f"run-{RUN}-node-a.log"

    @property
    def said(self) -> str:
        return "".join((self.cluster.logs / f"run-{RUN}-{node}.log").read_text() for node in NODES)

    def goes_on(self, attempt: int, *, steps: int = 15) -> None:
        """Wait until the attempt has made more steps than it has now."""
        path = self.out / "losses.jsonl"

        def made() -> int:
            return len(re.findall(rf'"attempt":{attempt}}}', path.read_text())) if path.exists() else 0

        wanted = made() + steps
        wait_for(lambda: made() >= wanted, f"{steps} more steps of attempt {attempt}", self.log)

    def signal(self, attempt: int, rank: int, number: signal.Signals) -> None:
        node = next(node for node, ranks in NODES.items() if rank in ranks)
        os.kill(rank_pid(self.cluster.records, node, RUN, attempt, rank), number)

    def known(self) -> list[tuple[int, str, tuple[int, ...], str]]:
        """What the server knows of: (attempt, kind, blamed ranks, id) of every incident."""
        try:
            found = self.cluster.client.incidents(RUN)
        except OSError:
            return []
        return sorted((one["attempt"], one["kind"], blamed(one), one["id"]) for one in found)


def blamed(incident: dict[str, Any]) -> tuple[int, ...]:
    verdict = incident.get("verdict") or {}
    return tuple(suspect["rank"] for suspect in verdict.get("suspects", []))


@pytest.fixture(scope="module")
def story() -> Iterator[dict[str, Any]]:
    """Played once: two faults before and two while the server is away, one after it has come back."""
    with LocalCluster([*NODES]) as cluster:
        port = int(cluster.url.rpartition(":")[2])
        job = Job(cluster)
        job.goes_on(0)
        job.signal(0, 1, signal.SIGKILL)
        job.goes_on(1)
        wait_for(lambda: bool(job.known()), "the first incident", job.log)
        told: dict[str, Any] = {"before": job.known()}

        cluster.processes.signal("server", signal.SIGKILL)
        job.goes_on(1)
        job.signal(1, 2, signal.SIGKILL)
        job.goes_on(2)
        told["after the crash"] = job.said
        job.signal(2, 3, signal.SIGSTOP)
        job.goes_on(3)
        told["after the hang"] = job.said

        cluster.start_server(port)
        job.goes_on(3)
        wait_for(lambda: len(job.known()) >= 3, "the incidents of the silent time", job.log)
        job.signal(3, 0, signal.SIGKILL)
        job.goes_on(4)
        wait_for(lambda: any(one[0] == 3 for one in job.known()), "the last incident", job.log)
        told["after"], told["said"] = job.known(), job.said
        told["incidents"] = cluster.client.incidents(RUN)
        told["second run"] = second_run(cluster)
        told["nodes"] = cluster.client.get("/api/v1/nodes")["nodes"]
        yield told
    assert cluster.processes.left_over() == []


def second_run(cluster: LocalCluster) -> tuple[int, str]:
    """Another run under the same job name, on another node."""
    options = ["--job", "job", *FAST]
    script = [str(WAITS), str(cluster.folder)]
    started = cluster.start_supervisor(
        "node-c", f"127.0.0.1:{free_port()}", "job-2", nnodes="1", per_node=1, options=options, script=script
    )
    return started.process.wait(timeout=30), started.log.read_text()


def test_a_crash_is_restarted_by_the_supervisors_while_the_server_is_away(story) -> None:
    said = story["after the crash"]
    assert "rank 2 on node-b ended with -9" in said
    assert said.count("deciding without the server: restart (rank 2 on node-b ended with signal 9)") == 1
    assert "attempt 2 opens" in said


def test_a_hang_is_named_and_restarted_by_the_supervisors_while_the_server_is_away(story) -> None:
    decisions = re.findall(r"deciding without the server: restart \((.*)\)", story["after the hang"])
    assert len(decisions) == 2
    assert decisions[1].startswith("Rank 3 on node-b")
    assert "attempt 4" not in story["after the hang"]


def test_no_incident_is_lost_or_doubled(story) -> None:
    assert story["after"][0] == story["before"][0]
    assert [(attempt, kind, ranks) for attempt, kind, ranks, _ in story["after"]] == [
        (0, "crash", (1,)),
        (1, "crash", (2,)),
        (2, "hang", (3,)),
        (3, "crash", (0,)),
    ]


def test_the_server_that_came_back_orders_the_next_restart(story) -> None:
    assert re.search(r"order \d+ from the server: restart attempt 3", story["said"])
    assert story["said"].count("deciding without the server") == 2
    assert story["said"].count("attempt 4 opens") == 1


def test_another_run_under_the_same_job_name_is_refused_by_the_server(story) -> None:
    code, said = story["second run"]
    assert code == 3
    assert said.splitlines()[-1].startswith(f"instep run: Job 'job' is held by run '{RUN}'")
    assert "attempt 0 opens" not in said
