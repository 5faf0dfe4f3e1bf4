"""`instep bench resume`: a rank is killed; how long until the next kept step, under Instep and under torchrun, in
turns."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from instep.bench.losses import LossTail
from instep.bench.statistics import median_interval, spread
from instep.local.cluster import ClusterError, LocalCluster, wait_until
from instep.local.ports import free_port

RANKS = 4
STEP_SECONDS_MAX = 120.0
RECOVERED_SECONDS_MAX = 90.0
TRAIN = ["--steps", "1000000", "--checkpoint-every-disk", "0"]


Kill = Callable[[int], float]
"""Kills a rank and returns the realtime at which it did."""
Launcher = Callable[[], contextlib.AbstractContextManager[tuple[LossTail, Kill]]]


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 our median is not above torchrun's, 1 it is, 3 could not measure."""
    parser = argparse.ArgumentParser(prog="instep bench resume", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="which rank is killed at which step (default 1)")
    parsed = parser.parse_args(list(arguments))
    drawn = random.Random(parsed.seed)
    ours, theirs = [], []
    try:
        for number in range(parsed.pairs):
            rank, step = drawn.randrange(RANKS), drawn.randint(15, 30)
            ours.append(_kill_and_wait(_under_instep, rank, step))
            theirs.append(_kill_and_wait(_under_torchrun, rank, step))
            print(
                f"pair {number + 1}: rank {rank} killed after step {step}: "
                f"instep run {ours[-1]:.2f} s, torchrun {theirs[-1]:.2f} s",
                flush=True,
            )
    except ClusterError as error:
        print(f"instep bench resume: {error}", file=sys.stderr)
        return 3
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    middle, low, high = median_interval(ratios)
    print(
        f"\nkill → next kept step, s, {RANKS} ranks\n  instep run: {spread(ours)}\n  torchrun:   {spread(theirs)} "
        "(with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, without which it does not recover)"
    )
    print(f"  ratio, pair by pair: median {middle:.2f}, 95 % interval {low:.2f} to {high:.2f}")
    return 0 if median_interval(ours)[0] <= median_interval(theirs)[0] else 1


def _kill_and_wait(launcher: Launcher, rank: int, step: int) -> float:
    with launcher() as (losses, kill):
        if not wait_until(lambda: [*losses.read(), losses.step >= step][-1], STEP_SECONDS_MAX, every_seconds=0.01):
            raise ClusterError(
                f"the job under {launcher.__name__[7:]} did not reach step {step} within {STEP_SECONDS_MAX:.0f} s"
            )
        before = losses.attempt
        killed_at = kill(rank)
        if not wait_until(
            lambda: [*losses.read(), losses.attempt > before][-1], RECOVERED_SECONDS_MAX, every_seconds=0.01
        ):
            raise ClusterError(
                f"the job under {launcher.__name__[7:]} did not recover within {RECOVERED_SECONDS_MAX:.0f} s"
            )
        return next(made.at for made in losses.made if made.attempt > before) - killed_at


@contextlib.contextmanager
def _under_instep() -> Iterator[tuple[LossTail, Kill]]:
    with LocalCluster(["node-a"], with_server=False) as cluster:
        out = cluster.folder / "out"
        cluster.start_supervisor(
            "node-a",
            f"127.0.0.1:{free_port()}",
            "bench",
            nnodes="1",
            per_node=RANKS,
            options=["--max-restarts", "3", "--log-dir", str(cluster.logs / "ranks")],
            script=["-m", "instep_trainer.train", *TRAIN, "--out", str(out)],
        )
        yield LossTail(out / "losses.jsonl"), lambda rank: cluster.inject("kill", "node-a", run="bench", rank=rank)


@contextlib.contextmanager
def _under_torchrun() -> Iterator[tuple[LossTail, Kill]]:
    folder = Path(tempfile.mkdtemp(prefix="instep-torchrun-"))
    memory = Path(tempfile.mkdtemp(prefix="instep-", dir="/dev/shm"))
    mark = f"INSTEP_BENCH={folder.name}"
    environment = {
        **os.environ,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": "1",
        "INSTEP_BENCH": folder.name,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(RANKS),
                "--max-restarts",
                "3",
                "-m",
                "instep_trainer.train",
                *TRAIN,
                "--out",
                str(folder / "out"),
                "--checkpoint-memory",
                str(memory),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            yield LossTail(folder / "out" / "losses.jsonl"), lambda rank: _kill_marked(mark, rank)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pid, _rank in _marked(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(memory, ignore_errors=True)


def _kill_marked(mark: str, rank: int) -> float:
    found = [pid for pid, its_rank in _marked(mark) if its_rank == str(rank)]
    if not found:
        raise ClusterError(f"rank {rank} was not found among the processes")
    killed_at = time.time()
    os.kill(found[0], signal.SIGKILL)
    return killed_at


def _marked(mark: str) -> list[tuple[int, str]]:
    """(pid, rank) of the processes whose environment carries the mark, as torchrun's ranks show it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if mark in pairs:
                    rank = next((pair[5:] for pair in pairs if pair.startswith("RANK=")), "")
                    found.append((int(entry.name), rank))
    return found
