"""Long healthy jobs, made up: how often is somebody named who is not slow? One record a job, as in `scoring`."""

from __future__ import annotations

import numpy as np

from instep_diagnosis.detectors.straggler import detect_in_arrays, window_of
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.settings import StragglerSettings
from instep_diagnosis.simulation.jitter import KINDS as NOISE_KINDS
from instep_diagnosis.simulation.scoring import FIRST_STEPS, Case
from instep_diagnosis.simulation.steps import BENIGN, StepCase, StepFault, arrays_of, step_case

STEPS = 3_000
ASKED_EVERY = 4
"""Steps: a verdict stands for as many and more."""
RANKS = (2, 4, 8, 16)
KINDS = tuple(kind for kind in BENIGN if kind is not StepFault.SEQUENCES)
"""Uneven sequences are judged from reports, which would take too long here."""
APART_STEPS = 32
"""Verdicts nearer than this are one alarm."""


def healthy_case(seed: int) -> Case:
    """One healthy job of some thousand steps, and the alarms in it."""
    random = np.random.default_rng([seed, 11])
    ranks, kind = int(random.choice(RANKS)), KINDS[int(random.integers(len(KINDS)))]
    noise_kind = str(random.choice(NOISE_KINDS))
    case = step_case(seed, ranks=ranks, fault=kind, steps=STEPS, noise_kind=noise_kind)
    alarms = _alarms(case)
    first = alarms[0] if alarms else None
    return {
        "kind": "healthy-simulated", "seed": seed, "fault": kind.value, "world_size": ranks, "sigma": case.sigma,
        "noise": noise_kind,
        "truth": [], "alarms": len(alarms), "healthy_steps": len(case.own_TR),
        "healthy_seconds": round(float(case.wall_TR[:, 0].sum()), 3),
        "answers": {
            "instep": {"named": first[1] if first else [], "at": first[0] if first else None, "delay_steps": None}
        },
    }  # fmt: skip


def _alarms(case: StepCase) -> list[tuple[int, list[int | None]]]:
    """Step and ranks of each alarm."""
    settings = StragglerSettings()
    ranks = case.own_TR.shape[1]
    job = JobSteps("simulated", f"seed-{case.seed}", 1, {}, {r: f"node-{r // 8}" for r in range(ranks)})
    found: list[tuple[int, list[int | None]]] = []
    last = -APART_STEPS
    for end in range(FIRST_STEPS, len(case.own_TR) + 1, ASKED_EVERY):
        arrays = arrays_of(case, end, window_steps=window_of(ranks, settings))
        named = [v.suspects[0].rank for v in detect_in_arrays(job, arrays, settings) if v.is_ongoing]
        if named and end - last >= APART_STEPS:
            found.append((end, named))
        last = end if named else last
    return found
