"""Levels of a noisy series and how sure they are: noise of real steps comes in bursts, lasts, and has heavy tails.

What was recorded on shared cores: single steps of 1.5 times the work in runs of one to eight (a neighbour on the same
physical core), and noise whose correlation fades over ten steps and more, so that the mean of 16 steps is two to three
times as uncertain as independent steps would make it. Hence a location that bursts do not move (Huber 1964) and a
long-run variance from the series' own autocorrelation (Newey and West 1987). One value a step; pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instep_diagnosis.detectors.work import Array

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, for normal noise."""
_LOCATION_SIGMAS, _NOISE_SIGMAS = 1.5, 2.0
"""Beyond so many standard deviations a step weighs no more in a location, and in its noise."""
_LAGS = 8
_WEIGHTS = 1.0 - np.arange(1, _LAGS + 1) / (_LAGS + 1)
_CORRELATION_MARGIN = 0.05
"""Added to each autocorrelation: about its bias from some forty steps whose own level was taken off."""
_CORRELATION_MAX = 0.95
_FEW_STEPS = 4.0
"""An estimate from n steps is taken to be too small by this over n: a stretch of eight knows its noise badly."""
_FACTOR_MIN = 1.5
"""Least ratio of the long-run variance to that of one step: even quiet real jobs showed no less."""


def median(x_T: Array) -> float:
    """The median of a few values that are all known: eight times as fast as NumPy's, which looks for NaN.

    >>> median(np.array([3.0, 1.0, 2.0, 9.0]))
    2.5
    """
    ordered_T = np.sort(x_T)
    count = len(ordered_T)
    return float(ordered_T[(count - 1) // 2] + ordered_T[count // 2]) / 2.0


def location(x_T: Array, scale: float) -> float:
    """The middle of the values: the mean of what lies near the median, and no more than that of what does not.

    >>> location(np.array([1.0, 1.0, 1.0, 9.0]), 0.0)
    1.0
    """
    middle = median(x_T)
    limit = _LOCATION_SIGMAS * scale
    return middle + float(np.clip(x_T - middle, -limit, limit).sum()) / len(x_T)


def scale_of(residuals: Sequence[Array], floor: float) -> float:
    """Standard deviation of one step, outliers aside; at least `floor`."""
    return max(floor, MAD_TO_SIGMA * median(np.abs(np.concatenate(residuals))))


def long_run_noise(residuals: Sequence[Array], floor: float) -> float:
    """The standard deviation that makes the location of n steps uncertain by it over √n.

    `residuals` are stretches of the series, each less its own level; `floor` is the least noise of one step.
    """
    scale = scale_of(residuals, floor)
    limited = [np.clip(part, -_NOISE_SIGMAS * scale, _NOISE_SIGMAS * scale) for part in residuals]
    whole = np.concatenate(limited)
    variance = float(np.mean(whole**2))
    if variance <= 0.0:
        return scale * float(np.sqrt(_FACTOR_MIN))
    factor = max(_FACTOR_MIN, 1.0 + 2.0 * float(_WEIGHTS @ _correlations(limited, variance)))
    near = max(0.5, float(np.mean(np.abs(whole) < _NOISE_SIGMAS * scale)))
    few = 1.0 + _FEW_STEPS / len(whole)
    return max(floor, float(np.sqrt(variance)) / near) * float(np.sqrt(factor)) * few


def _correlations(parts: Sequence[Array], variance: float) -> Array:
    """Autocorrelations by lag, to the safe side; lags longer than the series have none."""
    found = np.zeros(_LAGS)
    for lag in range(1, _LAGS + 1):
        count = sum(max(0, len(part) - lag) for part in parts)
        if count:
            total = sum(float(part[lag:] @ part[:-lag]) for part in parts if len(part) > lag)
            found[lag - 1] = min(_CORRELATION_MAX, total / count / variance)
    return found + _CORRELATION_MARGIN
