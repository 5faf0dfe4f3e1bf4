"""Slow ranks of small real jobs: steps are taken from the ranks' records, as the server takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.simulation.programs import STEPS as PROGRAM_STEPS
from instep_diagnosis.simulation.programs import Training, training
from instep_diagnosis.simulation.scoring import Case, watch_steps
from instep_diagnosis.simulation.steps import NOW_AND_THEN_SHARE

from instep_trainer.benchmarks.diagnosis.paced_rank import Plan, unit_seconds
from instep_trainer.benchmarks.diagnosis.real_jobs import real_job

Array = npt.NDArray[np.float64]

WARM_UP_STEPS = 20
HEALTHY_STEPS = 40
SLOW_STEPS = 28
EPISODE_STEPS = HEALTHY_STEPS + SLOW_STEPS
EPISODES = 4
"""Of a job; every other one is healthy."""
RATIOS = {
    "paced": (1.03, 1.05, 1.1, 1.2, 1.5),
    "even": (1.02, 1.03, 1.05, 1.1),
    "sequences": (1.1, 1.2, 1.5),
    "cpu": (1.1, 1.2, 1.3, 1.5),
}
"""Of the slow rank's work. What taking tokens off leaves is two to three per cent of noise, so such jobs get larger
ones."""
NOW_AND_THEN_RATIOS = (1.3, 1.5, 2.0)
NOW_AND_THEN_EVERY = 5
"""One of so many slow episodes of paced jobs is slow in some steps only."""
WORKS = ("paced", "paced", "even", "sequences")
"""How paced jobs work: with recorded jitter, all steps alike, or by the tokens of each step with recorded jitter."""
WORK_SECONDS = {"paced": 0.04, "cpu": 0.03}
TOKENS = (1_024, 8_192)
LAYOUTS = ("ddp", "fsdp", "tp")


@dataclass(frozen=True, slots=True)
class Episode:
    """Some healthy steps, then some in which a rank is slow, or none is. Steps count from 0."""

    rank: int
    ratio: float
    """1 where nothing happens."""
    first: int
    """First slow step."""
    slow_steps: tuple[int, ...]
    fault: str
    """`slow`, `now-and-then` or `healthy`."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one real job does, and the truth about it."""

    seed: int
    kind: str
    work: str
    training: Training
    plan: Plan
    episodes: tuple[Episode, ...]


def straggler_job(seed: int, kind: str, jitter: Any) -> Job:
    """A job of one kind (`paced`, or `cpu`: computing); the same for the same seed, but for the unit of computing."""
    random = Random(f"real stragglers {seed}")
    # Computing needs a core for each rank; waiting needs none.
    job = training(random, world_size_max=2 if kind == "cpu" else 4, layout=random.choice(LAYOUTS))
    programs = tuple(program[: len(program) // PROGRAM_STEPS] for program in job.programs)
    steps, ranks = WARM_UP_STEPS + EPISODES * EPISODE_STEPS, len(programs)
    work = random.choice(WORKS) if kind == "paced" else kind
    episodes = tuple(_episode(random, work, number, ranks) for number in range(EPISODES))
    seconds_TR = np.full((steps, ranks), WORK_SECONDS[kind])
    if work in ("paced", "sequences"):
        seconds_TR *= jitter(random.randrange(1 << 30), steps, ranks)
    tokens_TR: list[list[int]] = []
    if work == "sequences":
        tokens_TR = [[random.randint(*TOKENS) for _ in range(ranks)] for _ in range(steps)]
        seconds_TR *= 0.1 + 0.9 * np.array(tokens_TR) / (sum(TOKENS) / 2)
    for episode in episodes:
        seconds_TR[list(episode.slow_steps), episode.rank] *= episode.ratio
    unit = unit_seconds() if kind == "cpu" else 0.0
    plan = Plan(job.groups, programs, steps, seconds_TR.tolist(), unit_seconds=unit, tokens_TR=tokens_TR)
    return Job(seed, kind, work, job, plan, episodes)


def _episode(random: Random, work: str, number: int, ranks: int) -> Episode:
    first = WARM_UP_STEPS + number * EPISODE_STEPS + HEALTHY_STEPS
    rank, steps = random.randrange(ranks), tuple(range(first, first + SLOW_STEPS))
    if number % 2 == 0:
        return Episode(rank, 1.0, first, (), "healthy")
    if work in ("paced", "even") and random.randrange(NOW_AND_THEN_EVERY) == 0:
        slow = tuple(step for step in steps if step == first or random.random() < NOW_AND_THEN_SHARE)
        return Episode(rank, random.choice(NOW_AND_THEN_RATIOS), first, slow, "now-and-then")
    return Episode(rank, random.choice(RATIOS[work]), first, steps, "slow")


def run_job(job: Job) -> JobSteps | str:
    """All steps of the job as its ranks recorded them, or what became of it instead."""
    with real_job(job.plan) as running:
        outcome = running.wait()
        if outcome != "done":
            return outcome if isinstance(outcome, str) else "false hang"
        return running.job_steps()


def real_stragglers(seed: int, kind: str, jitter: Any) -> Iterator[Case]:
    """The episodes of one job."""
    job = straggler_job(seed, kind, jitter)
    found = run_job(job)
    if isinstance(found, str):
        yield _base(job) | {"outcome": found, "truth": []}
        return
    for episode in job.episodes:
        yield judge_episode(job, episode, found)


def judge_episode(job: Job, episode: Episode, steps: JobSteps) -> Case:
    """What all methods say of one episode; steps of others are not shown to them."""
    is_slow = bool(episode.slow_steps)
    first, last = episode.first - HEALTHY_STEPS, episode.first + SLOW_STEPS - 1
    return _base(job) | {
        "fault": episode.fault,
        "ratio": episode.ratio,
        "truth": [episode.rank] if is_slow else [],
        **watch_steps(
            steps, range(first + 1, last + 2), onset=episode.first + 1, rank=episode.rank if is_slow else None
        ),
    }


def _base(job: Job) -> Case:
    return {
        "kind": f"straggler-{job.kind}",
        "seed": job.seed,
        "work": job.work,
        "layout": job.training.layout,
        "world_size": len(job.plan.programs),
    }
