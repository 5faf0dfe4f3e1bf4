"""Records how unevenly real ranks work, for the simulation's noise and the real jobs' waits."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from random import Random

import numpy as np
from instep_diagnosis.detectors.work import own_seconds
from instep_diagnosis.simulation.programs import STEPS as PROGRAM_STEPS
from instep_diagnosis.simulation.programs import training

from instep_trainer.benchmarks.diagnosis.paced_rank import Plan, unit_seconds
from instep_trainer.benchmarks.diagnosis.real_jobs import real_job
from instep_trainer.benchmarks.diagnosis.real_stragglers import WORK_SECONDS

STEPS = 600
RANKS = {"paced": 4, "cpu": 2}
"""Waiting ranks need no core of their own, computing ones do; from four on the others tell what all of them share."""
WARM_UP_STEPS = 20


def record_jitter(path: Path) -> None:
    """Run a job of each kind, and write the noise of its ranks' own work."""
    said = ", ".join(f"{kind}: {ranks} ranks, steps of {WORK_SECONDS[kind]} s" for kind, ranks in RANKS.items())
    found: dict[str, object] = {
        "source": f"{STEPS} steps, data parallel over gloo, two cores; {said}",
        "command": "instep bench diagnosis --record-jitter jitter.json",
    }
    for kind in RANKS:
        found[kind] = _record(kind)
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _record(kind: str) -> list[list[float]]:
    jobs = (training(Random(seed), world_size_max=RANKS[kind], layout="ddp") for seed in count())
    job = next(job for job in jobs if len(job.programs) == RANKS[kind])
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
    levels_RT = np.log(np.maximum(own_RT, 1e-4))
    if len(rows) > 2:
        # What all ranks share in a step comes from the machine below them. Ranks are compared with one another, so it
        # is no noise to them, and drawn anew for each rank it would become one.
        levels_RT = levels_RT - np.median(levels_RT, axis=0)
    levels_RT = levels_RT - np.median(levels_RT, axis=1, keepdims=True)
    return [[round(float(value), 5) for value in row] for row in levels_RT]
