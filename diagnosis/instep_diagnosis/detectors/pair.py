"""Two ranks that differ and of which nobody is named: by how much, and why it is left at that.

Of more ranks the majority says what is usual; of two each is the other's only peer, and only a rank's own past tells
which of them changed. One that was slow from its first step on has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instep_diagnosis.detectors.levels import location, long_run_noise, median, scale_of
from instep_diagnosis.detectors.straggler import disturbance_of
from instep_diagnosis.detectors.work import step_arrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.settings import StragglerSettings


@dataclass(frozen=True, slots=True)
class PairDifference:
    """By how much one of two ranks works longer than the other."""

    slower: int
    faster: int
    ratio: float
    """Work of the slower one over that of the other."""
    steps: int
    """How many steps it was seen in, the newest."""

    @property
    def words(self) -> str:
        """What differs, and why nobody is named."""
        return (
            f"Rank {self.slower} works {self.ratio:.2f} times as long as rank {self.faster} (last {self.steps} steps). "
            "Nobody is named: of two ranks neither is the majority, and neither became slower while it was watched. "
            "If both do the same work, compare their nodes' clocks, heat and neighbours."
        )


def pair_difference(job: JobSteps, settings: StragglerSettings | None = None) -> PairDifference | None:
    """How the two ranks of a job differ; None where there are more, where too few steps were compared, or where what
    they differ by is small or within the noise of the steps.

    It says nothing of who is at fault: ask it only where `detect_stragglers` names nobody.
    """
    settings = settings or StragglerSettings()
    arrays = step_arrays(job, window_steps=settings.window_steps)
    if arrays is None or len(arrays.ranks) != 2:
        return None
    x_T = np.diff(np.log(arrays.own_seconds_TR), axis=1)[:, 0]
    x_T = x_T[np.isfinite(x_T)]
    if len(x_T) < settings.steps_min:
        return None
    residuals = [x_T - median(x_T)]
    level = location(x_T, scale_of(residuals, settings.noise_ratio_min))
    error = long_run_noise(residuals, settings.noise_ratio_min) / np.sqrt(len(x_T))
    is_disturbed = disturbance_of(arrays, settings) >= settings.disturbance_min
    least = float(np.log(settings.disturbed_ratio_min if is_disturbed else settings.slowdown_ratio_min))
    if abs(level) < least or abs(level) - settings.offset_share * least < settings.z_min * error:
        return None
    faster, slower = arrays.ranks if level > 0.0 else arrays.ranks[::-1]
    return PairDifference(slower, faster, float(np.exp(abs(level))), len(x_T))
