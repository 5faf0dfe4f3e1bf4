"""What a healthy job goes through in a soak: pauses that its script makes, and parts of Instep that go away."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

NODES = ("node-a", "node-b")
RANKS_PER_NODE = 2
WORLD_SIZE = len(NODES) * RANKS_PER_NODE
SCRIPTS = Path(__file__).with_name("scripts")
"""`instep.bench.scripts.foreign` and `instep.bench.scripts.annotated` are started by their paths, as people's are."""
COMPILE_SECONDS = 8.0
OUTAGE_SECONDS = 20.0
CALM_SECONDS_MIN = 5.0
START_SECONDS = 12.0
"""What starting and ending a job takes, for the estimate of the whole."""
EVALUATION_EVERY = 100
EVALUATION_BATCHES = 150
"""Several seconds on two cores."""
TRAINER_STEPS = 500


class Outage(StrEnum):
    """What happens to a part of Instep."""

    AGENT_KILLED = "agent killed, started again"
    AGENT_STOPPED = "agent stopped, continued"
    SERVER_STOPPED = "server stopped, continued"
    SERVER_KILLED = "server killed, started again"

    @property
    def is_of_agent(self) -> bool:
        """Whether a node falls silent, and the server is there to see it."""
        return self in (Outage.AGENT_KILLED, Outage.AGENT_STOPPED)


class End(StrEnum):
    """How a job ends."""

    STEPS = "its end after the last step"
    STOPPED = "stopped by hand (SIGTERM)"
    ASKED = "early finish, without an error"


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One of them."""

    name: str
    seconds: float
    pause: dict[str, Any] | None = None
    """A line for the script's `pauses.jsonl`, without the step."""
    outage: Outage | None = None
    node: str = ""
    """Whose agent."""


@dataclass(frozen=True, slots=True)
class Job:
    """One healthy job, with what it goes through in turn."""

    run: str
    title: str
    script: tuple[str, ...]
    """Without `--out`."""
    start: str
    """What is peculiar to its beginning, the first row of the table."""
    disturbances: tuple[Disturbance, ...] = ()
    end: End = End.ASKED
    seconds: float = 0.0
    """Rough length without the calm between disturbances."""


def draw_jobs(seed: int) -> list[Job]:
    """Return the jobs of a soak: order, ranks and nodes come from the seed.

    >>> [job.title for job in draw_jobs(1)]
    ['annotated trainer', 'annotated trainer, parts go away', 'annotated script', 'foreign script']
    """
    drawn = random.Random(seed)
    trainer = ("-m", "instep_trainer.train", "--checkpoint-every-disk", "25")
    compiling = ("--compile-seconds", str(COMPILE_SECONDS))
    evaluating = ("--evaluate-every", str(EVALUATION_EVERY), "--evaluate-batches", str(EVALUATION_BATCHES))
    marked, foreign = _pauses(drawn), (*_pauses(drawn), *_outages(drawn))
    slow_start = f"slow first step ({COMPILE_SECONDS:.0f} s and more)"
    return [
        Job(
            "soak-trainer",
            "annotated trainer",
            (*trainer, *evaluating, "--steps", str(TRAINER_STEPS)),
            f"{TRAINER_STEPS} steps, an evaluation every {EVALUATION_EVERY}, then its end",
            end=End.STEPS,
            seconds=75.0,
        ),
        _job(
            "soak-outages",
            "annotated trainer, parts go away",
            (*trainer, "--steps", "1000000"),
            "start",
            _outages(drawn),
            end=End.STOPPED,
        ),
        _job("soak-marked", "annotated script", (str(SCRIPTS / "annotated.py"), *compiling), slow_start, marked),
        _job("soak-foreign", "foreign script", (str(SCRIPTS / "foreign.py"), *compiling), slow_start, foreign),
    ]


def _job(
    run: str,
    title: str,
    script: tuple[str, ...],
    start: str,
    disturbances: tuple[Disturbance, ...],
    *,
    end: End = End.ASKED,
) -> Job:
    compile_seconds = COMPILE_SECONDS if "--compile-seconds" in script else 0.0
    seconds = START_SECONDS + compile_seconds + sum(disturbance.seconds for disturbance in disturbances)
    return Job(run, title, script, start, disturbances, end, seconds)


def _pauses(drawn: random.Random) -> tuple[Disturbance, ...]:
    first, second = drawn.randrange(WORLD_SIZE), drawn.randrange(WORLD_SIZE)
    pauses = [
        _pause("evaluation on every rank", "evaluation", 5.0),
        _pause(f"evaluation on rank {first} alone, the others wait", "evaluation", 5.0, ranks=[first]),
        _pause("checkpoint on rank 0, the others in a barrier", "checkpoint", 10.0),
        _pause("loader pause on every rank", "loader", 5.0),
        _pause(f"loader pause on rank {second} alone", "loader", 5.0, ranks=[second]),
        _pause("accumulation of 6 micro-steps, 30 steps", "accumulation", 0.0, micro_steps=6, steps=30),
    ]
    drawn.shuffle(pauses)
    return tuple(pauses)


def _pause(name: str, kind: str, seconds: float, **more: Any) -> Disturbance:
    return Disturbance(name, seconds, {"kind": kind, "seconds": seconds, **more})


def _outages(drawn: random.Random) -> tuple[Disturbance, ...]:
    outages = []
    for outage in Outage:
        node = drawn.choice(NODES) if outage.is_of_agent else ""
        name = f"{outage.value}{f' ({node})' if node else ''}"
        outages.append(Disturbance(name, OUTAGE_SECONDS, outage=outage, node=node))
    drawn.shuffle(outages)
    return tuple(outages)


def calm_seconds(jobs: list[Job], whole_seconds: float) -> float:
    """Return the calm after each disturbance that makes the whole as long as asked for, never less than the minimum."""
    disturbances = sum(len(job.disturbances) + 1 for job in jobs)
    return max(CALM_SECONDS_MIN, (whole_seconds - sum(job.seconds for job in jobs)) / disturbances)
