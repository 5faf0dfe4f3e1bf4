"""`instep bench hang`: ranks are stopped, hold the GIL, sleep or spin in user code, or leave a collective out; is the
right one named?"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instep.bench.losses import LossTail
from instep.bench.statistics import quantile, spread
from instep.local.cluster import ClusterError, LocalCluster, wait_until
from instep.local.ports import free_port

NODES = ("node-a", "node-b")
RANKS_PER_NODE = 2
KINDS = ("stop", "gil", "user", "skip")
HEALTHY_STEPS = (15, 35)
"""Steps between a recovery and the next fault."""
NAMED_SECONDS_MAX = 20.0
ALARM_SECONDS_LIMIT = 5.0


@dataclass(frozen=True, slots=True)
class Run:
    """One injection and what came of it."""

    fault: str
    rank: int
    step: int
    alarm_seconds: float | None
    verdict_seconds: float | None
    """After the alarm."""
    kept_seconds: float | None
    """After the verdict."""
    blamed: list[int]
    cause: str
    summary: str
    missing: list[str]
    """What a verdict must hold and this one does not."""

    @property
    def is_right(self) -> bool:
        """Exactly the culprit."""
        return self.blamed == [self.rank]


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 every rank right and every alarm in time, 1 not, 3 could not measure."""
    parser = argparse.ArgumentParser(prog="instep bench hang", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="injections, in equal parts of each kind (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="order, ranks and steps (default 1)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every run there")
    parsed = parser.parse_args(list(arguments))
    try:
        runs = measure(parsed.runs, parsed.seed)
    except ClusterError as error:
        print(f"instep bench hang: {error}", file=sys.stderr)
        return 3
    if parsed.json is not None:
        parsed.json.write_text(json.dumps([asdict(run) for run in runs], indent=2))
    return report(runs)


def measure(count: int, seed: int) -> list[Run]:
    """Return every injection, in one job that is restarted in place after each."""
    drawn = random.Random(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    drawn.shuffle(kinds)
    runs = []
    with LocalCluster(NODES) as cluster:
        out = cluster.folder / "out"
        endpoint = f"127.0.0.1:{free_port()}"
        for place, node in enumerate(NODES):
            cluster.start_supervisor(
                node,
                endpoint,
                "bench",
                nnodes=str(len(NODES)),
                per_node=RANKS_PER_NODE,
                options=[
                    "--max-restarts",
                    str(count + 5),
                    "--node-rank",
                    str(place),
                    "--log-dir",
                    str(cluster.logs / "ranks"),
                ],
                script=[
                    "-m",
                    "instep_trainer.train",
                    "--steps",
                    "1000000",
                    "--out",
                    str(out),
                    "--checkpoint-every-disk",
                    "0",
                ],
            )
        losses = LossTail(out / "losses.jsonl")
        for number, kind in enumerate(kinds):
            runs.append(_one(cluster, losses, kind, attempt=number, drawn=drawn))
            print(line(number, runs[-1]), flush=True)
    return runs


def _one(cluster: LocalCluster, losses: LossTail, kind: str, *, attempt: int, drawn: random.Random) -> Run:
    rank = drawn.randrange(len(NODES) * RANKS_PER_NODE)
    node = NODES[rank // RANKS_PER_NODE]
    if not wait_until(lambda: losses.read() and losses.attempt == attempt, 60):
        raise ClusterError(f"attempt {attempt} made no step")
    step = losses.step + drawn.randint(*HEALTHY_STEPS)
    fault = drawn.choice(["sleep", "spin"]) if kind == "user" else kind
    if fault == "stop":
        wait_until(lambda: [*losses.read(), losses.step >= step][-1], 60, every_seconds=0.01)
        onset_at = cluster.inject("stop", node, run="bench", rank=rank)
    else:
        cluster.inject(fault, node, run="bench", rank=rank, from_step=step)
        wait_until(lambda: [*losses.read(), losses.step >= step][-1], 60, every_seconds=0.01)
        onset_at = time.time()
    incident = _incident(cluster, attempt)
    losses.read()
    return _judge(fault, rank, step, onset_at, incident)


def _incident(cluster: LocalCluster, attempt: int) -> dict[str, Any] | None:
    """The incident of this attempt, once its verdict is there and the job goes on."""
    found: list[dict[str, Any]] = []

    def is_named() -> bool:
        found[:] = [
            incident
            for incident in cluster.client.incidents("bench")
            if incident["attempt"] == attempt and incident["kind"] in ("hang", "mismatch", "crash")
        ]
        return bool(found) and found[0]["step_kept_at"] is not None

    wait_until(is_named, NAMED_SECONDS_MAX, every_seconds=0.1)
    return found[0] if found else None


def _judge(fault: str, rank: int, step: int, onset_at: float, incident: dict[str, Any] | None) -> Run:
    if incident is None:
        return Run(fault, rank, step, None, None, None, [], "", "no incident", ["incident"])
    verdict = incident["verdict"] or {}
    suspects = incident["suspects"]
    has_stack = any(item["source"] == "stack" and item["rank"] == rank for item in verdict.get("evidence", []))
    parts = {
        "group": verdict.get("group"),
        "seq": verdict.get("seq"),
        "waiting ranks": verdict.get("waiting_ranks"),
        "stack": has_stack,
    }
    return Run(
        fault,
        rank,
        step,
        _between(onset_at, incident["alarm_at"]),
        _between(incident["alarm_at"], incident["verdict_at"]),
        _between(incident["verdict_at"], incident["step_kept_at"]),
        sorted(suspect["rank"] for suspect in suspects),
        suspects[0]["cause"] if suspects else "unknown",
        incident["summary"],
        [name for name, value in parts.items() if not value],
    )


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def line(number: int, run: Run) -> str:
    """One run on one line."""
    sign = "right" if run.is_right else f"WRONG (blamed {run.blamed})"
    alarm = "no alarm" if run.alarm_seconds is None else f"alarm {run.alarm_seconds:.2f} s"
    missing = f"; missing: {', '.join(run.missing)}" if run.missing else ""
    head = f"{number + 1:3}  {run.fault:5} rank {run.rank} step {run.step:5}  {alarm}  {sign}  {run.cause}{missing}"
    return f"{head}\n       {run.summary}"


def report(runs: Sequence[Run]) -> int:
    """Print the summary; return the exit status."""
    right = sum(run.is_right for run in runs)
    alarms = [run.alarm_seconds for run in runs if run.alarm_seconds is not None]
    verdicts = [run.verdict_seconds for run in runs if run.verdict_seconds is not None]
    kept = [run.kept_seconds for run in runs if run.kept_seconds is not None]
    whole = sum(not run.missing for run in runs)
    print(
        f"\nright rank: {right} of {len(runs)}; "
        f"verdict with group, seq, waiting ranks and stack: {whole} of {len(runs)}"
    )
    print(
        f"onset → alarm, s: {spread(alarms)}"
        + (f", p99 {quantile(alarms, 0.99):.2f} (limit {ALARM_SECONDS_LIMIT:.0f})" if alarms else "")
    )
    print(f"alarm → verdict, s: {spread(verdicts)}\nverdict → next kept step, s: {spread(kept)}")
    is_in_time = len(alarms) == len(runs) and max(alarms) <= ALARM_SECONDS_LIMIT
    return 0 if right == len(runs) and whole == len(runs) and is_in_time else 1
