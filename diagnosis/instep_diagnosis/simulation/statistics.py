"""Rates with their intervals, and how well stated confidence agrees with what turned out right. Pure.

>>> rate_words(99, 100)
'99.0 % [94.6, 99.8] of 100'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959964
RESAMPLES = 1_000
BINS = 10


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927); all of it where there is nothing to count.

    >>> tuple(round(bound, 3) for bound in wilson(300, 300))
    (0.987, 1.0)
    """
    if count == 0:
        return 0.0, 1.0
    share = right / count
    middle = share + _Z**2 / (2 * count)
    reach = _Z * float(np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)))
    whole = 1 + _Z**2 / count
    return max(0.0, (middle - reach) / whole), min(1.0, (middle + reach) / whole)


def rate_words(right: int, count: int) -> str:
    """A rate, its interval, and of how many."""
    low, high = wilson(right, count)
    return f"{100 * right / count:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {count}" if count else "none"


def count_bound(count: int) -> float:
    """The mean of which so few events, or fewer, are seen in only one of twenty trials: a 95 % upper bound (Poisson).

    >>> round(count_bound(0), 2), round(count_bound(2), 2)
    (3.0, 6.3)
    """
    low, high = float(count), 2.0 * count + 10.0
    for _ in range(60):
        middle = (low + high) / 2
        term = share = float(np.exp(-middle))
        for number in range(1, count + 1):
            term *= middle / number
            share += term
        low, high = (middle, high) if share > 0.05 else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class Counts:
    """Slow ranks that were found and missed, and alarms about others."""

    hits: int
    misses: int
    false: int

    @property
    def precision(self) -> float:
        """Share of the alarms that were right; 1 where there was none."""
        return self.hits / (self.hits + self.false) if self.hits + self.false else 1.0

    @property
    def recall(self) -> float:
        """Share of the slow ranks that were found; 1 where there was none."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both.

        >>> Counts(8, 2, 2).f1
        0.8
        """
        whole = 2 * self.hits + self.misses + self.false
        return 2 * self.hits / whole if whole else 1.0


def interval(
    items: Sequence[tuple[int, int, int]], figure: Callable[[Counts], float], *, seed: int
) -> tuple[float, float]:
    """The 95 % interval of a figure of (hits, misses, false alarms) by case, by the bootstrap over cases."""
    table = np.array(items, dtype=np.int64).reshape(-1, 3)
    if not len(table):
        return 0.0, 1.0
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(table), np.full(len(table), 1 / len(table)), size=RESAMPLES) @ table
    values = [figure(Counts(int(h), int(m), int(f))) for h, m, f in drawn]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


@dataclass(frozen=True, slots=True)
class Bin:
    """One row of a reliability table."""

    count: int
    stated: float
    """Mean confidence."""
    right: float
    """Share that was right."""


def reliability(sure: Sequence[float], right: Sequence[bool]) -> list[Bin]:
    """Verdicts by their stated confidence, in tenths; empty tenths are left out."""
    stated, truth = np.asarray(sure, dtype=np.float64), np.asarray(right, dtype=np.float64)
    places = np.minimum((stated * BINS).astype(int), BINS - 1)
    return [
        Bin(int((places == b).sum()), float(stated[places == b].mean()), float(truth[places == b].mean()))
        for b in range(BINS)
        if (places == b).any()
    ]


def calibration_error(sure: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: by how much confidence and truth differ, on average over the verdicts.

    >>> round(calibration_error([0.9] * 10, [True] * 8 + [False] * 2), 3)
    0.1
    """
    rows = reliability(sure, right)
    whole = sum(row.count for row in rows)
    return sum(row.count * abs(row.stated - row.right) for row in rows) / whole if whole else 0.0


def isotonic(strength: Sequence[float], right: Sequence[bool], *, points_max: int = 12) -> list[tuple[float, float]]:
    """The rising step function of strength that fits best what was right (pool adjacent violators), as points to be
    joined; a table of a few rows. Shares are drawn towards a half by one case on each side, as none is ever sure.

    >>> isotonic([1, 1, 2, 2], [False, False, True, True])
    [(1.0, 0.25), (2.0, 0.75)]
    """
    order = np.argsort(np.asarray(strength, dtype=np.float64), kind="stable")
    values, truth = np.asarray(strength, dtype=np.float64)[order], np.asarray(right, dtype=np.float64)[order]
    blocks: list[list[float]] = []  # count, right, sum of strength
    edges = np.flatnonzero(np.diff(values)) + 1
    groups = np.split(np.arange(len(values)), edges)
    # Groups of like strength first: no more of them than rows of the table may have to be pooled.
    per_group = max(1, len(values) // points_max)
    for group in groups:
        is_small = blocks and blocks[-1][0] < per_group and len(groups) > points_max
        block = [float(len(group)), float(truth[group].sum()), float(values[group].sum())]
        if is_small:
            blocks[-1] = [a + b for a, b in zip(blocks[-1], block, strict=True)]
        else:
            blocks.append(block)
        while len(blocks) > 1 and _share(blocks[-2]) >= _share(blocks[-1]):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return [(round(block[2] / block[0], 4), round(_share(block), 4)) for block in blocks]


def _share(block: list[float]) -> float:
    return (block[1] + 1.0) / (block[0] + 2.0)
