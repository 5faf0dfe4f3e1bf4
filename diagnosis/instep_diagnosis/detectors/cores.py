"""Is it the rank or its core? A slow core makes the same work take longer, and what it slows is no fault of the rank.

Neighbours that nobody on the node sees (other machines on the same processor) were seen to make one core 1.6 to 1.8
times as slow for up to some seconds, in CPU time too. The yardstick tells: a small computation that every rank makes
once a step, always the same. It becomes longer on a slow core, and not where a rank has more to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from instep_diagnosis.evidence import JobSteps

_STEPS_MIN = 3
"""Fewer timed steps tell nothing of a core: one of them is uncertain by a tenth."""
_PEERS_MAX = 16
"""Peers that stand for all."""
_SLOW_RATIO = 1.25
"""From here on a single yardstick is beyond its noise."""


@dataclass(frozen=True, slots=True)
class CoreSpeed:
    """What is known of a rank's core over some steps."""

    slowness: float = 0.0
    """Logarithm of what the yardstick took over what it took on the peers' cores; 0 where it was not observed."""
    slow_steps: frozenset[int] = frozenset()
    """Those in which the core was slow by itself: it may come and go from step to step."""
    seconds: float = 0.0
    """How long the steps took together."""


def core_speed(job: JobSteps, rank: int, steps: Collection[int]) -> CoreSpeed:
    """How fast a rank's core was in these steps, against those of its peers in the same ones.

    >>> from instep_agent.wire import StepReport
    >>> reports = {r: tuple(StepReport(step=s, wall_seconds=1.0, yardstick_seconds=t) for s in range(3))
    ...     for r, t in ((0, 4e-6), (1, 6e-6))}
    >>> speed = core_speed(JobSteps(job="j", run="r", attempt=0, steps=reports, nodes={}), 1, range(3))
    >>> round(speed.slowness, 2), sorted(speed.slow_steps), speed.seconds
    (0.41, [0, 1, 2], 3.0)
    """
    wanted = frozenset(steps)
    seconds = sum(step.wall_seconds for step in job.steps.get(rank, ()) if step.step in wanted)
    own = _yardsticks(job, rank, wanted)
    others = sorted(other for other in job.steps if other != rank)
    sampled = others[:: max(1, len(others) // _PEERS_MAX)][:_PEERS_MAX]
    levels = [_level(timed) for other in sampled if len(timed := _yardsticks(job, other, wanted)) >= _STEPS_MIN]
    if len(own) < _STEPS_MIN or not levels:
        return CoreSpeed(seconds=seconds)
    usual = float(np.median(levels))
    slow = frozenset(step for step, took in own.items() if took > _SLOW_RATIO * usual)
    return CoreSpeed(float(np.log(_level(own) / usual)), slow, seconds)


def _yardsticks(job: JobSteps, rank: int, wanted: frozenset[int]) -> Mapping[int, float]:
    rows = job.steps.get(rank, ())
    return {row.step: row.yardstick_seconds for row in rows if row.step in wanted and row.yardstick_seconds}


def _level(yardsticks: Mapping[int, float]) -> float:
    return float(np.median(list(yardsticks.values())))
