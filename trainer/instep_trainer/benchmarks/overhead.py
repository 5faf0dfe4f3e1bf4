"""`instep bench overhead`: what recording costs the training step: writes per step times their measured cost, and on
against off in turns."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from instep_agent.benchmarks.scratch import scratch_folder
from instep_agent.rank_record import Op, Phase, RankIdentity, RankRecordError, RankRecordWriter, RecordReader
from instep_agent.rank_record.decode import sequence_of
from instep_agent.rank_record.layout import Region

RANKS = 4
WARM_UP_STEPS = 20
SHARE_LIMIT = 0.005
RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Watched:
    """One run with records."""

    heartbeats_per_step: float
    collective_writes_per_step: float
    step_seconds: float


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 the recorded share is below 0.5 % of a step, 1 it is not, 3 a run failed."""
    parser = argparse.ArgumentParser(prog="instep bench overhead", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of runs, on and off (default 5)")
    parser.add_argument("--steps", type=int, default=200, help="steps per run (default 200)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parsed = parser.parse_args(list(arguments))
    update_ns = measure_update_ns()
    on: list[float] = []
    off: list[float] = []
    watched: list[Watched] = []
    for number in range(parsed.pairs):
        for observe in ("on", "off") if number % 2 == 0 else ("off", "on"):
            seconds, seen = _run(parsed.steps, observe)
            (on if observe == "on" else off).append(seconds)
            if seen is not None:
                watched.append(seen)
    return _report(update_ns, on, off, watched, as_json=parsed.json)


def measure_update_ns() -> dict[str, float]:
    """Median cost of one heartbeat, one write of a collective, and one step's row, in nanoseconds."""
    with scratch_folder("/dev/shm") as folder:
        identity = RankIdentity(job="bench", run="bench", attempt=0, rank=0, local_rank=0, world_size=1, node="bench")
        writer = RankRecordWriter.create(folder, identity)
        group = writer.declare_group(range(RANKS), "default_pg", 0)

        def collective(number: int) -> None:
            token = writer.enter(group, number, Op.all_reduce, 4096)
            writer.returned(token)
            writer.completed(token, 2)

        costs = {
            "heartbeat": _median_ns(lambda number: writer.heartbeat(number, 0, Phase.forward)),
            "collective_write": _median_ns(collective) / 3,
            "step": _median_ns(lambda number: writer.finish_step(number, 0.1)),
        }
        writer.close()
        return costs


def _median_ns(call: Callable[[int], object], repeats: int = 30, calls: int = 500) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        for number in range(1, calls + 1):
            call(number)
        taken.append((time.perf_counter_ns() - began) / calls)
    return statistics.median(taken)


def _run(steps: int, observe: str) -> tuple[float, Watched | None]:
    """Median step time by the trainer's own log of losses; with records, what was written per step too."""
    with scratch_folder("/dev/shm") as root, scratch_folder() as out:
        done = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "instep",
                "run",
                "--nproc-per-node",
                str(RANKS),
                "--rdzv-id",
                "bench",
                "--node-name",
                "bench",
                "--record-root",
                str(root),
                "--keep-records",
                "--observe",
                observe,
                "--log-dir",
                str(out / "ranks"),
                "-m",
                "instep_trainer.train",
                "--steps",
                str(steps),
                "--out",
                str(out),
                "--checkpoint-every-disk",
                "0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        made_at = _follow(out / "losses.jsonl", done)
        if done.returncode:
            print(
                f"instep bench overhead: a run with --observe {observe} ended with {done.returncode}.", file=sys.stderr
            )
            raise SystemExit(3)
        gaps = [
            after - before for before, after in zip(made_at[WARM_UP_STEPS:], made_at[WARM_UP_STEPS + 1 :], strict=False)
        ]
        step_seconds = sum(gaps) / len(gaps)
        return step_seconds, _writes(root / "bench" / "bench" / "0", steps, step_seconds) if observe == "on" else None


def _follow(losses: Path, process: subprocess.Popen[bytes]) -> list[float]:
    """Times at which steps were logged; polled, so single gaps are rough, their mean is not."""
    made: list[float] = []
    while process.poll() is None:
        time.sleep(0.02)
        count = losses.read_bytes().count(b"\n") if losses.exists() else 0
        now = time.monotonic()
        made += [now] * (count - len(made))
    return made


def _writes(folder: Path, steps: int, step_seconds: float) -> Watched:
    """Writes per step of the busiest rank, from the sequence numbers that the record itself keeps."""
    beats, writes = [], []
    for record in (entry for entry in folder.iterdir() if entry.name.isdigit()):
        try:
            with RecordReader(record) as reader:
                regions, raw = reader.header.regions, record.read_bytes()
        except RankRecordError:
            continue
        beats.append(_highest(raw, regions.heartbeat))
        writes.append(max(_highest(raw, regions.collective), _highest(raw, regions.live)))
    return Watched(max(beats) / steps, max(writes) / steps, step_seconds)


def _highest(raw: bytes, region: Region) -> int:
    return max(sequence_of(raw[region.at(slot) : region.at(slot) + region.slot_bytes]) for slot in range(region.slots))


def _report(
    update_ns: dict[str, float], on: list[float], off: list[float], watched: list[Watched], *, as_json: bool
) -> int:
    beats = statistics.median(seen.heartbeats_per_step for seen in watched)
    writes = statistics.median(seen.collective_writes_per_step for seen in watched)
    step = statistics.median(seen.step_seconds for seen in watched)
    recorded_seconds = (
        beats * update_ns["heartbeat"] + writes * update_ns["collective_write"] + update_ns["step"]
    ) * 1e-9
    share = recorded_seconds / step
    differences = [(with_ - without) / without for with_, without in zip(on, off, strict=True)]
    middle, low, high = _interval(differences)
    result = {
        "heartbeats_per_step": beats,
        "collective_writes_per_step": writes,
        **{f"{name}_ns": cost for name, cost in update_ns.items()},
        "step_milliseconds": step * 1e3,
        "recorded_share": share,
        "share_limit": SHARE_LIMIT,
        "on_off_difference": middle,
        "on_off_interval": [low, high],
        "pairs": len(differences),
    }
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print(
            f"per step: {beats:.1f} heartbeats of {update_ns['heartbeat']:.0f} ns, {writes:.1f} writes of collectives "
            f"of {update_ns['collective_write']:.0f} ns, one step row of {update_ns['step']:.0f} ns "
            f"= {recorded_seconds * 1e6:.1f} µs\n"
            f"mean step {step * 1e3:.1f} ms: {share:.3%} of it (limit {SHARE_LIMIT:.1%})\n"
            f"on against off, {len(differences)} pairs in turns: median {middle:+.1%}, "
            f"95 % interval {low:+.1%} to {high:+.1%}"
        )
    return 0 if share < SHARE_LIMIT else 1


def _interval(values: list[float]) -> tuple[float, float, float]:
    drawn = random.Random(1)
    medians = sorted(statistics.median(drawn.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.median(values), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]
