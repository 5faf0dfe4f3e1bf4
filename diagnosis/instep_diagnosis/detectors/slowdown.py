"""The sequential test for slow ranks: is a rank slower than its peers by more than chance and habit explain?

For every rank, x is the logarithm of its work over the median of its peers, one value a step. The null is x ≤ k with
k = `offset_share` × log(`slowdown_ratio_min`), so a small lasting offset (rank 0 logs) is healthy. Every stretch that
ends now is scored z = (mean − k)·√n / σ, where σ is the noise of one step, raised by the lag-1 autocorrelation ρ to its
long-run value √((1+ρ)/(1−ρ)). The best stretch over z_min is a finding. It is the generalised
likelihood ratio test for a change of unknown time and size (Lai 1995): strong faults need few steps, weak ones more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.faint import hits, intermittent, may_have_changed, quiet_change
from instep_diagnosis.detectors.work import Array, peers_median
from instep_diagnosis.settings import StragglerSettings

_AUTOCORRELATION_MAX = 0.9
"""An estimate from some tens of steps says no more than that."""
_AUTOCORRELATION_MARGIN = 0.15
"""Standard error of ρ over 64 steps of four ranks, taken to the safe side: lasting noise looks like a slow rank."""
_LOG_RATIO_LIMIT = float(np.log(2.0))
_SIGMA_LIMIT = 3.0
"""One step weighs no more than the larger of twice as slow and three standard deviations. Where subtracting waits
leaves next to nothing of a peer's step, the logarithm is beyond 9, and a stretch's mean would be that step alone."""
_MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, for normal noise."""


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A rank's stretch of slow steps, ending with the newest."""

    column: int
    """The rank's column in the arrays."""
    start: int
    """First row of the stretch."""
    rows: tuple[int, ...]
    """Rows of the stretch in which the rank and a peer were observed."""
    ratio: float
    """Its work over that of its peers."""
    z: float
    is_ongoing: bool


def find_slowdowns(work_seconds_TR: Array, ratio_min: float, settings: StragglerSettings) -> list[Slowdown]:
    """Columns that are slower than their peers, slowest first; empty with too few steps or peers."""
    x_TR = np.log(work_seconds_TR) - np.log(peers_median(work_seconds_TR))
    null = settings.offset_share * float(np.log(ratio_min))
    found = []
    sigma = noise(x_TR, floor=settings.noise_ratio_min)
    for column in _may_be_slow(x_TR, null, sigma, settings):
        if slow := _best_stretch(x_TR[:, column], int(column), null, sigma, ratio_min, settings):
            found.append(slow)
    return sorted(found, key=lambda slow: -slow.ratio)


def find_faint_slowdowns(work_seconds_TR: Array, settings: StragglerSettings) -> list[Slowdown]:
    """Columns that are slower by a few per cent in a quiet job, or now and then; slowest first."""
    x_TR = np.log(work_seconds_TR) - np.log(peers_median(work_seconds_TR))
    sigma = noise(x_TR, floor=settings.quiet_noise_ratio_min)
    found: dict[int, Slowdown] = {}
    for column in may_have_changed(x_TR, sigma, settings):
        if (change := quiet_change(x_TR[:, column], sigma, settings)) is not None:
            found[int(column)] = _slowdown(x_TR, int(column), *change)
    hits_TR, single = hits(x_TR, settings)
    for column in np.flatnonzero(hits_TR.sum(axis=0) >= settings.hits_min):
        rows = intermittent(hits_TR, x_TR[:, column], int(column), settings)
        if rows is not None and int(column) not in found:
            z = float(np.median(x_TR[rows, column])) / max(single, settings.noise_ratio_min)
            found[int(column)] = _slowdown(x_TR, int(column), rows, z)
    return sorted(found.values(), key=lambda slow: -slow.ratio)


