"""Starts small real jobs and watches them as the server does: through their ranks' records."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from instep_agent.benchmarks.scratch import scratch_folder
from instep_agent.wire import RankReport, StepReport
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import Stall, detect_stall
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.jobs import job_state, step_seconds
from instep_diagnosis.settings import HangSettings
from instep_diagnosis.verdict import Certainty, Verdict

from instep_trainer.benchmarks.diagnosis.paced_rank import NODE, RUN, Plan, run_rank
from instep_trainer.run.evidence import NodeRecords, take_dumps

POLL_SECONDS = 0.1
"""The supervisor looks four times a second, the server once."""
ANSWER_SECONDS = 1.0
JOB_SECONDS_MAX = 300.0
QUIET_SECONDS_MAX = 15.0
"""Without a finished call and without an alarm, the alarm is missing."""
START_SECONDS_MAX = 60.0


@dataclass(slots=True)
class RealJob:
    """A running job."""

    plan: Plan
    folder: Path
    ranks: list[Any]
    pipes: list[Connection]
    progress: Any
    """Calls of each rank, and the moment of the newest fault."""
    records: NodeRecords
    settings: HangSettings = field(default_factory=HangSettings)
    steps: dict[int, dict[int, StepReport]] = field(default_factory=dict)
    hung: set[int] = field(default_factory=set)
    """Steps in which a fault was taken back. In earnest a new attempt begins then; here the job goes on, and its own
    hangs must not make it patient."""

    def wait(self) -> Stall | str:
        """Until there is an alarm, or the job is `done`, a rank has `died`, or nothing moves and nobody says so."""
        last, since = list(self.progress), time.monotonic()
        deadline = since + JOB_SECONDS_MAX
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            reports = self._read()
            seen = list(self.progress)
            if all(count == -1 for count in seen[:-1]):
                return "done"
            if any(process.exitcode is not None for process in self.ranks):
                return "died"
            if len(reports) == len(self.ranks):
                state = job_state([(report, 0.0) for report in reports], step_seconds=self.step_seconds())
                stall = detect_stall(state, self.settings)
                if stall is not None and stall.certainty is Certainty.CONFIRMED:
                    return stall
            if seen != last:
                last, since = seen, time.monotonic()
            elif time.monotonic() - since > (QUIET_SECONDS_MAX if any(seen) else START_SECONDS_MAX):
                return "silent"
        return "silent"

    def step_seconds(self) -> tuple[float, ...]:
        """Recent step durations."""
        kept = {rank: [row for row in rows.values() if row.step not in self.hung] for rank, rows in self.steps.items()}
        return step_seconds({rank: rows[-64:] for rank, rows in kept.items()})

    def verdict(self, stall: Stall) -> Verdict:
        """What the live detectors say, from records, stacks and the recorder."""
        dumps = take_dumps(self.records, {rank: process.pid for rank, process in enumerate(self.ranks)})
        state = job_state(
            [(report, 0.0) for report in self._read()],
            step_seconds=self.step_seconds(),
            dumps={dump.report.rank: dump for dump in dumps},
        )
        return localise_hang(state, stall, self.settings)

    def onset_age_seconds(self) -> float:
        """Since the newest fault."""
        return (time.monotonic_ns() - int(self.progress[len(self.ranks)])) / 1e9

    def job_steps(self) -> JobSteps:
        """All steps that were finished, and two ranks on each node."""
        self._read()
        rows = {rank: tuple(row for _, row in sorted(found.items())) for rank, found in self.steps.items()}
        return JobSteps("bench", RUN, 0, rows, {rank: f"node-{rank // 2}" for rank in rows})

    def _read(self) -> list[RankReport]:
        reports = self.records.read()
        for report in reports:
            self.steps.setdefault(report.rank, {}).update({row.step: row for row in report.steps})
        return reports

    def dumps(self) -> dict[int, bytes]:
        """The flight recorders of those ranks that answer."""
        for pipe in self.pipes:
            pipe.send("dump")
        deadline = time.monotonic() + ANSWER_SECONDS
        found = {}
        for rank, pipe in enumerate(self.pipes):
            # A rank that died has nothing to say; the caller counts those that answered.
            with suppress(EOFError, ConnectionError):
                if pipe.poll(max(0.0, deadline - time.monotonic())):
                    found[rank] = pipe.recv()
        return found

    def take_back(self, kind: str, rank: int) -> None:
        """End a fault that can be ended."""
        last = max((step for rows in self.steps.values() for step in rows), default=0)
        self.hung |= {last, last + 1, last + 2}
        process = self.ranks[rank].pid
        if kind not in ("stop", "gil"):
            self.pipes[rank].send("go on")
            return
        os.kill(process, signal.SIGCONT if kind == "stop" else signal.SIGUSR1)
        # What was asked while it could not answer is answered now: nobody waits for that any more.
        if self.pipes[rank].poll(ANSWER_SECONDS):
            self.pipes[rank].recv()


@contextmanager
def real_job(plan: Plan) -> Iterator[RealJob]:
    """A job of as many processes as the plan has programs; all are ended with the context."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "300")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_rank.__module__])
    with scratch_folder("/dev/shm") as folder:
        progress = context.Array("q", len(plan.programs) + 1, lock=False)
        ranks, pipes = [], []
        for rank in range(len(plan.programs)):
            mine, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(rank, plan, str(folder), theirs, progress), daemon=True)
            process.start()
            theirs.close()
            ranks.append(process)
            pipes.append(mine)
        records = NodeRecords(folder, NODE, RUN)
        records.begin(0)
        try:
            yield RealJob(plan, folder, ranks, pipes, progress, records)
        finally:
            records.close()
            for process in ranks:
                process.kill()
            for process, pipe in zip(ranks, pipes, strict=True):
                process.join()
                pipe.close()
