"""How unevenly real ranks work: recorded noise, and noise drawn from it.

`jitter.json` beside this module holds, for two kinds of work, the logarithm of each rank's own seconds of a step over
their median: `paced` (a timed wait, so that only the machine disturbs it), less what all ranks share in a step, and
`cpu` (fixed computing). It was recorded from real gloo steps by the command that stands in it. Shapes: `T` steps, `R`
ranks.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RECORDED = Path(__file__).with_name("jitter.json")
BLOCK_STEPS = 32
"""Noise is drawn in stretches of so many recorded steps, so that what lasts in it stays."""
KINDS = ("paced", "cpu")
USUAL_SIGMAS = 4.0
"""What lies farther out is no noise of every step, but something that happened once."""
GPU_SIGMA = 0.006
"""How unevenly GPUs work: standard deviation of the logarithm of a rank's work of one step, less its own level and what
all ranks share. 0.43 % and 0.57 % in the two published production traces of ByteDance-Seed/StragglerAnalysis, and next
to nothing of it lasts from one step to the next."""


@cache
def recorded(kind: str) -> Array:
    """Recorded noise of one kind of work, [T, R]: logarithms around 0."""
    return np.array(json.loads(RECORDED.read_text(encoding="utf-8"))[kind], dtype=np.float64).T


def noise(random: np.random.Generator, steps: int, ranks: int, *, kind: str = "paced") -> Array:
    """Noise of that kind for any number of steps and ranks, [T, R]: stretches of what was recorded, at random."""
    pool_TR = recorded(kind)
    blocks = -(-steps // BLOCK_STEPS)
    starts_BR = random.integers(len(pool_TR) - BLOCK_STEPS + 1, size=(blocks, ranks))
    sources_BR = random.integers(pool_TR.shape[1], size=(blocks, ranks))
    rows_BSR = starts_BR[:, None, :] + np.arange(BLOCK_STEPS)[None, :, None]
    drawn = pool_TR[rows_BSR, np.broadcast_to(sources_BR[:, None, :], rows_BSR.shape)]
    return np.asarray(drawn.reshape(-1, ranks)[:steps])


def scaled_noise(random: np.random.Generator, steps: int, ranks: int, *, sigma: float, kind: str = "paced") -> Array:
    """The same, as large as is asked for: `sigma` is the standard deviation of one step, outliers aside. These are what
    the machine did to single steps, and stay as long as they were."""
    typical = 1.4826 * float(np.median(np.abs(recorded(kind))))
    drawn_TR = noise(random, steps, ranks, kind=kind)
    usual_TR = np.clip(drawn_TR, -USUAL_SIGMAS * typical, USUAL_SIGMAS * typical)
    return np.asarray(usual_TR * (sigma / typical) + (drawn_TR - usual_TR))