def _slowdown(x_TR: Array, column: int, rows: npt.NDArray[np.intp], z: float) -> Slowdown:
    is_ongoing = len(x_TR) - 1 - int(rows[-1]) <= 2 * int(np.max(np.diff(rows), initial=1))
    ratio = float(np.exp(np.median(x_TR[rows, column])))
    return Slowdown(column, int(rows[0]), tuple(map(int, rows)), ratio, z, is_ongoing)


def noise(x_TR: Array, *, floor: float) -> float:
    """Noise of one step, long-run: the standard deviation that makes the mean of n steps uncertain by noise/√n.

    From differences of neighbours and of next neighbours, which a change of level touches only once or twice. For a
    first-order process their mean squares are 2σ²(1−ρ) and 2σ²(1−ρ²), so that ρ is their ratio less one.
    """
    near, far = _mean_square_difference(x_TR, 1), _mean_square_difference(x_TR, 2)
    if near <= 0.0 or far <= 0.0:
        return floor
    estimate = min(_AUTOCORRELATION_MAX, max(0.0, far / near - 1.0))
    sigma = float(np.sqrt(near / (2.0 * (1.0 - estimate))))
    rho = min(_AUTOCORRELATION_MAX, estimate + _AUTOCORRELATION_MARGIN)
    return max(floor, sigma) * float(np.sqrt((1.0 + rho) / (1.0 - rho)))


def _mean_square_difference(x_TR: Array, lag: int) -> float:
    differences = (x_TR[lag:] - x_TR[:-lag]).ravel()
    differences = differences[np.isfinite(differences)]
    if differences.size == 0:
        return 0.0
    limit = 3.5 * _MAD_TO_SIGMA * float(np.median(np.abs(differences)))
    return float(np.mean(np.minimum(np.abs(differences), limit) ** 2))


def _may_be_slow(x_TR: Array, null: float, sigma: float, settings: StragglerSettings) -> npt.NDArray[np.intp]:
    """Columns that are worth a look by themselves: those whose test may fire, and those with gaps."""
    lengths_Tx = np.arange(1, len(x_TR) + 1)[:, None]
    limit = max(_LOG_RATIO_LIMIT, _SIGMA_LIMIT * sigma)
    means_TR = np.cumsum(np.clip(x_TR[::-1], -limit, limit), axis=0) / lengths_Tx
    z_R = ((means_TR - null) * np.sqrt(lengths_Tx) / sigma).max(axis=0)
    return np.flatnonzero(~(z_R < settings.z_min))  # with a gap it is NaN, which is not less


def _best_stretch(
    x_T: Array, column: int, null: float, sigma: float, ratio_min: float, settings: StragglerSettings
) -> Slowdown | None:
    rows = np.flatnonzero(np.isfinite(x_T))
    if rows.size < settings.steps_min:
        return None
    newest_first = x_T[rows][::-1]
    lengths = np.arange(1, rows.size + 1)
    limit = max(_LOG_RATIO_LIMIT, _SIGMA_LIMIT * sigma)
    means = np.cumsum(np.clip(newest_first, -limit, limit)) / lengths
    z = (means - null) * np.sqrt(lengths) / sigma
    z[: settings.run_steps_min - 1] = -np.inf
    n = int(np.argmax(z)) + 1
    stretch = newest_first[:n]
    is_slow = z[n - 1] >= settings.z_min and np.median(stretch) >= 0.9 * np.log(ratio_min)
    if not is_slow or np.mean(stretch > null) < settings.slowest_share_min:
        return None
    if n * float(np.median(stretch)) < settings.lost_work_min:
        return None
    recent = newest_first[: settings.run_steps_min]
    return Slowdown(
        column=column,
        start=int(rows[-n]),
        rows=tuple(int(row) for row in rows[-n:]),
        ratio=float(np.exp(np.median(stretch))),
        z=float(z[n - 1]),
        is_ongoing=bool(np.median(recent) > max(null, 0.5 * float(np.median(stretch)))),
    )
