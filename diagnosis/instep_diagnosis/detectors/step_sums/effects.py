"""What differs between ranks, taken apart: a step's work, data that differ between columns, slow ranks, pauses, links.

Shapes as in `sums`. Effects on compute are logarithms of a ratio, all others seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instep_diagnosis.detectors.step_sums.replay import normal_scores
from instep_diagnosis.detectors.step_sums.sums import Array, StepSums, low, low_median, spread

_HIT_SIGMAS = 3.5
"""One step of one rank this far above the noise is no noise: one in four thousand by chance, and then of no weight."""
_LASTING_SIGMAS = 5.0
"""A mean this many standard errors above zero is no noise, however small in each step."""
_EVEN_LOG_RATIO = 0.1
"""Micro-batches of equal data whose longest is less than this above the others are even."""
_NOISE_MIN = 1e-4
"""Floor of the noise of a logarithm: perfectly even data do not make a microsecond significant."""
_SECONDS_MIN = 1e-9
"""Least duration taken into a logarithm."""
_PAUSE_LOG_RATIO_MIN = 0.1
"""A forward stretched by less, against its backward, did not pause."""


@dataclass(frozen=True, slots=True)
class Compute:
    """The logarithm of compute, split: level of the stage + column + own."""

    level_TPx: Array
    """Of the stage in the step."""
    column_TxD: Array
    """Common to a pipeline's stages: its data were more or longer."""
    own_TPD: Array
    """Of one rank alone."""

    @property
    def expected_TPD(self) -> Array:
        """Compute in seconds without what is the rank's own."""
        return np.asarray(np.exp(self.level_TPx + self.column_TxD))


def split_compute(sums: StepSums, pauses: Array, *, is_data_even: bool) -> Compute:
    """Split by lower medians over the ranks of a stage, then over the stages of a column, so that one slow rank is
    its own effect even where it has a single peer.

    A rank that is the only one heard of in its column *is* its column: where data are even all is its own, else only
    what lasts.
    """
    x_TPD = _log(sums.seconds["fwd"] + sums.seconds["bwd"] - pauses.sum(axis=0))
    level_TPx = _levels(x_TPD, _log(sums.early_seconds["fwd"] + sums.early_seconds["bwd"]))
    rest_TPD = x_TPD - level_TPx
    is_alone_TxD = np.isfinite(rest_TPD).sum(axis=1, keepdims=True) == 1
    lasts_TPD = 0.0 if is_data_even else rest_TPD - low_median(rest_TPD, axis=0)
    alone_TxD = low_median(lasts_TPD + 0.0 * rest_TPD, axis=1)
    column_TxD = np.where(is_alone_TxD, alone_TxD, low_median(rest_TPD, axis=1))
    own_TPD = rest_TPD - column_TxD
    usual = low_median(low_median(own_TPD, axis=0).reshape(1, -1), axis=1)[0, 0]
    return Compute(level_TPx + np.nan_to_num(usual), np.nan_to_num(column_TxD), own_TPD - usual)


def _log(seconds: Array) -> Array:
    return np.asarray(np.log(np.maximum(seconds, _SECONDS_MIN)))


def _levels(x_TPD: Array, early_PD: Array) -> Array:
    """[T, P, 1] level of each stage. A few ranks of it are no level, as they may be slow themselves: then what the
    stage was in the job's first steps, moved as the other stages have."""
    level_TPx = low_median(x_TPD, axis=2)
    early_Px = low_median(early_PD, axis=1)
    is_seen_TPx = 2 * np.isfinite(x_TPD).sum(axis=2, keepdims=True) > x_TPD.shape[2]
    moved_TPx = early_Px + low_median(np.where(is_seen_TPx, level_TPx - early_Px, np.nan), axis=1)
    return np.asarray(np.where(is_seen_TPx | ~np.isfinite(moved_TPx), level_TPx, moved_TPx))


def lasting_or_hits(excess: Array, sigma: float) -> Array:
    """An excess along the first axis (steps), zero in the steps in which it is noise.

    All of it is kept where its mean is far from zero, else the steps that stand out by themselves: a fault that comes
    and goes is judged step by step.
    """
    known = np.isfinite(excess)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, excess, 0.0)
    middle = np.median(np.where(known, excess, 0.0), axis=0)
    lasts = (middle > _LASTING_SIGMAS * 1.25 * sigma / np.sqrt(count)) & (middle > 0.25 * filled.max(axis=0))
    return np.asarray(np.where(lasts | (filled > _HIT_SIGMAS * sigma), np.maximum(filled, 0.0), 0.0))


