"""What can be found at best: by one who knows the noise of the whole job, where a fault lies, and which rank to look
at. A slow rank that even he cannot tell from chance is lost in noise. Pure.

Shapes: `T` steps, `R` ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.work import Array, peers_median, step_arrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.simulation.scoring import BOUND_STEPS


def could_be_found(job: JobSteps, rank: int, slow_steps: Sequence[int], all_slow_steps: Sequence[int]) -> bool | None:
    """Whether the rank's mean over the slow steps within the bound is above that of every healthy stretch of as many
    steps of any rank of the job. None without a slow step that was observed.

    `all_slow_steps` are those of the other episodes too: no healthy stretch has one of them.
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
    return bool(slow_T.mean() > _most_by_chance(x_TR, is_healthy_T, slow_T.size))


def _most_by_chance(x_TR: Array, is_healthy_T: npt.NDArray[np.bool_], length: int) -> float:
    """The largest mean of so many healthy steps on end; minus infinity without such a stretch."""
    if length > len(x_TR):
        return float("-inf")
    healthy_TR = np.where(is_healthy_T[:, None], x_TR, np.nan)
    means = np.lib.stride_tricks.sliding_window_view(healthy_TR, length, axis=0).mean(axis=-1)
    known = means[np.isfinite(means)]
    return float(known.max(initial=float("-inf")))
