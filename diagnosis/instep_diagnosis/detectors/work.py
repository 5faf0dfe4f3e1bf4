"""Steps of all ranks as arrays, and what each rank itself worked in them.

Shapes: `T` steps, `R` ranks. NaN is *not observed*.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from instep_agent.wire import StepReport

from instep_diagnosis.evidence import JobSteps

Array = npt.NDArray[np.float64]

_TOKENS_SPREAD_MIN = 0.01
"""Tokens that differ by less than this between rank-steps need no correction."""
_SECONDS_MIN = 1e-6
"""Least duration taken into a logarithm: below it a clock resolves nothing."""


@dataclass(frozen=True, slots=True)
class StepArrays:
    """The newest steps of a job, aligned by step number, one row per step that at least two ranks finished."""

    ranks: tuple[int, ...]
    steps: tuple[int, ...]
    own_seconds_TR: Array
    """Own work: wall time less waiting for peers, for a core, for data, for checkpoint and for evaluation; corrected
    for tokens where they vary."""
    wait_seconds_TR: Array
    cpu_seconds_TR: Array
    starved_seconds_TR: Array
    data_seconds_TR: Array


def step_arrays(job: JobSteps, *, window_steps: int) -> StepArrays | None:
    """The newest `window_steps` steps as arrays; None where no step was finished by two ranks.

    Starvation (time runnable without a core) is a property of the neighbours, so it is no work; where it was not
    observed nothing is subtracted for it.
    """
    ranks = tuple(sorted(rank for rank, rows in job.steps.items() if rows))
    counts: dict[int, int] = {}
    for rank in ranks:
        for number in {row.step for row in job.steps[rank]}:
            counts[number] = counts.get(number, 0) + 1
    steps = tuple(sorted(number for number, count in counts.items() if count >= 2)[-window_steps:])
    if not steps or len(ranks) < 2:
        return None
    index = {number: t for t, number in enumerate(steps)}
    columns_KTR = np.full((7, len(steps), len(ranks)), np.nan)
    for r, rank in enumerate(ranks):
        for row in job.steps[rank]:
            if row.step in index:
                cpu_time, queued = _observed(row.cpu_seconds), _observed(row.starved_seconds)
                columns_KTR[:, index[row.step], r] = (
                    own_seconds(row), row.wait_seconds, cpu_time, queued, row.data_seconds, row.tokens,
                    row.tokens_squared,
                )  # fmt: skip
    own, wait, cpu, starved, data, tokens, squared = columns_KTR
    corrected = per_tokens(np.maximum(own, _SECONDS_MIN), tokens, squared)
    return StepArrays(ranks, steps, corrected, wait, cpu, starved, data)


def _observed(value: float | None) -> float:
    return np.nan if value is None else value


def own_seconds(step: StepReport) -> float:
    """A step's wall time less waiting for peers, for a core and for data, and less checkpoint and evaluation.

    Below zero where the parts overlap. Starvation that was not observed is not taken off.

    >>> own_seconds(StepReport(step=1, wall_seconds=1.0, wait_seconds=0.25, starved_seconds=0.25))
    0.5
    """
    pauses = step.data_seconds + step.checkpoint_seconds + step.evaluation_seconds
    return step.wall_seconds - step.wait_seconds - _or_zero(step.starved_seconds) - pauses


def _or_zero(seconds: float | None) -> float:
    return 0.0 if seconds is None or np.isnan(seconds) else seconds


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
    corrected[is_known] = own_seconds_TR[is_known] * fitted.mean() / np.maximum(fitted, 0.05 * fitted.mean())
    return corrected


def _is_even(values: Array) -> bool:
    return bool(np.ptp(values) <= _TOKENS_SPREAD_MIN * max(1.0, float(values.mean())))


def _nonnegative_fit(features_FN: Array, own_N: Array) -> Array:
    """The least-squares fit with coefficients ≥ 0, by trying every subset of at most three features."""
    best, best_error = np.full_like(own_N, own_N.mean()), float(np.var(own_N)) * own_N.size
    for size in range(1, len(features_FN) + 1):
        for chosen in combinations(range(len(features_FN)), size):
            part_FN = features_FN[list(chosen)]
            coefficients, *_ = np.linalg.lstsq(part_FN.T, own_N, rcond=None)
            fitted = coefficients @ part_FN
            error = float(np.sum((own_N - fitted) ** 2))
            if (coefficients >= 0).all() and error < best_error * (1 - 1e-9):
                best, best_error = fitted, error
    return best


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


def _median_without_self(values_TR: Array) -> Array:
    """By one sort per row: leaving out a value moves the middle by one place or not at all."""
    ordered_TR = np.sort(values_TR, axis=1)
    place_TR = np.argsort(np.argsort(values_TR, axis=1, kind="stable"), axis=1, kind="stable")
    others = values_TR.shape[1] - 1
    low, high = (others - 1) // 2, others // 2
    return np.asarray((_pick(ordered_TR, place_TR, low) + _pick(ordered_TR, place_TR, high)) / 2)


def _pick(ordered_TR: Array, place_TR: npt.NDArray[np.intp], middle: int) -> Array:
    """The value at `middle` of the row without the value itself, for every value of the row."""
    return np.take_along_axis(ordered_TR, middle + (place_TR <= middle), axis=1)
