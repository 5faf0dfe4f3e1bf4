"""Summaries that are printed beside every number."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

RESAMPLES = 2_000


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies, by the nearest rank.

    >>> quantile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def median_interval(values: Sequence[float], *, seed: int = 1) -> tuple[float, float, float]:
    """Median and its 95 % interval by the bootstrap."""
    drawn = random.Random(seed)
    medians = sorted(statistics.median(drawn.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.median(values), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]


def spread(values: Sequence[float]) -> str:
    """Minimum, median and maximum, in words."""
    return f"min {min(values):.2f}, median {statistics.median(values):.2f}, max {max(values):.2f}" if values else "none"
