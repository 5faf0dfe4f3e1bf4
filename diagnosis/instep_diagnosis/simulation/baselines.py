"""What plainer methods say of the same steps, so that ours stands beside something. Pure.

Shapes: `T` steps, `R` ranks. Each method sees the ranks' own work, which is more than its authors give it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from instep_diagnosis.detectors.work import Array

Baseline = Callable[[Array], set[int]]
"""Own work of the newest steps, [T, R] → columns that it names now."""

SIGMAS = 3.0
MINDER_WINDOW_STEPS = 8
MINDER_WINDOWS = 8
"""Windows in a row that the same rank must win: the published method waits for four minutes of them."""
MINDER_SCORE_MIN = 2.0
"""Standard deviations over the ranks. Of R values none lies further than (R − 1)/√R from the mean: fewer ranks need
less."""
GREYHOUND_RATIO_MIN = 1.10
GREYHOUND_STEPS = 10


def three_sigma(own_TR: Array) -> set[int]:
    """Ranks whose newest step is longer than the mean of their own steps before by three standard deviations.

    >>> three_sigma(np.array([[1.0, 1.0], [1.1, 1.1], [1.0, 1.0], [1.1, 1.1], [1.0, 2.0]]))
    {1}
    """
    before_TR, newest_R = own_TR[:-1], own_TR[-1]
    if len(before_TR) < 4:
        return set()
    limit_R = np.nanmean(before_TR, axis=0) + SIGMAS * np.nanstd(before_TR, axis=0)
    return {int(rank) for rank in np.flatnonzero(newest_R > limit_R)}


def minder_distance(own_TR: Array) -> set[int]:
    """The rank that is farthest from all others in each of the newest windows (Minder, arXiv 2411.01791, without its
    learned denoising)."""
    steps, ranks = own_TR.shape
    if steps < MINDER_WINDOW_STEPS + MINDER_WINDOWS or ranks < 3:
        return set()
    winner = None
    for back in range(MINDER_WINDOWS):
        window_WR = own_TR[steps - back - MINDER_WINDOW_STEPS : steps - back]
        distance_R = np.sqrt(((window_WR[:, :, None] - window_WR[:, None, :]) ** 2).sum(axis=0)).sum(axis=1)
        score_R = (distance_R - distance_R.mean()) / max(float(distance_R.std()), 1e-12)
        best = int(np.argmax(score_R))
        least = min(MINDER_SCORE_MIN, 0.9 * (ranks - 1) / np.sqrt(ranks - 1))
        if score_R[best] < least or winner not in (None, best):
            return set()
        winner = best
    slower = own_TR[-MINDER_WINDOW_STEPS:].mean(axis=0)
    # Farthest may also be fastest, which nobody would evict.
    return {winner} if winner is not None and slower[winner] > np.median(slower) else set()


def greyhound_verifier(own_TR: Array) -> set[int]:
    """Ranks whose mean work has changed by more than 10 % at the best point of change (Greyhound, ATC 2025)."""
    steps = len(own_TR)
    if steps < 2 * GREYHOUND_STEPS:
        return set()
    found = set()
    for rank, own_T in enumerate(own_TR.T):
        cuts = range(GREYHOUND_STEPS, steps - GREYHOUND_STEPS + 1)
        costs = [own_T[:cut].var() * cut + own_T[cut:].var() * (steps - cut) for cut in cuts]
        cut = cuts[int(np.argmin(costs))]
        before, after = float(own_T[:cut].mean()), float(own_T[cut:].mean())
        if after - before > (1 - 1 / GREYHOUND_RATIO_MIN) * max(before, after):
            found.add(rank)
    return found if 2 * len(found) <= own_TR.shape[1] else set()


BASELINES: dict[str, Baseline] = {
    "3-sigma": three_sigma,
    "Minder-style distance": minder_distance,
    "Greyhound-style 10 %": greyhound_verifier,
}
