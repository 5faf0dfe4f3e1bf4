"""Slow ranks that the test of `slowdown` leaves out: a few per cent in a quiet job, and slowness that comes and goes.

x is the logarithm of a rank's work over the median of its peers, one value a step; the shape is [T, R].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.work import Array
from instep_diagnosis.settings import StragglerSettings

_MAD_TO_SIGMA = 1.4826
_NULL_SHARE = 0.4
"""Share of the smallest change that a healthy rank's level may move by."""


def quiet_change(x_T: Array, sigma: float, settings: StragglerSettings) -> tuple[npt.NDArray[np.intp], float] | None:
    """Rows of a stretch that ends now and lies a little above the rank's own level before, and its z; None without.

    Only in jobs so quiet that a change of a few per cent is no chance (`sigma`, long-run), and only against the rank's
    own earlier steps of the window: a small *lasting* offset is a habit.
    """
    rows = np.flatnonzero(np.isfinite(x_T))
    least = settings.run_steps_min
    if sigma > settings.quiet_noise_ratio_max or rows.size < 2 * least:
        return None
    x = np.clip(x_T[rows], -0.7, 0.7)
    total = np.concatenate([[0.0], np.cumsum(x)])
    starts = np.arange(least, rows.size - least + 1)
    before = total[starts] / starts
    after = (total[-1] - total[starts]) / (rows.size - starts)
    step = float(np.log(settings.quiet_ratio_min))
    error = sigma * np.sqrt(1.0 / starts + 1.0 / (rows.size - starts))
    z = (after - before - _NULL_SHARE * step) / error
    best = int(np.argmax(z))
    stretch = x[starts[best] :]
    change = float(np.median(stretch)) - float(np.median(x[: starts[best]]))
    is_slow = min(change, float(np.median(stretch))) >= 0.9 * step and z[best] >= settings.z_min
    lost_min = settings.lost_work_min * step / float(np.log(settings.slowdown_ratio_min))
    if not is_slow or stretch.size * change < lost_min:
        return None
    if np.mean(stretch - before[best] > _NULL_SHARE * step) < settings.slowest_share_min:
        return None
    return rows[starts[best] :], float(z[best])


def may_have_changed(x_TR: Array, sigma: float, settings: StragglerSettings) -> npt.NDArray[np.intp]:
    """Columns worth a call of `quiet_change`: all at once for those without gaps, since a large job has thousands."""
    count, least = len(x_TR), settings.run_steps_min
    if sigma > settings.quiet_noise_ratio_max or count < 2 * least:
        return np.zeros(0, dtype=np.intp)
    has_gaps_R = ~np.isfinite(x_TR).all(axis=0)
    total = np.concatenate([np.zeros((1, x_TR.shape[1])), np.cumsum(np.clip(np.nan_to_num(x_TR), -0.7, 0.7), axis=0)])
    starts = np.arange(least, count - least + 1)[:, None]
    change = (total[-1] - total[starts[:, 0]]) / (count - starts) - total[starts[:, 0]] / starts
    null = _NULL_SHARE * float(np.log(settings.quiet_ratio_min))
    z = (change - null) / (sigma * np.sqrt(1.0 / starts + 1.0 / (count - starts)))
    return np.flatnonzero(has_gaps_R | (z.max(axis=0) >= settings.z_min))


def hits(x_TR: Array, settings: StragglerSettings) -> tuple[npt.NDArray[np.bool_], float]:
    """The rank-steps that are slow by themselves, and the noise of one."""
    known_TR = np.isfinite(x_TR)
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(x_TR[known_TR]))) if known_TR.any() else 0.0
    limit = max(settings.hit_sigmas * sigma, float(np.log(settings.hit_ratio_min)))
    return known_TR & (np.nan_to_num(x_TR) > limit), sigma


def intermittent(
    hits_TR: npt.NDArray[np.bool_], x_T: Array, column: int, settings: StragglerSettings
) -> npt.NDArray[np.intp] | None:
    """Rows in which one rank was slow by itself, now and then; None without.

    Each step is tested alone and the steps vote: often enough, in several short runs, and nearly only this rank. A job
    whose ranks all have such steps is a noisy one, and a few long runs are neighbours that come and go.
    """
    own_T = hits_TR[:, column]
    rows = np.flatnonzero(own_T)
    others = (hits_TR.sum() - rows.size) / max(1, hits_TR.shape[1] - 1)
    runs = int(np.sum(np.diff(np.concatenate([[0], own_T.astype(int)])) == 1))
    is_often = rows.size >= settings.hits_min and runs >= settings.hit_runs_min
    is_short = rows.size <= settings.hit_run_steps_max * runs
    if not (is_often and is_short) or others > settings.hit_peers_share * rows.size:
        return None
    lost = float(np.clip(x_T[rows], 0.0, 0.7).sum())
    return rows if lost >= settings.lost_work_min else None
