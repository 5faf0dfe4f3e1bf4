"""A job under `instep run` whose hangs are judged here, by the supervisor's own functions."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import Stall, detect_stall
from instep_diagnosis.evidence import JobState
from instep_diagnosis.settings import HangSettings
from instep_diagnosis.verdict import Certainty, Verdict
from instep_trainer.inject.cli import write_faults
from instep_trainer.inject.faults import Fault, fault_file
from instep_trainer.run.evidence import NodeRecords, take_dumps
from instep_trainer.run.local_watch import LocalWatch

from tests.trainer.run.fake_server import TOKEN, fake_server
from tests.trainer.run.supervisors import Supervisor, node, wait_for

SCRIPT = Path(__file__).parent / "scripts" / "layouts.py"
WORLD = 4
NODE, RUN, JOB = "node-a", "run-1", "layouts"
LOOK_SECONDS = 0.25
"""As often as a supervisor looks."""
VERDICT_SECONDS_MAX = 15.0
STEPS_BEFORE_FAULT = 10


@dataclass
class Seen:
    """What was judged of one attempt."""

    verdict: Verdict | None = None
    alarm_seconds: float | None = None
    states: list[JobState] = field(default_factory=list)
    """Every state that was judged, the newest last."""

    @property
    def blamed(self) -> list[int | None]:
        """The accused, in order of rank."""
        return sorted(suspect.rank for suspect in self.verdict.suspects) if self.verdict else []


class Watched:
    """One run: attempts one after another, each in the next layout of its plan."""

    def __init__(self, root: Path, supervisor: Supervisor) -> None:
        self.root, self.supervisor = root, supervisor
        self.records = NodeRecords(root, NODE, RUN)
        self.watch = LocalWatch()
        self.settings = HangSettings()
        self.attempt = -1

    def begins(self, attempt: int, steps: int = STEPS_BEFORE_FAULT) -> list[Stall]:
        """Wait until every rank of this attempt has made so many steps; return stalls seen until then."""
        self.attempt = attempt
        self.records.begin(attempt)
        self.watch.begin(attempt, WORLD)
        stalls: list[Stall] = []

        def has_begun() -> bool:
            if stall := self.look():
                stalls.append(stall)
            return (self.watch.step_of_all() or 0) >= steps

        wait_for(has_begun, f"step {steps} of attempt {attempt}", self.supervisor.log)
        return stalls

    def inject(self, kind: str, rank: int) -> None:
        """Have a fault strike now."""
        if kind in ("stop", "kill"):
            os.kill(self.pids()[rank], {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}[kind])
        else:
            write_faults(fault_file(self.root, NODE, RUN, self.attempt, rank), [Fault(kind=kind, from_step=0)])

    def judges(self) -> Seen:
        """Watch as a supervisor does, until there is a verdict to act upon or none comes."""
        seen, began = Seen(), time.monotonic()
        while time.monotonic() - began < VERDICT_SECONDS_MAX:
            stall = self.look()
            seen.states = [*seen.states[-8:], self.state()]
            if stall is not None and stall.certainty is Certainty.CONFIRMED:
                seen.alarm_seconds = seen.alarm_seconds or time.monotonic() - began
                if verdict := self.verdict(seen):
                    seen.verdict = verdict
                    break
            time.sleep(LOOK_SECONDS)
        return seen

    def look(self) -> Stall | None:
        """The stall, if there is one now."""
        self.watch.observe(self.records.read(), time.monotonic())
        state = self.state()
        return None if state is None else detect_stall(state, self.settings)

    def verdict(self, seen: Seen) -> Verdict | None:
        """The verdict over fresh evidence, as the supervisor would act upon it."""
        dumps = take_dumps(self.records, self.pids())
        self.watch.observe(self.records.read(), time.monotonic())
        state = self.watch._state(JOB, RUN, self.attempt, dumps, time.monotonic())
        seen.states.append(state)
        stall = detect_stall(state, self.settings)
        verdict = stall and localise_hang(state, stall, self.settings)
        return verdict if verdict and verdict.certainty is Certainty.CONFIRMED else None

    def state(self) -> JobState | None:
        """The job as the newest reports tell it."""
        if not self.watch._reports:
            return None
        return self.watch._state(JOB, RUN, self.attempt, [], time.monotonic())

    def pids(self) -> dict[int, int]:
        return {rank: report.pid for rank, (report, _) in self.watch._reports.items()}

    def ends_attempt(self) -> None:
        """Kill the ranks, whereupon the supervisor opens the next attempt."""
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def watched(folder: Path, plan: list[str]) -> Iterator[Watched]:
    """Four ranks over this plan of layouts. A server that never orders keeps the supervisor from judging."""
    with node(folder) as one, fake_server() as server:
        options: tuple[Any, ...] = (
            "--nproc-per-node", str(WORLD), "--max-restarts", str(len(plan) + 5), "--allow-drills", "--job", JOB,
            "--verdict-wait-seconds", "0.1", "--stop-grace-seconds", "0.2", *server.options,
        )  # fmt: skip
        supervisor = one.start(SCRIPT, ",".join(plan), options=options, INSTEP_TOKEN=TOKEN, OMP_NUM_THREADS="1")
        yield Watched(one.root, supervisor)
