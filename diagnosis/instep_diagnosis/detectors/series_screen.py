"""Which of many series can hold a change of level at all: `series` looks closely at those alone.

A best fit with `k` changes of level gains the sum of length × (level − mean)² over its `k` + 1 stretches, and pays `k`
prices; so one stretch alone has more than half a price. Where no stretch has, there is no change: all stretches of all
series are looked at by a few passes over the array. Shapes: `T` times, `W` workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

PRICE_SHARE = 0.4
"""Of a price, which one stretch must reach. Half would do, but that the search leaves out starts by way of stretches
that may be too short to be used at the end of a series."""
COLUMNS = 256
"""Looked at together, so that they stay in a core's cache."""
MARGIN = 1.0
"""Standard errors by which autocorrelation is taken higher than it was measured."""
SIDE = 3
"""Samples on either side of one that is despiked."""


def can_change(rest_TW: Array, price: float, samples_min: int) -> Iterator[int]:
    """Columns in which a change may be found; NaN is left out of each. Columns of fewer than three levels are not."""
    known_TW = np.isfinite(rest_TW)
    count_W = known_TW.sum(axis=0)
    packed_TW = np.take_along_axis(rest_TW, np.argsort(~known_TW, axis=0, kind="stable"), axis=0)
    for count in np.unique(count_W[count_W >= 3 * samples_min]):
        columns = np.flatnonzero(count_W == count)
        for part in np.array_split(columns, -(-columns.size // COLUMNS)):
            found = _can_change(packed_TW[:count, part], price * np.log(count), samples_min)
            yield from part[found].tolist()


def _can_change(x_TW: Array, price: float, samples_min: int) -> npt.NDArray[np.bool_]:
    near_W = quiet(np.diff(x_TW, axis=0)) / np.sqrt(2.0)
    smooth_TW = despiked(x_TW, near_W)
    limit_W = np.minimum((2.0 * near_W) ** 2, long_run_variance(smooth_TW - np.median(smooth_TW, axis=0)))
    return np.asarray(_highest(smooth_TW, samples_min) > PRICE_SHARE * price * limit_W)


def quiet(values_TW: Array) -> Array:
    """[W]: noise around zero, by the median of magnitudes."""
    return np.maximum(1.4826 * np.median(np.abs(values_TW), axis=0), 1e-6)


def despiked(x_TW: Array, sigma_W: Array) -> Array:
    """Samples no further than three standard deviations from the median of the seven around them."""
    padded = np.pad(x_TW, ((SIDE, SIDE), (0, 0)), mode="edge")
    around_TW = median_of_seven([padded[place : place + len(x_TW)] for place in range(2 * SIDE + 1)])
    return np.clip(x_TW, around_TW - 3.0 * sigma_W, around_TW + 3.0 * sigma_W)


def median_of_seven(values: list[Array]) -> Array:
    """Place by place, by exchanges that leave the median in the middle (Devillard 1998): no sort of each seven."""
    v = list(values)
    for a, b in _EXCHANGES:
        v[a], v[b] = np.minimum(v[a], v[b]), np.maximum(v[a], v[b])
    return v[3]


_EXCHANGES = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))


def long_run_variance(rest_TW: Array) -> Array:
    """[W]: the variance that makes the mean of n samples uncertain by its n-th part, for a first-order process."""
    count = len(rest_TW)
    power_W = np.einsum("tw,tw->w", rest_TW, rest_TW)
    near_W = np.einsum("tw,tw->w", rest_TW[1:], rest_TW[:-1]) / np.where(power_W > 0.0, power_W, 1.0)
    rho_W = np.minimum(np.maximum(near_W, 0.0) + MARGIN / np.sqrt(count), 0.9)
    return np.asarray(np.maximum(power_W / count, 1e-12) * (1.0 + rho_W) / (1.0 - rho_W))


def _highest(x_TW: Array, samples_min: int) -> Array:
    """[W]: the most that one stretch has: length × (its mean − the mean of all)²."""
    total_TW = np.zeros((len(x_TW) + 1, x_TW.shape[1]))
    np.cumsum(x_TW - x_TW.mean(axis=0), axis=0, out=total_TW[1:])
    highest_W = np.zeros(x_TW.shape[1])
    for length in range(samples_min, len(x_TW)):
        apart_TW = total_TW[length:] - total_TW[:-length]
        most_W = np.maximum(apart_TW.max(axis=0), -apart_TW.min(axis=0))
        np.maximum(highest_W, most_W * most_W / length, out=highest_W)
    return highest_W
