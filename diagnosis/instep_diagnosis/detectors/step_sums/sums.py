"""The sums that each rank of a pipeline job reports for a step, as arrays.

Shapes: `P` stages, `D` data-parallel ranks, `T` steps. Seconds; NaN is *not observed*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NAMES = (
    "fwd", "bwd", "fwd_send", "fwd_recv", "bwd_send", "bwd_recv", "fwd_send_min", "fwd_recv_min", "bwd_send_min",
    "bwd_recv_min", "fwd_max", "bwd_max", "grad_rs", "param_ag", "emb_ar", "ln_ar", "clip", "opt", "first_fwd_at",
    "step",
)  # fmt: skip
"""Compute of the forwards and backwards and the longest micro-batch of each; time inside pipeline transfers and the
shortest of each; the collectives, clip and optimizer; when the first forward started; the step's length."""


@dataclass(frozen=True, slots=True)
class StepSums:
    """Some steps of one job, and what its first steps were like."""

    id: str
    micro_batches: int
    ranks: tuple[tuple[int, ...], ...]
    """The rank of each stage and data-parallel index."""
    steps: tuple[int, ...]
    seconds: dict[str, Array]
    """Name → [T, P, D]; every name of `NAMES` is there, NaN throughout where the job does not report it."""
    early_seconds: dict[str, Array]
    """Name → [P, D]: the median of the job's first steps."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, stages, data-parallel ranks."""
        steps, stages, ranks = self.seconds["fwd"].shape
        return steps, stages, ranks


def low_median(values: Array, axis: int) -> Array:
    """The median that leaves out NaN, and of two middle values takes the lower: one slow member of two does not move
    it. NaN where nothing was observed; the axis stays, with length 1.

    >>> low_median(np.array([[1.0, 9.0], [2.0, np.nan]]), axis=1)
    array([[1.],
           [2.]])
    """
    ordered = np.sort(values, axis=axis)  # NaN last
    count = np.isfinite(values).sum(axis=axis, keepdims=True)
    return np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0), axis=axis)


def low(values: Array, axis: int | tuple[int, ...]) -> Array:
    """The least value, NaN left out; NaN where nothing was observed; the axis stays."""
    least = np.min(np.where(np.isfinite(values), values, np.inf), axis=axis, keepdims=True)
    return np.where(np.isfinite(least), least, np.nan)


def spread(values: Array) -> float:
    """Noise of one value around zero that holds when up to half of the values are no noise: from the lower quartile
    of the magnitudes, as a standard deviation. Zeros are left out: they are the medians that were subtracted."""
    known = np.abs(values[np.isfinite(values)])
    known = known[known > _ROUNDING * known.max(initial=0.0)]
    return float(np.quantile(known, 0.25)) / 0.3186 if known.size else 0.0


_ROUNDING = 1e-9
"""What is left of a subtraction that gives zero, relative to the largest."""