def own_slowness(compute: Compute) -> Array:
    """[T, P, D]: log ratio by which a rank is slower than its stage and its column; 0 where it is noise."""
    own_TPD = compute.own_TPD
    # Of few ranks each is often the least itself, its median next to zero: steps that follow one another tell more.
    noise = max(spread(own_TPD - low_median(own_TPD, axis=0)), spread(np.diff(own_TPD, axis=0)) / np.sqrt(2.0))
    return lasting_or_hits(own_TPD, max(noise, _NOISE_MIN))


def stage_slowness(compute: Compute) -> Array:
    """[T, P]: log ratio by which a stage is slower than the others; 0 where it is noise."""
    level_TP = compute.level_TPx[:, :, 0]
    stages = level_TP.shape[1]
    if stages == 1:
        return np.zeros_like(level_TP)
    excess_TP = level_TP - low_median(level_TP, axis=1)
    noise_TP = level_TP - _mean_known(level_TP, axis=1)
    noise = spread(noise_TP - low_median(noise_TP, axis=0))
    # Of a difference of two stages, from deviations from the mean of all.
    return lasting_or_hits(excess_TP, max(noise * np.sqrt(2.0 * stages / (stages - 1)), _NOISE_MIN))


def _mean_known(values: Array, axis: int) -> Array:
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=axis, keepdims=True), 1)
    return np.asarray(np.where(known, values, 0.0).sum(axis=axis, keepdims=True) / count)


@dataclass(frozen=True, slots=True)
class Shapes:
    """How uneven the micro-batches of a step are: the longest over the mean of the rest, as a logarithm."""

    forward_TPD: Array
    backward_TPD: Array

    @property
    def common_TPD(self) -> Array:
        """What forward and backward share: uneven data."""
        return np.asarray(np.fmin(self.forward_TPD, self.backward_TPD))


def shapes(sums: StepSums) -> Shapes:
    """NaN with a single micro-batch, or where the longest is not reported."""
    return Shapes(*(_shape(sums, name) for name in ("fwd", "bwd")))


def _shape(sums: StepSums, name: str) -> Array:
    longest, rest = sums.seconds[f"{name}_max"], _rest(sums, name)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((rest > 0) & (longest > 0), longest / rest, np.nan)
    return np.asarray(np.log(ratio))


def _rest(sums: StepSums, name: str) -> Array:
    """Mean of all micro-batches but the longest; NaN with a single one."""
    longest, total, count = sums.seconds[f"{name}_max"], sums.seconds[name], sums.micro_batches
    return (total - longest) / (count - 1) if count > 1 else np.full_like(total, np.nan)


def unevenness(shape: Shapes, micro_batches: int) -> Array:
    """[T, 1, D] standard deviation of the logarithm of a column's micro-batches; 0 where they are even.

    From what the longest is over the others, in forward and backward alike and in most stages: a pause is not.
    """
    common_TxD = np.nan_to_num(low_median(shape.common_TPD, axis=1))
    grid = np.linspace(0.0, 2.0, 81)
    weights = np.exp(grid[:, None] * normal_scores(max(micro_batches, 2)))
    longest = np.log(weights[:, -1] / weights[:, :-1].mean(axis=1))
    sigma = np.interp(common_TxD, longest, grid)
    return np.asarray(np.where(common_TxD > _EVEN_LOG_RATIO, sigma, 0.0))


def pause_seconds(sums: StepSums, shape: Shapes) -> Array:
    """[2, T, P, D] seconds by which one micro-batch stopped, in the forwards and in the backwards; 0 where it is noise.

    Uneven data lengthen the forward and the backward of a micro-batch alike; a pause hits one of them. A pause may hit
    any micro-batch, so that without it the one it hit would on average have been as long as the rest are, not as the
    longest: with that, pauses of jobs with uneven data were taken for up to half as long as they are.
    """
    h_TPD = shape.forward_TPD - shape.backward_TPD
    limit = max(5.0 * spread(h_TPD), _PAUSE_LOG_RATIO_MIN)
    found = []
    for name, excess in (("fwd", h_TPD), ("bwd", -h_TPD)):
        is_pause = np.nan_to_num(excess) > limit
        seconds = sums.seconds[f"{name}_max"] - _rest(sums, name)
        found.append(np.where(is_pause, np.nan_to_num(seconds), 0.0))
    return np.stack(found)


