"""Somebody's own training script: its own loop, evaluation and checkpoints, and no word of who starts it.

`--fault` names a file: while it is not there, rank 1 makes it at step 20, and then never comes back from its forward.
"""

import argparse
import io
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WIDTH = 64
EVALUATION_STEP, SAVE_EVERY, FAULT_STEP = 30, 10, 20


class Model(torch.nn.Module):
    def __init__(self, fault: Path | None) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1))
        self.fault, self.step = fault, 0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.fault is not None and self.step >= FAULT_STEP and dist.get_rank() == 1 and not self.fault.exists():
            self.fault.touch()
            time.sleep(1000)
        return self.layers(batch)


class SlowFile(io.FileIO):
    """A store that takes its time for every part of a file."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(path, "w")
        self.pause, self.left = seconds / 4, seconds

    def write(self, part: bytes) -> int:
        if self.left > 0:
            self.left -= self.pause
            time.sleep(self.pause)
        return super().write(part)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--fault", type=Path, default=None)
    parser.add_argument("--save-seconds", type=float, default=0.0)
    parser.add_argument("--evaluation-seconds", type=float, default=0.0)
    options = parser.parse_args()
    torch.manual_seed(1)
    dist.init_process_group("gloo")
    model = Model(options.fault)
    replica = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.01)
    first = load(options.out / "checkpoint.pt", model, optimizer)
    for step in range(first, options.steps):
        model.step = step
        batch = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step))
        loss = replica(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.02)
        if dist.get_rank() == 0:
            with (options.out / "losses").open("a") as losses:
                losses.write(f"{step} {loss.item().hex()} {os.environ['TORCHELASTIC_RESTART_COUNT']}\n")
        if (step + 1) % SAVE_EVERY == 0:
            is_slow = step + 1 == 2 * SAVE_EVERY
            save(options.out, step + 1, model, optimizer, options.save_seconds if is_slow else 0.0)
        if step + 1 == EVALUATION_STEP:
            evaluate(model, options.evaluation_seconds)
    dist.destroy_process_group()


def evaluate(model: Model, seconds: float) -> None:
    until = time.monotonic() + seconds
    with torch.no_grad():
        while time.monotonic() < until:
            model(torch.zeros(8, WIDTH))
    dist.barrier()


def save(out: Path, step: int, model: Model, optimizer: torch.optim.Optimizer, seconds: float) -> None:
    if dist.get_rank() == 0:
        with SlowFile(out / "checkpoint.new", seconds) as file:
            torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        (out / "checkpoint.new").rename(out / "checkpoint.pt")
    dist.barrier()


def load(path: Path, model: Model, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    kept = torch.load(path)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["step"]


main()
