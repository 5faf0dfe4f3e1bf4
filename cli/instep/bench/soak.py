"""`instep bench soak`: healthy jobs pause as jobs do, and parts of Instep go away; how many false alarms are raised?"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from instep.bench.disturbances import (
    NODES,
    OUTAGE_SECONDS,
    RANKS_PER_NODE,
    Disturbance,
    End,
    Job,
    Outage,
    calm_seconds,
    draw_jobs,
)
from instep.bench.false_alarms import Row, Said, Watcher, attribute, table
from instep.bench.losses import LossTail, Made
from instep.local.cluster import ClusterError, LocalCluster, wait_until
from instep.local.ports import free_port
from instep.local.processes import Started, tail

FIRST_STEP_SECONDS_MAX = 90.0
PAUSE_SECONDS_MAX = 60.0
END_SECONDS_MAX = 240.0
LEAD_STEPS = 25
"""A pause is asked for so many steps ahead, so that every rank reads of it before it is due."""
UNKNOWN_SECONDS = 3.0
"""A rank is unknown when its last report is older: `report_age_seconds_max` of the hang detector."""
HEARD_AGAIN_SECONDS_MAX = 15.0


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 no alarm, no restart, and every job finished; 1 not; 3 could not measure."""
    parser = argparse.ArgumentParser(prog="instep bench soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="length of the whole (default 10, at least about 8)"
    )
    parser.add_argument("--seed", type=int, default=1, help="order, ranks and nodes of the disturbances (default 1)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write rows and incidents there")
    parsed = parser.parse_args(list(arguments))
    began_at = time.monotonic()
    jobs = draw_jobs(parsed.seed)
    try:
        rows, said, left = soak(jobs, calm_seconds(jobs, 60.0 * parsed.minutes))
    except ClusterError as error:
        print(f"instep bench soak: {error}", file=sys.stderr)
        return 3
    if parsed.json is not None:
        written = {"rows": [asdict(row) for row in rows], "said": [asdict(one) for one in said]}
        parsed.json.write_text(json.dumps(written, indent=2))
    wrong = report(rows, said, left)
    print(f"({time.monotonic() - began_at:.0f} s, seed {parsed.seed})")
    return 1 if wrong else 0


def soak(jobs: Sequence[Job], calm: float) -> tuple[list[Row], list[Said], list[int]]:
    """Run the jobs in turn; return the table's rows, everything that was said, and the pids that were left over."""
    rows: list[Row] = []
    with LocalCluster(NODES) as cluster:
        watcher = Watcher(lambda: cluster.client)
        for job in jobs:
            rows += Soaked(cluster, watcher, job, calm).run()
        left = cluster.close()
    said = sorted(watcher.said.values(), key=lambda one: one.at)
    attribute(rows, said, watcher.attempts)
    return rows, said, left


