"""Records how unevenly real ranks work, for the simulation's noise and the real jobs' waits."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
from instep_diagnosis.detectors.work import own_seconds
from instep_diagnosis.simulation.programs import STEPS as PROGRAM_STEPS
from instep_diagnosis.simulation.programs import training

from instep_trainer.benchmarks.diagnosis.paced_rank import Plan, unit_seconds
from instep_trainer.benchmarks.diagnosis.real_jobs import real_job

STEPS = 600
RANKS = 2
WARM_UP_STEPS = 20
WORK_SECONDS = {"paced": 0.03, "cpu": 0.03}


def record_jitter(path: Path) -> None:
    """Run a job of each kind, and write the noise of its ranks' own work."""
    found: dict[str, object] = {
        "source": f"{RANKS} ranks, {STEPS} steps of {WORK_SECONDS['paced']} s, data parallel over gloo, two cores",
        "command": "instep bench diagnosis --record-jitter jitter.json",
    }
    for kind in WORK_SECONDS:
        found[kind] = _record(kind)
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _record(kind: str) -> list[list[float]]:
    job = training(Random(1), world_size_max=RANKS, layout="ddp")
    programs = tuple(program[: len(program) // PROGRAM_STEPS] for program in job.programs)
    steps = STEPS + WARM_UP_STEPS
    work = [[WORK_SECONDS[kind]] * len(programs)] * steps
    plan = Plan(job.groups, programs, steps, work, unit_seconds=unit_seconds() if kind == "cpu" else 0.0)
    with real_job(plan) as running:
        outcome = running.wait()
        if outcome != "done":
            raise RuntimeError(f"The job that is recorded ended with {outcome}: run it again on a quieter machine.")
        rows = running.job_steps().steps
    own_RT = np.array([[own_seconds(row) for row in rows[rank][WARM_UP_STEPS:]] for rank in sorted(rows)])
    own_RT = np.maximum(own_RT, 1e-4)
    levels = np.log(own_RT / np.median(own_RT, axis=1, keepdims=True))
    return [[round(float(value), 4) for value in row] for row in levels]
