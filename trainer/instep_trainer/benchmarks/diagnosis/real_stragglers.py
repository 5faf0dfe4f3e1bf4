"""Slow ranks of small real jobs: steps are taken from the ranks' records, as the server takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.simulation.ceiling import could_be_found
from instep_diagnosis.simulation.programs import STEPS as PROGRAM_STEPS
from instep_diagnosis.simulation.programs import Training, training
from instep_diagnosis.simulation.scoring import Case, watch_steps
from instep_diagnosis.simulation.steps import NOW_AND_THEN_SHARE
from instep_diagnosis.verdict import Owner

from instep_trainer.benchmarks.diagnosis.campaign import EPISODES
from instep_trainer.benchmarks.diagnosis.paced_rank import Plan, unit_seconds
from instep_trainer.benchmarks.diagnosis.real_jobs import real_job

Array = npt.NDArray[np.float64]

WARM_UP_STEPS = 20
HEALTHY_STEPS = 40
SLOW_STEPS = 28
EPISODE_STEPS = HEALTHY_STEPS + SLOW_STEPS
RATIOS = {
    "paced": (1.03, 1.03, 1.05, 1.07, 1.1, 1.2, 1.5),
    "even": (1.02, 1.02, 1.03, 1.05, 1.1),
    "sequences": (1.05, 1.1, 1.2, 1.5),
    "cpu": (1.1, 1.2, 1.3, 1.5),
}
"""Of the slow rank's work, drawn evenly."""
NOW_AND_THEN_RATIOS = (1.3, 1.5, 2.0)
NOW_AND_THEN_EVERY = 5
"""One of so many slow episodes of paced jobs is slow in some steps only."""
WORKS = ("paced", "paced", "even", "even", "sequences")
"""How paced jobs work: with recorded jitter, all steps alike, or by the tokens of each step with recorded jitter."""
WORK_SECONDS = {"paced": 0.2, "cpu": 0.03}
"""Of a step, unless it is said otherwise. Steps of GPU jobs take a second and more (the published traces of
ByteDance-Seed/StragglerAnalysis: 0.85 and 19 s of work); what the machine adds to a wait of 0.04 s, 1 % of it, is no
property of such a job."""
OWNERS = {"paced": Owner.JOB, "cpu": Owner.NODE}
"""Longer waits inside a rank's own work are its script's; longer computing for the same work is its node's."""
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
    work_seconds: float
    """Of a healthy step."""


def straggler_job(seed: int, kind: str, jitter: Any, work_seconds: float | None = None) -> Job:
    """A job of one kind (`paced`, or `cpu`: computing); the same for the same seed, but for the unit of computing.

    A step's work takes `work_seconds`, or what is usual for the kind.
    """
    random = Random(f"real stragglers {seed}")
    # Computing needs a core for each rank; waiting needs none.
    job = training(random, world_size_max=2 if kind == "cpu" else 4, layout=random.choice(LAYOUTS))
    programs = tuple(program[: len(program) // PROGRAM_STEPS] for program in job.programs)
    steps, ranks = WARM_UP_STEPS + EPISODES * EPISODE_STEPS, len(programs)
    work = random.choice(WORKS) if kind == "paced" else kind
    episodes = tuple(_episode(random, work, number, ranks) for number in range(EPISODES))
    seconds = work_seconds or WORK_SECONDS[kind]
    seconds_TR = np.full((steps, ranks), seconds)
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
    return Job(seed, kind, work, job, plan, episodes, seconds)


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


def real_stragglers(seed: int, kind: str, jitter: Any, work_seconds: float | None = None) -> Iterator[Case]:
    """The episodes of one job."""
    job = straggler_job(seed, kind, jitter, work_seconds)
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
    found = watch_steps(
        steps, range(first + 1, last + 2), onset=episode.first + 1, rank=episode.rank if is_slow else None
    )
    owner = found["answers"]["instep"].pop("owner")
    return _base(job) | {
        "fault": episode.fault,
        "ratio": episode.ratio,
        "truth": [episode.rank] if is_slow else [],
        "owner_right": owner == OWNERS[job.kind].value if is_slow and owner else None,
        "findable": could_be_found(steps, episode.rank, _numbers([episode]), _numbers(job.episodes)),
        **found,
    }


def _numbers(episodes: Sequence[Episode]) -> list[int]:
    """Steps in which a rank is slow, as the ranks number them: from 1."""
    return [step + 1 for episode in episodes for step in episode.slow_steps]


def _base(job: Job) -> Case:
    return {
        "kind": f"straggler-{job.kind}",
        "seed": job.seed,
        "work": job.work,
        "work_seconds": job.work_seconds,
        "layout": job.training.layout,
        "world_size": len(job.plan.programs),
    }
