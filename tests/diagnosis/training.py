"""Finished steps of a simulated job: everybody works, then all wait for the slowest. Seeded, in virtual time."""

from __future__ import annotations

import numpy as np
from instep_agent.wire import StepReport
from instep_diagnosis.evidence import JobSteps


def own_work(*, steps=60, ranks=4, seconds=0.1, noise=0.01, autocorrelation=0.0, seed=0):
    """Own work per step and rank in seconds: lognormal noise, first-order autocorrelated along the steps."""
    rng = np.random.default_rng(seed)
    fresh_TR = rng.normal(size=(steps, ranks))
    noise_TR = fresh_TR.copy()
    for t in range(1, steps):
        noise_TR[t] = autocorrelation * noise_TR[t - 1] + np.sqrt(1 - autocorrelation**2) * fresh_TR[t]
    return seconds * np.exp(noise * noise_TR)


def job_steps(
    own_TR, *, first=0, cpu_TR=None, starved_TR=None, data_TR=None, tokens_TR=None, yardstick_TR=None, missing=()
):
    """The job's reports; `missing` holds (step, rank) pairs that nobody reported. `own_TR` excludes starvation and
    data."""
    starved_TR = np.zeros_like(own_TR) if starved_TR is None else starved_TR
    data_TR = np.zeros_like(own_TR) if data_TR is None else data_TR
    cpu_TR = own_TR if cpu_TR is None else cpu_TR
    busy_TR = own_TR + starved_TR + data_TR
    wall_T = busy_TR.max(axis=1) + 0.002
    steps = {}
    for r in range(own_TR.shape[1]):
        steps[r] = tuple(
            StepReport(
                step=first + t,
                wall_seconds=float(wall_T[t]),
                wait_seconds=float(wall_T[t] - busy_TR[t, r]),
                data_seconds=float(data_TR[t, r]),
                cpu_seconds=float(cpu_TR[t, r]),
                starved_seconds=float(starved_TR[t, r]),
                yardstick_seconds=None if yardstick_TR is None else float(yardstick_TR[t, r]),
                tokens=0 if tokens_TR is None else int(tokens_TR[t, r]),
            )
            for t in range(own_TR.shape[0])
            if (t, r) not in missing
        )
    return JobSteps("gpt", "run-1", 1, steps, {r: f"node-{'ab'[r * 2 // own_TR.shape[1]]}" for r in steps})
