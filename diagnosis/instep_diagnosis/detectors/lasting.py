"""Whether a slow rank that was found once is slow still: for the end of its incident, not for its beginning.

The test that finds a slowdown compares with the steps before it. A slowdown that fills its whole window has no steps
before it there, so that a finding which is no longer made proves nothing; what the rank does now does.
"""

from __future__ import annotations

import numpy as np

from instep_diagnosis.detectors.work import peers_median, step_arrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.verdict import Cause

NEWEST_STEPS = 16
"""Steps that tell how slow a rank is now."""
_KNOWN_STEPS_MIN = 4
_STILL_SHARE = 0.5
"""A rank is slow still while this share of its slowdown (as a logarithm) is left."""


def is_still_slow(job: JobSteps, rank: int, cause: Cause, ratio: float) -> bool:
    """Whether `rank`, found slower than its peers by `ratio` for `cause`, is so in its newest steps.

    False also where too few of them were observed: an incident needs evidence to stay open.

    >>> from instep_agent.wire import StepReport
    >>> steps = {r: tuple(StepReport(step=s, wall_seconds=1.0 + 0.3 * r) for s in range(20)) for r in (0, 1)}
    >>> is_still_slow(JobSteps(job="j", run="r", attempt=0, steps=steps, nodes={}), 1, Cause.SLOW_COMPUTE, 1.3)
    True
    """
    arrays = step_arrays(job, window_steps=NEWEST_STEPS)
    if arrays is None or rank not in arrays.ranks or ratio <= 1.0:
        return False
    work_TR = arrays.own_seconds_TR.copy()
    if cause is Cause.STARVED:
        work_TR += np.nan_to_num(arrays.starved_seconds_TR)
    elif cause is Cause.DATA:
        work_TR += np.nan_to_num(arrays.data_seconds_TR)
    column = arrays.ranks.index(rank)
    slower_T = np.log(work_TR[:, column]) - np.log(peers_median(work_TR)[:, column])
    slower_T = slower_T[np.isfinite(slower_T)]
    return slower_T.size >= _KNOWN_STEPS_MIN and float(np.median(slower_T)) > _STILL_SHARE * float(np.log(ratio))
