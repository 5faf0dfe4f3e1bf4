"""Ranks that are slow now and then: single steps are tested by themselves, and those that stand out vote.

x is the logarithm of a rank's work over the median of its peers, one value a step; the shape is [T, R].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.levels import MAD_TO_SIGMA
from instep_diagnosis.detectors.slowdown import Slowdown
from instep_diagnosis.detectors.work import Array, peers_median
from instep_diagnosis.settings import StragglerSettings

_HITS_MANY = 6
"""So many may be rare, …"""
_RARE_CHANCE = 1e-5
"""… if single long steps that fall on one rank or another (compiling) would fall on one of them as often no oftener
than this."""
_SILENCE_MAX = 4.0
"""A fault that still goes on is silent for so many of its mean gaps once in e⁴ = 55 times."""
_OVER_MIN = 12.0
"""One that was silent for so many was over: what comes then is something else."""

Hits = npt.NDArray[np.bool_]


def find_intermittent(work_seconds_TR: Array, settings: StragglerSettings) -> list[Slowdown]:
    """Columns that are slow in some steps only, slowest first."""
    x_TR = np.log(work_seconds_TR) - np.log(peers_median(work_seconds_TR))
    hits_TR, sigma = hits(x_TR, settings)
    found = []
    for column in np.flatnonzero(hits_TR.sum(axis=0) >= settings.hits_min):
        rows = intermittent(hits_TR, x_TR[:, column], int(column), settings)
        if rows is not None and _is_longer_itself(np.log(work_seconds_TR[:, column]), x_TR[:, column], rows):
            found.append(_slowdown(x_TR, int(column), rows, max(sigma, settings.noise_ratio_min)))
    return sorted(found, key=lambda slow: -slow.ratio)


def _slowdown(x_TR: Array, column: int, rows: npt.NDArray[np.intp], sigma: float) -> Slowdown:
    typical = float(np.median(x_TR[rows, column]))
    rate = rows.size / (int(rows[-1]) - int(rows[0]) + 1)
    age = len(x_TR) - 1 - int(rows[-1])
    return Slowdown(
        column=column,
        start=int(rows[0]),
        rows=tuple(map(int, rows)),
        ratio=float(np.exp(typical)),
        z=typical / sigma,
        is_ongoing=age * rate <= _SILENCE_MAX,
    )


def _is_longer_itself(own_T: Array, x_T: Array, rows: npt.NDArray[np.intp]) -> bool:
    """Whether its slow steps are longer than its others, by half of what it is slower than its peers in them: else it
    is they who were faster."""
    others_T = np.delete(own_T, rows)
    others_T = others_T[np.isfinite(others_T)]
    if others_T.size == 0:
        return False
    return float(np.median(own_T[rows]) - np.median(others_T)) >= 0.5 * float(np.median(x_T[rows]))


def hits(x_TR: Array, settings: StragglerSettings) -> tuple[Hits, float]:
    """The rank-steps that are slow by themselves, and the noise of one."""
    known_TR = np.isfinite(x_TR)
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(x_TR[known_TR]))) if known_TR.any() else 0.0
    limit = max(settings.hit_sigmas * sigma, float(np.log(settings.hit_ratio_min)))
    return known_TR & (np.nan_to_num(x_TR) > limit), sigma


def intermittent(hits_TR: Hits, x_T: Array, column: int, settings: StragglerSettings) -> npt.NDArray[np.intp] | None:
    """Rows in which one rank was slow by itself, now and then; None without.

    The fault may have begun at any of the slow steps: from that one on they must come more often than elsewhere in the
    job by more than chance, in short runs, and nearly only on this rank. A job whose ranks all have such steps is a
    noisy one, and a few long runs are neighbours that come and go.
    """
    own_T = hits_TR[:, column]
    rows = np.flatnonzero(own_T)
    others = (hits_TR.sum() - rows.size) / max(1, hits_TR.shape[1] - 1)
    if others > settings.hit_peers_share * rows.size:
        return None
    for place, first in enumerate(rows[: rows.size - settings.hits_min + 1]):
        chosen = rows[place:]
        if _was_over(chosen, settings) or not _is_now_and_then(hits_TR[first:], chosen, settings):
            continue
        evidence = _evidence(hits_TR, column, int(first)) / _mean_run(hits_TR)
        lost = float(np.clip(x_T[chosen], 0.0, 0.7).sum())
        if evidence >= settings.hit_evidence_min and lost >= settings.lost_work_min:
            return chosen
    return None


def _is_now_and_then(hits_TR: Hits, rows: npt.NDArray[np.intp], settings: StragglerSettings) -> bool:
    """`hits_TR` are all slow steps since the first of `rows`, those of one rank."""
    runs, length = 1 + int(np.sum(np.diff(rows) > 1)), len(hits_TR)
    is_rare = rows.size >= _HITS_MANY and chance_of(rows.size, int(hits_TR.sum()), hits_TR.shape[1]) <= _RARE_CHANCE
    is_short = rows.size <= settings.hit_run_steps_max * runs
    is_often = rows.size >= settings.hit_rate_min * length
    return runs >= 2 and (is_often or is_rare) and is_short and length >= settings.run_steps_min


def _was_over(rows: npt.NDArray[np.intp], settings: StragglerSettings) -> bool:
    """Whether a fault ended between two of the slow steps: they came far oftener before. A single long step later is
    not its return."""
    rates = np.arange(1, rows.size) / (rows[:-1] - rows[0] + 1)
    return bool((np.diff(rows) * rates > _OVER_MIN)[settings.hits_min - 1 :].any())


def chance_of(own: int, whole: int, ranks: int) -> float:
    """How likely one of the ranks has so many of all slow steps, where each falls on any of them (Chernoff's bound).

    >>> round(chance_of(10, 10, 4), 7), round(chance_of(3, 12, 4), 1)
    (3.8e-06, 4.0)
    """
    share, usual = own / whole, 1.0 / ranks
    if share <= usual:
        return float(ranks)
    rest = (1.0 - share) * np.log((1.0 - share) / (1.0 - usual)) if share < 1.0 else 0.0
    return float(ranks * np.exp(-whole * (share * np.log(share / usual) + rest)))


def _evidence(hits_TR: Hits, column: int, first: int) -> float:
    """Logarithm of the likelihood ratio: so many slow steps by the rank's own rate, or by that of all else."""
    count, slow = len(hits_TR) - first, int(hits_TR[first:, column].sum())
    elsewhere = hits_TR.size - count
    usual = (int(hits_TR.sum()) - slow + 1.0) / (elsewhere + 2.0)
    own = max(usual, min(slow / count, 1.0 - 1e-9))
    return float(slow * np.log(own / usual) + (count - slow) * np.log((1.0 - own) / (1.0 - usual)))


def _mean_run(hits_TR: Hits) -> float:
    """Mean length of the runs of slow steps: steps of one run are not independent."""
    begins = int(hits_TR[0].sum() + (hits_TR[1:] & ~hits_TR[:-1]).sum())
    return max(1.0, float(hits_TR.sum()) / max(1, begins))
