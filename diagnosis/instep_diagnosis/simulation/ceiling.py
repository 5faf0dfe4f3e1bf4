"""What can be found at best: by one who knows the noise of the whole job, where a fault lies, and which rank to look
at. A slow rank that even he cannot tell from chance is lost in noise. Pure.

Shapes: `T` steps, `R` ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.levels import MAD_TO_SIGMA
from instep_diagnosis.detectors.work import Array, peers_median, step_arrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.simulation.scoring import BOUND_STEPS

LIMIT_SIGMAS = 1.5
"""Beyond so many standard deviations a step weighs no more (Huber 1964)."""


def could_be_found(job: JobSteps, rank: int, slow_steps: Sequence[int], all_slow_steps: Sequence[int]) -> bool | None:
    """Whether the rank's level in the slow steps within the bound is above that of every healthy stretch of as many
    steps of any rank of the job. None without a slow step that was observed.

    A level is a mean in which outliers are limited, as single long steps would hide everything else. `all_slow_steps`
    are those of the other episodes too: no healthy stretch has one of them.
    """
    arrays = step_arrays(job, window_steps=max(map(len, job.steps.values()), default=0))
    if arrays is None or rank not in arrays.ranks or not slow_steps:
        return None
    steps = np.array(arrays.steps)
    is_healthy_T = ~np.isin(steps, all_slow_steps)
    x_TR = np.log(arrays.own_seconds_TR) - np.log(peers_median(arrays.own_seconds_TR))
    x_TR -= np.nanmedian(x_TR[is_healthy_T], axis=0)
    within = [step for step in slow_steps if step < slow_steps[0] + BOUND_STEPS]
    slow_T = x_TR[np.isin(steps, within), arrays.ranks.index(rank)]
    if not slow_T.size or not np.isfinite(slow_T).all():
        return None
    limit = LIMIT_SIGMAS * MAD_TO_SIGMA * float(np.nanmedian(np.abs(x_TR[is_healthy_T])))
    chance = _levels(_healthy_stretches(x_TR, is_healthy_T, slow_T.size), limit)
    return bool(_levels(slow_T[None], limit)[0] > chance.max(initial=float("-inf")))


def _healthy_stretches(x_TR: Array, is_healthy_T: npt.NDArray[np.bool_], length: int) -> Array:
    """All stretches of so many healthy steps on end, one a row."""
    if length > len(x_TR):
        return np.empty((0, length))
    healthy_TR = np.where(is_healthy_T[:, None], x_TR, np.nan)
    stretches = np.lib.stride_tricks.sliding_window_view(healthy_TR, length, axis=0).reshape(-1, length)
    return np.asarray(stretches[np.isfinite(stretches).all(axis=1)])


def _levels(stretches: Array, limit: float) -> Array:
    """Of each row: the mean, of what is farther than `limit` from the median no more than that."""
    middles = np.median(stretches, axis=1, keepdims=True)
    return np.asarray((middles + np.clip(stretches - middles, -limit, limit)).mean(axis=1))