class Soaked:
    """One job, from its start to its end."""

    def __init__(self, cluster: LocalCluster, watcher: Watcher, job: Job, calm: float) -> None:
        self._cluster, self._watcher, self._job, self._calm = cluster, watcher, job, calm
        self._out = cluster.folder / job.run
        self._losses = LossTail(self._out / "losses.jsonl")
        self._rows: list[Row] = []
        self._attempt = 0

    def run(self) -> list[Row]:
        """Return a row for the start, one for each disturbance, one for the end."""
        self._begin(self._job.start)
        supervisors = self._start()
        if not self._wait(lambda: self._losses.step >= 1, FIRST_STEP_SECONDS_MAX):
            raise ClusterError(f"{self._job.title} made no step:\n{tail(supervisors[0].log)}")
        if self._job.end is not End.STEPS:
            self._rest()
            for disturbance in self._job.disturbances:
                self._begin(disturbance.name)
                self._disturb(disturbance)
                self._rest()
            self._begin(self._job.end.value)
        self._end(supervisors)
        return self._rows

    # The table --------------------------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        self._close_row()
        self._rows.append(Row(self._job.title, self._job.run, name, time.time()))
        print(f"{time.strftime('%H:%M:%S')}  {self._job.title}: {name}", file=sys.stderr, flush=True)

    def _close_row(self) -> None:
        if self._rows:
            row = self._rows[-1]
            row.seconds = time.time() - row.began_at
            self._losses.read()
            row.longest_pause_seconds = longest_pause_seconds(self._losses.made, row.began_at)
            newest = max(0, self._losses.attempt)
            row.restarts, self._attempt = newest - self._attempt, newest

    # The job ----------------------------------------------------------------------------------------------------------

    def _start(self) -> list[Started]:
        endpoint = f"127.0.0.1:{free_port()}"
        options = ["--max-restarts", "3", "--job", self._job.run, "--log-dir", str(self._cluster.logs / self._job.run)]
        return [
            self._cluster.start_supervisor(
                node,
                endpoint,
                self._job.run,
                nnodes=str(len(NODES)),
                per_node=RANKS_PER_NODE,
                options=[*options, "--node-rank", str(place)],
                script=[*self._job.script, "--out", str(self._out)],
            )
            for place, node in enumerate(NODES)
        ]

    def _disturb(self, disturbance: Disturbance) -> None:
        row = self._rows[-1]
        if disturbance.pause is not None:
            due = self._ask(disturbance.pause) + disturbance.pause.get("steps", 0)
            if not self._wait(lambda: self._losses.step > due, disturbance.seconds + PAUSE_SECONDS_MAX):
                row.wrong.append("the job did not go on")
        elif disturbance.outage in (Outage.SERVER_STOPPED, Outage.SERVER_KILLED):
            self._server_away(is_killed=disturbance.outage is Outage.SERVER_KILLED)
        else:
            self._agent_away(row, disturbance.node, is_killed=disturbance.outage is Outage.AGENT_KILLED)

    def _ask(self, pause: dict[str, Any]) -> int:
        """Ask the script for a pause; return the step after which it is due."""
        self._losses.read()
        due = self._losses.step + LEAD_STEPS
        with (self._out / "pauses.jsonl").open("a") as file:
            file.write(json.dumps(pause | {"step": due}) + "\n")
        return due

    def _server_away(self, *, is_killed: bool) -> None:
        port = int(self._cluster.url.rpartition(":")[2])
        self._cluster.processes.signal("server", signal.SIGKILL if is_killed else signal.SIGSTOP)
        self._wait(lambda: False, OUTAGE_SECONDS, is_server_there=False)
        if is_killed:
            self._cluster.start_server(port)
        else:
            self._cluster.processes.signal("server", signal.SIGCONT)

    def _agent_away(self, row: Row, node: str, *, is_killed: bool) -> None:
        name = f"agent-{node}"
        self._cluster.processes.signal(name, signal.SIGKILL if is_killed else signal.SIGSTOP)
        self._wait(lambda: False, OUTAGE_SECONDS)
        unknown = self._watcher.unknown_ranks(self._job.run, node, UNKNOWN_SECONDS)
        row.note = f"{len(unknown)} of {RANKS_PER_NODE} ranks unknown"
        if len(unknown) != RANKS_PER_NODE:
            row.wrong.append("a rank that nobody reports is not unknown")
        if is_killed:
            self._cluster.start_agent(node)
        else:
            self._cluster.processes.signal(name, signal.SIGCONT)
        if not self._wait(
            lambda: not self._watcher.unknown_ranks(self._job.run, node, UNKNOWN_SECONDS), HEARD_AGAIN_SECONDS_MAX
        ):
            row.wrong.append("its ranks were not heard of again")

    def _end(self, supervisors: Sequence[Started]) -> None:
        """Wait until the job has ended, and a little longer: an alarm at the end would be one too."""
        if self._job.end is End.ASKED:
            self._ask({"kind": "finish"})
        elif self._job.end is End.STOPPED:
            for started in supervisors:
                started.process.terminate()
        codes = [started.process.poll for started in supervisors]
        self._wait(lambda: all(code() is not None for code in codes), END_SECONDS_MAX)
        self._rest()
        self._close_row()
        for started in supervisors:
            code = started.process.poll()
            if code is None or (code != 0 and self._job.end is not End.STOPPED):
                self._rows[-1].wrong.append(f"{started.name} ended with {code}" if code else f"{started.name} goes on")
                print(tail(started.log), file=sys.stderr)
        self._cluster.processes.end(*(started.name for started in supervisors))

    def _rest(self) -> None:
        self._wait(lambda: False, self._calm)

    def _wait(self, seen: Callable[[], bool], seconds_max: float, *, is_server_there: bool = True) -> bool:
        def look() -> bool:
            self._losses.read()
            if is_server_there:
                self._watcher.look(self._job.run)
            return seen()

        return wait_until(look, seconds_max, every_seconds=0.2)


def longest_pause_seconds(made: Sequence[Made], since: float) -> float:
    """Return the longest time between two steps of which the later one was seen after `since`; 0 when there is
    none."""
    return max((after.at - before.at for before, after in pairwise(made) if after.at >= since), default=0.0)


def report(rows: Sequence[Row], said: Sequence[Said], left: Sequence[int]) -> list[str]:
    """Print the table and everything that was said; return what is wrong."""
    print(f"\n{table(rows)}\n")
    for one in said:
        title = "ALARM" if one.is_alarm else f"suspect ({one.incident['state']})"
        print(
            f"  {title}: {one.incident['kind']} in {one.incident['run'] or one.incident['labels']}: "
            f"{one.incident['summary']} {one.incident['resolution']}"
        )
        print("".join(f"      {item['text']}\n" for item in one.incident["evidence"]), end="")
    alarms, restarts = sum(row.alarms for row in rows), sum(row.restarts for row in rows)
    wrong = [f"{row.job}, {row.disturbance}: {sentence}" for row in rows for sentence in row.wrong]
    wrong += [f"process {pid} was left over" for pid in left]
    wrong += [f"{alarms} false alarms"] * bool(alarms) + [f"{restarts} restarts"] * bool(restarts)
    print(
        f"\nfalse alarms: {alarms}; restarts: {restarts}; suspects that were shown and withdrawn: "
        f"{sum(row.suspects for row in rows)}"
    )
    for sentence in wrong:
        print(f"  WRONG: {sentence}")
    return wrong
