"""What a slow rank costs, from sums alone: the what-if model where only each rank's seconds of each step are known.

The whole job waits for its slowest rank in every step. If a rank had done its work as fast as its peers, the step would
have ended when the next slowest was done; that difference, times all ranks that waited, is what the rank has cost.
Shapes: `T` steps, `R` ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepCost:
    """What some ranks have cost together."""

    saved_seconds: float
    """By how much the steps would have been shorter, all together."""
    gpu_seconds: float
    """The same times the ranks of the job: the GPU time that went by waiting."""
    slowdown: float
    """Seconds of the steps as they were over those as they would have been; NaN where no step is known."""
    steps: int
    """Steps that could be judged: those in which a suspect and a peer were observed."""


def cost_of(
    suspects: Sequence[int],
    work_seconds_TR: ArrayLike,
    *,
    peers_R: Sequence[int] | None = None,
    step_seconds_T: ArrayLike | None = None,
) -> StepCost:
    """What the ranks in these columns cost by their own work: it is replaced by their peers' median, step by step.

    `work_seconds_TR` are seconds of own work before the point where all wait (compute, data, its own stalls; never
    waits); NaN where a rank was not observed, which neither costs nor saves. `peers_R` gives every column's role (its
    stage): peers are the columns of the same role that are no suspects, and a suspect without peers costs nothing. A
    pipeline's stages do different work, so each role is looked at alone, and the largest gain among them counts. A rank
    that was faster than its peers costs nothing in that step. `step_seconds_T`, where known, bounds what a step can
    save and is what the slowdown refers to; else the slowest rank's work is.

    >>> cost = cost_of([2], [[1.0, 1.0, 1.5], [1.0, 1.2, 1.5]])
    >>> round(cost.saved_seconds, 3), round(cost.gpu_seconds, 3), cost.steps
    (0.8, 2.4, 2)
    """
    work_TR = np.array(work_seconds_TR, dtype=np.float64)
    if work_TR.ndim != 2 or (len(suspects) and not 0 <= min(suspects) <= max(suspects) < work_TR.shape[1]):
        raise ValueError("work_seconds_TR holds steps by ranks, and suspects are columns of it.")
    work_TR[~(np.isfinite(work_TR) & (work_TR >= 0))] = np.nan
    roles_R = np.zeros(work_TR.shape[1], dtype=int) if peers_R is None else np.asarray(peers_R)
    if roles_R.shape != work_TR.shape[1:]:
        raise ValueError("peers_R names one role for each column of work_seconds_TR.")
    is_suspect_R = np.zeros(work_TR.shape[1], dtype=bool)
    is_suspect_R[list(suspects)] = True
    ideal_TR = _ideal(work_TR, is_suspect_R, roles_R)
    base_T = _slowest(work_TR)
    length_T = base_T if step_seconds_T is None else np.asarray(step_seconds_T, dtype=np.float64)
    if length_T.shape != base_T.shape:
        raise ValueError("step_seconds_T holds one number for each row of work_seconds_TR.")
    length_T = np.where(np.isfinite(length_T) & (length_T > 0), length_T, base_T)
    saved_T = np.minimum(_saved(work_TR, ideal_TR, roles_R), length_T)
    is_judged_T = (np.isfinite(ideal_TR) & is_suspect_R).any(axis=1)
    saved_T = np.where(is_judged_T, saved_T, 0.0)
    saved, whole = float(saved_T.sum()), float(length_T[is_judged_T].sum())
    slowdown = whole / (whole - saved) if whole > saved else math.nan
    return StepCost(saved, saved * work_TR.shape[1], slowdown, int(is_judged_T.sum()))


def _ideal(work_TR: Array, is_suspect_R: NDArray[np.bool_], roles_R: NDArray[np.int_]) -> Array:
    """Work with that of suspects at their peers' median where it was more; NaN for a suspect without peers."""
    ideal_TR = work_TR.copy()
    for role in np.unique(roles_R[is_suspect_R]):
        is_peer_R = (roles_R == role) & ~is_suspect_R
        column = np.flatnonzero((roles_R == role) & is_suspect_R)
        peers_T = _median(work_TR[:, is_peer_R])
        own_TR = work_TR[:, column]
        ideal_TR[:, column] = np.where(np.isnan(own_TR), np.nan, np.minimum(own_TR, peers_T[:, None]))
        ideal_TR[np.ix_(np.isnan(peers_T), column)] = np.nan
    return ideal_TR


def _median(values_TR: Array) -> Array:
    """Median of each row over what was observed; NaN in a row of which nothing was."""
    is_seen_T = np.isfinite(values_TR).any(axis=1) if values_TR.shape[1] else np.zeros(len(values_TR), dtype=bool)
    median_T = np.full(len(values_TR), np.nan)
    if is_seen_T.any():
        median_T[is_seen_T] = np.nanmedian(values_TR[is_seen_T], axis=1)
    return median_T


def _slowest(work_TR: Array) -> Array:
    """The longest work of each step; 0 where nothing was observed."""
    slowest: Array = np.max(np.nan_to_num(work_TR), axis=1, initial=0.0)
    return slowest


def _saved(work_TR: Array, ideal_TR: Array, roles_R: NDArray[np.int_]) -> Array:
    """By how much the slowest of the roles comes sooner: the largest gain among them."""
    saved_T = np.zeros(len(work_TR))
    known_TR = np.where(np.isnan(ideal_TR), work_TR, ideal_TR)
    for role in np.unique(roles_R):
        is_role_R = roles_R == role
        saved_T = np.maximum(saved_T, _slowest(work_TR[:, is_role_R]) - _slowest(known_TR[:, is_role_R]))
    return saved_T
