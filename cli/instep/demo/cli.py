"""`instep demo`: a training job on this machine gets a slow, a frozen and a killed rank; Instep names each, and the job
goes on."""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from instep.demo.acts import NODES, PCI, STEPS, Act, Fault, draw_acts
from instep.demo.play import Play, Stage, settled_incidents, steps_lost
from instep.demo.score import Played, Score, score
from instep.demo.view import View, headline, table, verdicts
from instep.local.cluster import ClusterError, LocalCluster
from instep.local.processes import MARK


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 every verdict right and all losses equal, 1 something was wrong, 2 used wrongly, 3 could not
    start, 130 interrupted."""
    parsed = build_parser().parse_args(list(arguments))
    if parsed.data is not None and not any(parsed.data.rglob("*") if parsed.data.is_dir() else []):
        print(f"instep demo: --data {parsed.data} is missing or empty: give a folder of text files.", file=sys.stderr)
        return 2
    seed = parsed.seed if parsed.seed is not None else random.SystemRandom().randrange(10_000)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _demo(seed, parsed)
    except ClusterError as error:
        print(f"instep demo: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\ninstep demo: interrupted; everything it started is gone.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="instep demo",
        description="Three simulated nodes, a 4-rank job on real text, and three faults: "
        "a slow rank, a frozen rank, and a rank killed while its GPU falls off the bus.",
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="which ranks and steps the faults hit (default: drawn, and printed)"
    )
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of text files to train on (default: Python's own sources)"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the scored table there as JSON")
    return parser


def _demo(seed: int, parsed: argparse.Namespace) -> int:
    acts = draw_acts(seed)
    began_at = time.monotonic()
    gpus = {node: [PCI[node, minor] for minor in (0, 1)] for node in NODES}
    cluster = LocalCluster(NODES, gpus=gpus)
    try:
        with cluster:
            print(f"Instep demo, {headline(seed, acts)}", flush=True)
            print(f"status page: {cluster.page_link}", flush=True)
            scored, incidents = _play(cluster, seed, parsed.data, acts)
    finally:
        left = cluster.processes.left_over()
        cluster.processes.kill_left_over()
    print(f"\n{verdicts(incidents)}\n\n{table(scored)}\n")
    for sentence in [*scored.wrong, *(f"process {pid} was left over" for pid in left)]:
        print(f"  WRONG: {sentence}")
    is_right = scored.is_right and not left
    equal = "" if scored.wrong else f" All {STEPS} losses equal the undisturbed run's bit for bit."
    print(
        f"{'Every culprit was named, nobody innocent was accused.' if is_right else 'Not as it must be.'}{equal} "
        f"({time.monotonic() - began_at:.0f} s, seed {seed})"
    )
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(_as_json(seed, scored, incidents), indent=2))
    return 0 if is_right else 1


def _play(cluster: LocalCluster, seed: int, data: Path | None, acts: list[Act]) -> tuple[Score, list[dict[str, Any]]]:
    view = View(cluster.client, cluster.page_link)
    calm = Play(cluster, run="undisturbed", title="undisturbed", seed=seed, data=data, acts=[], look=view.look).run()
    view.done()
    stormy = Play(cluster, run="disturbed", title="with faults", seed=seed, data=data, acts=acts, look=view.look).run()
    view.look(stormy)
    view.done()
    incidents = settled_incidents(cluster, "disturbed", len(acts))
    job = cluster.client.get("/api/v1/jobs/disturbed")
    openings = job.get("attempts", [])
    nodes_after = [member["node"] for member in (openings[-1]["members"] if openings else []) if member["ranks"]]
    for stage in (calm, stormy):
        if not stage.is_finished:
            print(f"\n  run {stage.run} did not finish:\n{stage.messages[-1]}", file=sys.stderr)
    played = Played(
        acts=acts,
        incidents=incidents,
        undisturbed_incidents=cluster.client.incidents("undisturbed"),
        losses=stormy.losses,
        undisturbed_losses=calm.losses,
        steps=STEPS,
        lost=_lost_by_act(stormy, openings),
        nodes_after=nodes_after,
        is_finished=calm.is_finished and stormy.is_finished,
    )
    return score(played), incidents


def _lost_by_act(stage: Stage, openings: list[dict[str, Any]]) -> dict[Fault, int]:
    """The first restart belongs to the frozen rank, the second to the killed one."""
    lost = steps_lost(stage, openings)
    return {fault: lost[attempt] for attempt, fault in ((1, Fault.FROZEN), (2, Fault.KILLED)) if attempt in lost} | {
        Fault.SLOW: 0
    }


def _as_json(seed: int, scored: Score, incidents: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [
        {
            "act": row.act.title,
            "fault": row.act.fault.value,
            "rank": row.act.rank,
            "node": row.act.node,
            "step": row.act.step,
            "onset_to_alarm_seconds": row.onset_to_alarm_seconds,
            "alarm_to_verdict_seconds": row.alarm_to_verdict_seconds,
            "verdict_to_kept_seconds": row.verdict_to_kept_seconds,
            "steps_lost": row.steps_lost,
            "wrong": list(row.wrong),
            "incident": row.incident,
        }
        for row in scored.rows
    ]
    return {
        "seed": seed,
        "is_right": scored.is_right,
        "rows": rows,
        "wrong": list(scored.wrong),
        "incidents": incidents,
    }


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


__all__ = ["MARK", "main"]
