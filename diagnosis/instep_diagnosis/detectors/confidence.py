"""How sure a verdict about a rank is: a small model with stated weights.

Two kinds of evidence can each show that a rank is the one: where the waits lead (*localisation*) and what its process
is seen doing (*host state*). Taken as independent, both must mislead for the verdict to be wrong, so

    confidence = (1 − (1 − localisation) × (1 − host state)) × share of the ranks that are known,

divided by the number of ranks among which the evidence cannot choose, and never above 0.99. The weights are
judgements of strength; `detectors.calibration` turns a verdict's strength into the share of such verdicts that were
right, and `instep bench diagnosis` prints how well that holds.
"""

from __future__ import annotations

LOCALISED = 0.9
"""Somebody waits in a numbered collective that the rank has not entered."""
LOCALISED_WEAKLY = 0.5
"""Somebody waits in a point-to-point operation whose peer was not recorded."""
LOCALISED_IN_CIRCLE = 0.8
"""The rank is on the smaller side of a circle of waits."""
OUTVOTED = 0.95
"""The rank called something else than the majority of its group."""
BY_HABIT = 0.85
"""No majority tells, and the rank alone calls what it has not called before."""
GPU_FAULT_ON_GPU = 0.97
"""A fatal fault of the rank's own GPU, at the time."""
GPU_FAULT_ON_NODE = 0.75
"""A fatal fault of a GPU of the rank's node, which GPU is not known."""
CONFIDENCE_MAX = 0.99


def confidence(localisation: float, host: float, *, known_share: float = 1.0, tied: int = 1) -> float:
    """Confidence in one suspect, between 0 and 0.99.

    >>> confidence(LOCALISED, 0.9), confidence(LOCALISED, 0.9, tied=2)
    (0.99, 0.495)
    """
    sure = 1.0 - (1.0 - localisation) * (1.0 - host)
    return round(min(0.99, sure) * min(1.0, known_share) / max(1, tied), 3)
