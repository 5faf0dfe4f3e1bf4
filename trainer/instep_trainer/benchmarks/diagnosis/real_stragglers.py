"""Slow ranks of small real jobs: steps are taken from the ranks' records, as the server takes them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from instep_diagnosis.simulation.programs import STEPS as PROGRAM_STEPS
from instep_diagnosis.simulation.programs import training
from instep_diagnosis.simulation.scoring import Case, watch_steps

from instep_trainer.benchmarks.diagnosis.paced_rank import Plan, Slowness
from instep_trainer.benchmarks.diagnosis.real_jobs import real_job

WARM_UP_STEPS = 20
HEALTHY_STEPS = 40
SLOW_STEPS = 28
EPISODES = 4
"""Of a job; every other one is healthy."""
RATIOS = {"paced": (1.05, 1.1, 1.2, 1.5), "cpu": (1.2, 1.3, 1.5)}
WORK_SECONDS = {"paced": 0.04, "cpu": 0.03}
LAYOUTS = ("ddp", "fsdp", "tp")


def real_stragglers(seed: int, kind: str, jitter: Any) -> Iterator[Case]:
    """The episodes of one job: some healthy steps each, then some in which a rank is slow, or none is."""
    random = Random(f"real stragglers {seed}")
    # Computing needs a core for each rank; waiting needs none.
    job = training(random, world_size_max=2 if kind == "cpu" else 4, layout=random.choice(LAYOUTS))
    programs = tuple(program[: len(program) // PROGRAM_STEPS] for program in job.programs)
    length = HEALTHY_STEPS + SLOW_STEPS
    steps = WARM_UP_STEPS + EPISODES * length
    slow = [_episode(random, kind, number, length, len(programs)) for number in range(EPISODES)]
    factors = jitter(random.randrange(1 << 30), steps, len(programs)) if kind == "paced" else None
    even = [[WORK_SECONDS[kind]] * len(programs)] * steps
    rows = even if factors is None else (WORK_SECONDS[kind] * factors).tolist()
    plan = Plan(
        job.groups, programs, steps, rows, slow=tuple(s for s in slow if s.ratio > 1), is_cpu_bound=kind == "cpu"
    )
    base: Case = {"kind": f"straggler-{kind}", "seed": seed, "layout": job.layout, "world_size": len(programs)}
    with real_job(plan) as running:
        outcome = running.wait()
        if outcome != "done":
            yield base | {"outcome": outcome if isinstance(outcome, str) else "false hang", "truth": []}
            return
        whole = running.job_steps()
    for item in slow:
        is_slow = item.ratio > 1
        first = item.first - HEALTHY_STEPS
        yield base | {
            "fault": "slow" if is_slow else "healthy",
            "ratio": item.ratio,
            "truth": [item.rank] if is_slow else [],
            **watch_steps(
                whole, range(first + 1, item.last + 2), onset=item.first + 1, rank=item.rank if is_slow else None
            ),
        }


def _episode(random: Random, kind: str, number: int, length: int, ranks: int) -> Slowness:
    first = WARM_UP_STEPS + number * length + HEALTHY_STEPS
    ratio = random.choice(RATIOS[kind]) if number % 2 else 1.0
    return Slowness(random.randrange(ranks), ratio, first, first + SLOW_STEPS - 1)
