"""Plays the job twice on the local cluster: once undisturbed, once with the three acts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instep.demo.acts import NODES, RANKS_PER_NODE, STEPS, Act, Fault, pci_of, slow_until
from instep.local.cluster import ClusterError, LocalCluster
from instep.local.ports import free_port
from instep.local.processes import Started, tail

RUN_SECONDS_MAX = 100.0
SETTLE_SECONDS_MAX = 6.0
POLL_SECONDS = 0.03
Look = Callable[["Stage"], None]


@dataclass(slots=True)
class Stage:
    """What can be seen of a run while it goes on."""

    run: str
    title: str
    steps: int
    losses: dict[int, list[float]] = field(default_factory=dict)
    attempts: dict[int, list[int]] = field(default_factory=dict)
    """attempt → the steps it logged, in order."""
    messages: list[str] = field(default_factory=list)
    is_finished: bool = False

    @property
    def step(self) -> int:
        """The newest step that was logged."""
        return max(self.losses, default=0)


class Play:
    """One run of the demo's job; `acts` is empty for the undisturbed one."""

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        run: str,
        title: str,
        seed: int,
        data: Path | None,
        acts: Sequence[Act],
        look: Look,
    ) -> None:
        self.stage = Stage(run, title, STEPS)
        self._cluster, self._seed, self._data, self._acts, self._look = cluster, seed, data, list(acts), look
        self._out = cluster.folder / run
        self._read_bytes = 0

    def run(self) -> Stage:
        """Start the supervisors, play every act at its step, and wait for the end."""
        supervisors = self._start()
        waiting = list(self._acts)
        until = time.monotonic() + RUN_SECONDS_MAX
        while time.monotonic() < until:
            self._read_losses()
            if waiting and self._is_due(waiting[0]):
                self._begin(waiting.pop(0))
            self._look(self.stage)
            if all(supervisor.process.poll() is not None for supervisor in supervisors):
                break
            time.sleep(POLL_SECONDS)
        self._read_losses()
        self.stage.is_finished = all(supervisor.process.poll() == 0 for supervisor in supervisors)
        if not self.stage.is_finished:
            self.stage.messages.append("\n".join(tail(supervisor.log) for supervisor in supervisors))
        self._cluster.processes.end(*(supervisor.name for supervisor in supervisors))
        return self.stage

    def _start(self) -> list[Started]:
        endpoint = f"127.0.0.1:{free_port()}"
        data = ["--data", str(self._data)] if self._data else []
        script = [
            "-m",
            "instep_trainer.train",
            "--steps",
            str(STEPS),
            "--out",
            str(self._out),
            "--seed",
            str(self._seed),
            *data,
        ]
        options = [
            "--max-restarts",
            "5",
            "--job",
            self.stage.run,
            "--log-dir",
            str(self._cluster.logs / self.stage.run),
        ]
        nnodes = f"{len(NODES) - 1}:{len(NODES)}"
        return [
            self._cluster.start_supervisor(
                node,
                endpoint,
                self.stage.run,
                nnodes=nnodes,
                per_node=RANKS_PER_NODE,
                options=[*options, "--node-rank", str(place)],
                script=script,
            )
            for place, node in enumerate(NODES)
        ]

    def _is_due(self, act: Act) -> bool:
        """The slow rank is told before, so that it is slow from its very step; the others are met at theirs."""
        return self.stage.step >= (1 if act.fault is Fault.SLOW else act.step)

    def _begin(self, act: Act) -> None:
        self.stage.messages.append(act.title)
        rank: dict[str, object] = {"run": self.stage.run, "rank": act.rank}
        if act.fault is Fault.SLOW:
            self._cluster.inject("slow", act.node, from_step=act.step, to_step=slow_until(act), ratio=1.3, **rank)
            threading.Thread(target=self._note_onset, args=(act,), daemon=True).start()
        elif act.fault is Fault.FROZEN:
            act.began_at = self._cluster.inject("stop", act.node, **rank)
        else:
            with ThreadPoolExecutor(2) as both:
                line = both.submit(
                    self._cluster.inject,
                    "xid",
                    act.node,
                    kernel_log=self._cluster.kernel_log(act.node),
                    pci=pci_of(act.node, act.rank),
                    code=79,
                )
                kill = both.submit(self._cluster.inject, "kill", act.node, **rank)
                act.began_at = min(line.result(), kill.result())

    def _note_onset(self, act: Act) -> None:
        """The slow rank is slow from the moment its step begins, which is when the step before was logged."""
        while self.stage.step < act.step and not self.stage.is_finished:
            time.sleep(POLL_SECONDS)
        act.began_at = time.time()

    def _read_losses(self) -> None:
        path = self._out / "losses.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                loss = float.fromhex(row["loss"])
            except (ValueError, KeyError):
                continue  # torn by a kill; the step is made and logged again
            self.stage.losses.setdefault(row["step"], []).append(loss)
            self.stage.attempts.setdefault(row["attempt"], []).append(row["step"])


def settled_incidents(cluster: LocalCluster, run: str, wanted: int) -> list[dict[str, Any]]:
    """Return the run's incidents once as many as wanted have a verdict, or the time is over."""
    until = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        incidents = cluster.client.incidents(run)
        if sum(incident.get("verdict_at") is not None for incident in incidents) >= wanted or time.monotonic() > until:
            return incidents
        time.sleep(0.2)


def steps_lost(stage: Stage, openings: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Return attempt → committed steps that it made again.

    `openings` say which step the supervisors found complete on every rank before the attempt began; what the attempt
    logged first
    says where it really resumed.
    """
    lost = {}
    for opening in openings:
        attempt, committed = int(opening["attempt"]), opening.get("resume_step")
        made = stage.attempts.get(attempt)
        if attempt > 0 and made and committed is not None:
            lost[attempt] = max(0, int(committed) - (made[0] - 1))
    return lost


__all__ = ["ClusterError", "Play", "Stage", "settled_incidents", "steps_lost"]
