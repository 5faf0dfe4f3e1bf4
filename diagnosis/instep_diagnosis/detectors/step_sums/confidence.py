"""How probable it is that the named cause is the right one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RIVALRY = (0.0, 0.03, 0.1, 0.2, 0.55, 1.0)
_RIGHT = (0.995, 0.985, 0.98, 0.91, 0.64, 0.5)
"""Gain of the second cause over that of the first → share of right answers, in 1,500 simulated jobs (plain, two faults,
intermittent, silent ranks) none of which is a recorded one. With two faults the larger by chance is not the first."""
_NEARNESS = (0.0, 0.8, 1.0)
_HEALTHY = (0.97, 0.97, 0.93)
"""Largest gain over the least that is named → share of right answers `healthy`, in the same jobs."""


def confidence(gain_ratios: Sequence[float], least: float) -> float:
    """Between 0 and 1, from the gains of all causes, largest first; those below `least` mean `healthy`.

    >>> confidence([0.2, 0.001], 0.012), confidence([0.2, 0.19], 0.012), confidence([0.002], 0.012)
    (0.993, 0.516, 0.97)
    """
    first, second = ([*gain_ratios, 0.0, 0.0])[:2]
    if first < least:
        return round(float(np.interp(first / least, _NEARNESS, _HEALTHY)), 3)
    return round(float(np.interp(max(second, 0.0) / first, _RIVALRY, _RIGHT)), 3)
