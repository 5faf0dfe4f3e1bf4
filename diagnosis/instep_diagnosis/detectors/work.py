"""Steps of all ranks as arrays, and what each rank itself worked in them.

Shapes: `T` steps, `R` ranks. NaN is *not observed*.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations, compress
from operator import attrgetter

import numpy as np
import numpy.typing as npt
from instep_agent.wire import StepReport

from instep_diagnosis.evidence import JobSteps

Array = npt.NDArray[np.float64]

_TOKENS_SPREAD_MIN = 0.01
"""Tokens that differ by less than this between rank-steps need no correction."""
_AHEAD_STEPS_MAX = 16
"""A rank may have finished so many steps more than any other."""
_FITTED_SHARE_MIN = 0.05
"""No step is taken to need less than this share of the average work for its tokens."""
_SECONDS_MIN = 1e-6
"""Least duration taken into a logarithm: below it a clock resolves nothing."""


@dataclass(frozen=True, slots=True)
class StepArrays:
    """The newest steps of a job, aligned by step number, one row per step that at least two ranks finished."""

    ranks: tuple[int, ...]
    steps: tuple[int, ...]
    own_seconds_TR: Array
    """Own work: wall time less waiting for peers, for a core, for data, for checkpoint and for evaluation; corrected
    for tokens where they vary. Below zero the parts overlap, and the least duration stands for it. Starvation that
    was not observed is not taken off."""
    wait_seconds_TR: Array
    cpu_seconds_TR: Array
    starved_seconds_TR: Array
    data_seconds_TR: Array
    tokens_seconds_TR: Array
    """What a step took beyond the average because of its tokens: own work was so much longer before it was corrected.
    Below zero for few tokens; 0 where they are equal."""


def step_arrays(job: JobSteps, *, window_steps: int) -> StepArrays | None:
    """The newest `window_steps` steps as arrays; None where no step was finished by two ranks.

    Starvation (time runnable without a core) is a property of the neighbours, so it is no work; where it was not
    observed nothing is subtracted for it.
    """
    ranks = tuple(sorted(rank for rank, rows in job.steps.items() if rows))
    if len(ranks) < 2:
        return None
    newest = [job.steps[rank][-window_steps - _AHEAD_STEPS_MAX :] for rank in ranks]
    rows = list(chain.from_iterable(newest))
    number_N = np.fromiter(map(attrgetter("step"), rows), np.int64, len(rows))
    column_N = np.repeat(np.arange(len(ranks)), [len(own) for own in newest])
    steps = _shared_steps(number_N, column_N, len(ranks), window_steps)
    if not steps.size:
        return None
    place_N = np.searchsorted(steps, number_N)
    is_in_N = (place_N < steps.size) & (steps[np.minimum(place_N, steps.size - 1)] == number_N)
    rows = list(compress(rows, is_in_N))
    columns_KTR = np.full((len(_FIELDS), steps.size, len(ranks)), np.nan)
    for k, name in enumerate(_FIELDS):
        # A list, because only that takes None for NaN.
        columns_KTR[k, place_N[is_in_N], column_N[is_in_N]] = np.array(list(map(attrgetter(name), rows)), dtype=float)
    wall, wait, cpu, starved, data, checkpoint, evaluation, tokens, squared = columns_KTR
    own = np.maximum(wall - wait - np.nan_to_num(starved) - (data + checkpoint + evaluation), _SECONDS_MIN)
    corrected = per_tokens(own, tokens, squared)
    return StepArrays(ranks, tuple(steps.tolist()), corrected, wait, cpu, starved, data, own - corrected)


_FIELDS = (
    *("wall_seconds", "wait_seconds", "cpu_seconds", "starved_seconds", "data_seconds"),
    *("checkpoint_seconds", "evaluation_seconds", "tokens", "tokens_squared"),
)


def _shared_steps(
    number_N: npt.NDArray[np.int64], column_N: npt.NDArray[np.int64], ranks: int, window_steps: int
) -> npt.NDArray[np.int64]:
    """The newest steps that two ranks or more have finished, in order."""
    numbers, inverse_N = np.unique(number_N, return_inverse=True)
    is_new_N = np.ones(len(number_N), bool)
    order_N = np.lexsort((inverse_N, column_N))
    is_new_N[order_N[1:]] = (np.diff(column_N[order_N]) != 0) | (np.diff(inverse_N[order_N]) != 0)
    counts = np.bincount(inverse_N[is_new_N], minlength=len(numbers))
    return np.asarray(numbers[counts >= 2][-window_steps:])


def own_seconds(step: StepReport) -> float:
    """One step's own work, as in `StepArrays` but for tokens; below zero where the parts overlap.

    >>> own_seconds(StepReport(step=1, wall_seconds=1.0, wait_seconds=0.25, starved_seconds=0.25))
    0.5
    """
    pauses = step.data_seconds + step.checkpoint_seconds + step.evaluation_seconds
    starved = step.starved_seconds or 0.0
    return step.wall_seconds - step.wait_seconds - (0.0 if np.isnan(starved) else starved) - pauses


def per_tokens(own_seconds_TR: Array, tokens_TR: Array, tokens_squared_TR: Array) -> Array:
    """Work as it would have been with the average tokens; unchanged where tokens are equal or not known.

    Fits own = a + b·tokens + c·tokens² with coefficients ≥ 0 over all ranks and steps, and divides by the fit's share.
    """
    is_known = np.isfinite(own_seconds_TR) & (tokens_TR > 0)
    if not is_known.any() or (np.isfinite(own_seconds_TR) & ~is_known).any():
        return own_seconds_TR
    tokens = tokens_TR[is_known]
    if np.ptp(tokens) <= _TOKENS_SPREAD_MIN * tokens.mean() and _is_even(tokens_squared_TR[is_known]):
        return own_seconds_TR
    features_FN = np.stack([np.ones_like(tokens), tokens / tokens.mean()])
    squared = tokens_squared_TR[is_known]
    if (squared > 0).all():
        features_FN = np.vstack([features_FN, squared / squared.mean()])
    fitted = _nonnegative_fit(features_FN, own_seconds_TR[is_known])
    corrected = own_seconds_TR.copy()
    corrected[is_known] = own_seconds_TR[is_known] * fitted.mean() / fitted
    return corrected


def _is_even(values: Array) -> bool:
    return bool(np.ptp(values) <= _TOKENS_SPREAD_MIN * max(1.0, float(values.mean())))


def _nonnegative_fit(features_FN: Array, own_N: Array) -> Array:
    """The fit with coefficients ≥ 0 that has the least squares of *relative* errors, since ranks are compared by ratio:
    else a slow rank's long steps bend it, and short steps pay. At least a twentieth of its mean."""
    plain_N = _least_squares(features_FN, own_N, np.ones_like(own_N))
    return _least_squares(features_FN, own_N, 1.0 / plain_N**2)


