"""`instep bench interference`: what a node's agent costs the training beside it.

One job of the demo's model trains on; its node's agent is stopped (SIGSTOP) and continued window by window, so that on
and off share the process, the data and the machine's mood. A pair is an on-window and the off-window after it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from instep.bench.losses import LossTail
from instep.bench.statistics import median_interval, spread
from instep.local.cluster import ClusterError, LocalCluster, wait_until
from instep.local.ports import free_port
from instep.local.processes import Started

NODE = "node-a"
RANKS = 2
TRAIN = ["--steps", "1000000", "--checkpoint-every-disk", "0"]
SETTLED_STEP = 40
WINDOW_SECONDS_MAX = 120.0
SHARE_MAX = 0.0025
"""Of the machine's cores, while a step lasts."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 within the bars, 1 not, 3 could not measure."""
    parser = argparse.ArgumentParser(prog="instep bench interference", description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="windows with the agent and without (default 20)")
    parser.add_argument("--window-steps", type=int, default=80, help="steps of one window (default 80)")
    parsed = parser.parse_args(list(arguments))
    try:
        windows = measure(parsed.pairs, parsed.window_steps)
    except ClusterError as error:
        print(f"instep bench interference: {error}", file=sys.stderr)
        return 3
    return report(windows)


def measure(pairs: int, window_steps: int) -> list[tuple[float, float, float]]:
    """Return (step with the agent, step without it, the agent's CPU a step), in seconds, pair by pair."""
    found = []
    with LocalCluster([NODE]) as cluster:
        out = cluster.folder / "out"
        script = ["-m", "instep_trainer.train", *TRAIN, "--out", str(out)]
        endpoint = f"127.0.0.1:{free_port()}"
        cluster.start_supervisor(
            NODE, endpoint, "run-1", nnodes="1", per_node=RANKS, options=["--job", "demo"], script=script
        )
        agent, losses = cluster.processes.newest(f"agent-{NODE}"), LossTail(out / "losses.jsonl")
        _reach(losses, SETTLED_STEP)
        for number in range(pairs):
            before = cpu_seconds(agent)
            with_agent = _window(losses, window_steps)
            used = (cpu_seconds(agent) - before) / window_steps
            os.killpg(agent.process.pid, signal.SIGSTOP)
            without = _window(losses, window_steps)
            os.killpg(agent.process.pid, signal.SIGCONT)
            found.append((with_agent, without, used))
            print(
                f"pair {number + 1}: step {with_agent * 1e3:.2f} ms with the agent, {without * 1e3:.2f} ms without; "
                f"agent {used * 1e6:.0f} µs of CPU a step",
                flush=True,
            )
    return found


def report(windows: list[tuple[float, float, float]]) -> int:
    """Print what was found; 0 when both bars hold."""
    share = sum(used for _, _, used in windows) / sum(on for on, _, _ in windows) / (os.cpu_count() or 1)
    ratios = [on / off - 1.0 for on, off, _ in windows]
    middle, low, high = median_interval(ratios)
    print(f"\nstep with the agent, s:    {spread([on for on, _, _ in windows])}")
    print(f"step without it, s:        {spread([off for _, off, _ in windows])}")
    print(
        f"agent's CPU ÷ (cores × step): {share:.3%} (limit {SHARE_MAX:.2%}), {os.cpu_count()} cores, "
        f"{len(windows)} windows"
    )
    print(
        f"on against off, pair by pair: median {middle:+.2%}, 95 % interval {low:+.2%} to {high:+.2%} "
        f"(half-width {(high - low) / 2:.2%})"
    )
    return 0 if share <= SHARE_MAX and low <= 0.0 else 1


def _reach(losses: LossTail, step: int) -> float:
    """Wait until a step is logged; return when that was seen."""
    if not wait_until(lambda: [losses.read(), losses.step >= step][-1], WINDOW_SECONDS_MAX, every_seconds=0.002):
        raise ClusterError(f"the job did not reach step {step} within {WINDOW_SECONDS_MAX:.0f} s")
    return time.monotonic()


def _window(losses: LossTail, steps: int) -> float:
    """Return the mean seconds of the next steps, from one step's end to another's."""
    losses.read()
    first = losses.step + 1
    began_at = _reach(losses, first)
    return (_reach(losses, first + steps) - began_at) / steps


def cpu_seconds(agent: Started) -> float:
    """Return the CPU time of the agent and its children, which share its process group, of ended children too.

    Threads that live are counted in nanoseconds (`schedstat`): a window costs the agent one or two clock ticks.
    """
    total = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == agent.process.pid:
                threads = (int(one.read_text().split()[0]) for one in entry.glob("task/*/schedstat"))
                total += sum(threads) / 1e9 + (int(fields[13]) + int(fields[14])) / TICKS_PER_SECOND
        except OSError:
            continue  # it has ended meanwhile
    return total