def link_seconds(seconds: dict[str, Array]) -> Array:
    """[2, …, P, D]: the shortest transfer between a stage and the next, forward and backward, from both ends; NaN for
    the last stage.

    The end that comes last does not wait, so the lesser of both is the transfer alone. Of one end by itself a send
    can be trusted, since receivers mostly wait already; a receive cannot, and the way is taken from the way back.
    """
    ways = np.full((2, *seconds["fwd"].shape), np.nan)
    down, up = (slice(None, -1), slice(1, None))
    for way, (name, sender, receiver) in enumerate((("fwd", down, up), ("bwd", up, down))):
        sent = seconds[f"{name}_send_min"][..., sender, :]
        received = seconds[f"{name}_recv_min"][..., receiver, :]
        ways[way, ..., :-1, :] = np.where(np.isfinite(sent), np.fmin(sent, received), np.nan)
    return _or(ways, ways[::-1])


def link_slowness(sums: StepSums) -> Array:
    """[2, T, P, D] seconds by which a transfer takes longer than in the job's first steps and than on other links."""
    now, early = link_seconds(sums.seconds), link_seconds(sums.early_seconds)[:, None]
    excess = now - np.where(np.isfinite(early), early, low_median(now, axis=3))
    result = np.zeros_like(now)
    for way in range(2):
        usual = np.fmax(low_median(low_median(excess[way], axis=2), axis=1), 0.0)
        own = excess[way] - np.nan_to_num(usual)
        result[way] = lasting_or_hits(own, spread(own - low_median(own, axis=0)))
    return result


def group_slowness(sums: StepSums) -> dict[str, Array]:
    """`param_ag` and `grad_rs` → [T, P] seconds by which a data-parallel group's collective takes longer than in the
    job's first steps.

    The member that comes last does not wait, so the least over the members is the collective. A silent member may
    have been that one; then the others' wait at the end of a step is indistinguishable from a slow collective, and no
    more is believed than is seen at the start of the step, where all come at once.
    """
    gather, scatter = (_group_excess(sums, name) for name in ("param_ag", "grad_rs"))
    is_whole_TP = np.isfinite(sums.seconds["grad_rs"]).all(axis=2)
    return {"param_ag": gather, "grad_rs": np.where(is_whole_TP, scatter, np.minimum(scatter, 2.0 * gather))}


def _group_excess(sums: StepSums, name: str) -> Array:
    now_TPD = sums.seconds[name]
    excess_TP = (low(now_TPD, 2) - low(sums.early_seconds[name][None], 2))[:, :, 0]
    # The least of medians lies above the least of each step: a bias that all stages share.
    shared = np.fmin(low_median(excess_TP, axis=1), 0.0)
    own_TP = excess_TP - np.nan_to_num(shared)
    return lasting_or_hits(own_TP, spread(own_TP - low_median(own_TP, axis=0)))


def data_lateness(sums: StepSums) -> Array:
    """[T, D] seconds by which the first stage of a column started later than the others of its step and than it did in
    the job's first steps. Where its rank is silent its next stage, which waits for it, speaks for it."""
    first_TPD, early_PD = sums.seconds["first_fwd_at"], sums.early_seconds["first_fwd_at"]
    late_TPD = _lateness(first_TPD, early_PD)
    if first_TPD.shape[2] == 1:
        late_TPD = late_TPD - (sums.seconds["param_ag"] - sums.early_seconds["param_ag"])
    late_TD = late_TPD[:, 0] if first_TPD.shape[1] == 1 else _or(late_TPD[:, 0], late_TPD[:, 1])
    return lasting_or_hits(late_TD, spread(late_TD - low_median(late_TD, axis=0)))


def _lateness(first_TPD: Array, early_PD: Array) -> Array:
    if first_TPD.shape[2] == 1:
        return first_TPD - early_PD
    habit_PD = early_PD - low_median(early_PD, axis=1)
    return np.asarray(first_TPD - low_median(first_TPD, axis=2) - np.nan_to_num(habit_PD))


def _or(values: Array, other: Array) -> Array:
    return np.where(np.isfinite(values), values, other)