def _least_squares(features_FN: Array, own_N: Array, weight_N: Array) -> Array:
    """Weighted, coefficients ≥ 0: by trying every subset of at most three features."""
    weighted_FN = features_FN * weight_N
    gram_FF, target_F = weighted_FN @ features_FN.T, weighted_FN @ own_N
    best_F, best_gain = np.zeros(len(features_FN)), 0.0
    for size in range(1, len(features_FN) + 1):
        for chosen in map(list, combinations(range(len(features_FN)), size)):
            coefficients, *_ = np.linalg.lstsq(gram_FF[np.ix_(chosen, chosen)], target_F[chosen], rcond=None)
            gain = float(coefficients @ target_F[chosen])
            if (coefficients >= 0).all() and gain > best_gain * (1 + 1e-9):
                best_F, best_gain = np.zeros(len(features_FN)), gain
                best_F[chosen] = coefficients
    fitted_N = best_F @ features_FN
    return np.asarray(np.maximum(fitted_N, _FITTED_SHARE_MIN * fitted_N.mean()))


def peers_median(values_TR: Array) -> Array:
    """For each rank the median over the *other* ranks, per step; NaN where nobody else was observed.

    >>> peers_median(np.array([[1.0, 2.0, 4.0]]))
    array([[3. , 2.5, 1.5]])
    """
    others_TR = np.full_like(values_TR, np.nan)
    is_full_T = np.isfinite(values_TR).all(axis=1)
    if values_TR.shape[1] >= 2:
        others_TR[is_full_T] = _median_without_self(values_TR[is_full_T])
    for t in np.flatnonzero(~is_full_T):
        seen = np.flatnonzero(np.isfinite(values_TR[t]))
        if seen.size >= 2:
            others_TR[t, seen] = _median_without_self(values_TR[t : t + 1, seen])[0]
    return others_TR


def peers_median_of(values_TR: Array, column: int) -> Array:
    """One column of `peers_median`, without the work for all others.

    >>> peers_median_of(np.array([[1.0, 2.0, 4.0]]), 1)
    array([2.5])
    """
    others_TR = np.delete(values_TR, column, axis=1)
    if others_TR.shape[1] and np.isfinite(values_TR).all():
        return np.asarray(np.median(others_TR, axis=1, overwrite_input=True))
    return np.asarray(peers_median(values_TR)[:, column])


def _median_without_self(values_TR: Array) -> Array:
    """By one sort per row: leaving out a value moves the middle by one place or not at all. Of equal values it does
    not matter which one is left out."""
    ordered_TR = np.sort(values_TR, axis=1)
    others = values_TR.shape[1] - 1
    low, high = (others - 1) // 2, others // 2
    return np.asarray((_without_self(ordered_TR, values_TR, low) + _without_self(ordered_TR, values_TR, high)) / 2)


def _without_self(ordered_TR: Array, values_TR: Array, middle: int) -> Array:
    """The value at `middle` of the row without the value itself, for every value of the row."""
    here_Tx, next_Tx = ordered_TR[:, middle, None], ordered_TR[:, middle + 1, None]
    return np.where(values_TR <= here_Tx, next_Tx, here_Tx)
