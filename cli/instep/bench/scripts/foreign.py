"""Somebody's own training script: its own DDP loop, its own checkpoints, no word of who may be watching.

It pauses as training scripts do: for a slow first step, to evaluate, to save, for its loader. When and how long stands
in `pauses.jsonl` in its folder, one line each, read anew before every step, so that a pause can be asked for while it
runs: `{"kind": "checkpoint", "step": 120, "seconds": 10, "ranks": [0]}`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

WIDTH = 384
BATCH = 192
SAVE_EVERY = 50
EVALUATION_BATCHES = 4


class Marks(Protocol):
    """Where a script may say what it does; this one has nobody to tell."""

    def steps(self, loader: Iterable[Tensor], /) -> Iterator[Tensor]:
        """Give the loader's batches, one per step."""

    def phase(self, name: str, /) -> AbstractContextManager[None]:
        """Surround one phase."""


class NoMarks:
    """Tells nobody."""

    def steps(self, loader: Iterable[Tensor], /) -> Iterator[Tensor]:
        """Give the loader's batches."""
        return iter(loader)

    def phase(self, _name: str, /) -> AbstractContextManager[None]:
        """Surround with nothing."""
        return nullcontext()


class Model(nn.Module):
    """Some layers, of which the first pass takes long, as when kernels are compiled."""

    def __init__(self, compile_seconds: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(6)))
        self._compile_seconds = compile_seconds

    def forward(self, batch: Tensor) -> Tensor:
        """Return the mean square of the difference to the input."""
        until, self._compile_seconds = time.monotonic() + self._compile_seconds, 0.0
        while time.monotonic() < until:
            compile("\n".join(f"x{number} = {number} * 2" for number in range(500)), "kernels", "exec")
        difference: Tensor = self.layers(batch) - batch
        return difference.square().mean()


class Samples(Dataset[Tensor]):
    """Random rows; `stall_seconds` makes the next one late."""

    stall_seconds = 0.0

    def __len__(self) -> int:
        return BATCH << 24

    def __getitem__(self, number: int) -> Tensor:
        stall, self.stall_seconds = self.stall_seconds, 0.0
        time.sleep(stall)
        return torch.full((WIDTH,), (number * 2654435761 % 1000) / 1000)


class Pauses:
    """What was asked for, by the step after which it is due."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_bytes = path, 0
        self._asked: dict[int, list[dict[str, Any]]] = {}

    def due(self, step: int) -> list[dict[str, Any]]:
        """Return the pauses after this step."""
        if self._path.exists() and self._path.stat().st_size > self._read_bytes:
            text = self._path.read_bytes()
            self._read_bytes = len(text)
            self._asked = {}
            for line in text.splitlines():
                asked = json.loads(line)
                self._asked.setdefault(asked["step"], []).append(asked)
        return self._asked.get(step, [])


class SlowFile(io.BytesIO):
    """Storage that takes its time at the first byte."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def write(self, part: Any) -> int:
        """Write, late."""
        seconds, self._seconds = self._seconds, 0.0
        time.sleep(seconds)
        return super().write(part)


class Training:
    """One rank."""

    def __init__(self, options: argparse.Namespace, marks: Marks) -> None:
        self._out: Path = options.out
        self._marks = marks
        self._rank = dist.get_rank()
        self._model = Model(options.compile_seconds + 0.5 * self._rank if options.compile_seconds else 0.0)
        self._replica = DistributedDataParallel(self._model)
        self._optimizer = torch.optim.AdamW(self._replica.parameters(), lr=1e-4)
        self._samples = Samples()
        self._pauses = Pauses(self._out / "pauses.jsonl")
        self._step = self._load()
        self._micro_steps, self._micro_until = 1, 0

    def run(self, steps: int) -> None:
        """Train until the last step, or until somebody asks for an early end."""
        for batch in self._marks.steps(DataLoader(self._samples, batch_size=BATCH)):
            loss = self._one_step(batch)
            self._step += 1
            self._log(loss)
            if self._step % SAVE_EVERY == 0:
                self._save(0.0)
            asked = self._pauses.due(self._step)
            for pause in asked:
                self._pause(pause)
            if self._step >= steps or any(pause["kind"] == "finish" for pause in asked):
                break

    def _one_step(self, batch: Tensor) -> Tensor:
        passes = self._micro_steps if self._step < self._micro_until else 1
        for number in range(passes):
            is_last = number == passes - 1
            with nullcontext() if is_last else self._replica.no_sync():
                with self._marks.phase("forward"):
                    loss = self._replica(batch) / passes
                with self._marks.phase("backward"):
                    loss.backward()
        with self._marks.phase("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()
        mean: Tensor = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        return mean

    def _pause(self, pause: dict[str, Any]) -> None:
        kind, seconds, ranks = pause["kind"], pause.get("seconds", 0.0), pause.get("ranks")
        if kind == "accumulation":
            self._micro_steps, self._micro_until = pause["micro_steps"], self._step + pause["steps"]
        elif kind == "checkpoint":
            self._save(seconds)
        elif ranks is None or self._rank in ranks:
            if kind == "evaluation":
                self._evaluate(seconds)
            elif kind == "loader":
                self._samples.stall_seconds = seconds

    @torch.no_grad()
    def _evaluate(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._marks.phase("evaluation"):
            self._model.eval()
            while time.monotonic() < until:
                for _ in range(EVALUATION_BATCHES):
                    self._model(torch.zeros(BATCH, WIDTH))
                time.sleep(0.05)
            self._model.train()

    def _save(self, seconds: float) -> None:
        """Rank 0 writes, and then has its file brought to far storage; the others wait for it."""
        if self._rank == 0:
            with self._marks.phase("checkpoint"):
                file = SlowFile(seconds / 2)
                state = {"model": self._model.state_dict(), "step": self._step}
                torch.save(state | {"optimizer": self._optimizer.state_dict()}, file)
                part = self._out / "checkpoint.part"
                part.write_bytes(file.getvalue())
                time.sleep(seconds / 2)
                part.replace(self._out / "checkpoint.pt")
        dist.barrier()

    def _load(self) -> int:
        path = self._out / "checkpoint.pt"
        if not path.exists():
            return 0
        kept = torch.load(path)
        self._model.load_state_dict(kept["model"])
        self._optimizer.load_state_dict(kept["optimizer"])
        return int(kept["step"])

    def _log(self, loss: Tensor) -> None:
        if self._rank == 0:
            attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            with (self._out / "losses.jsonl").open("a") as file:
                file.write(json.dumps({"step": self._step, "attempt": attempt, "loss": float(loss).hex()}) + "\n")


def main(marks: Marks) -> None:
    """Train as one rank of the job that the environment tells of."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--compile-seconds", type=float, default=0.0)
    options = parser.parse_args(sys.argv[1:])
    torch.manual_seed(1)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo")
    Training(options, marks).run(options.steps)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(NoMarks())
