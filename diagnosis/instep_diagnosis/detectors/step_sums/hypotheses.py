"""Each cause of slow steps as a repair: what the parts of a step would be without it.

Shapes as in `sums`. A hypothesis names its culprit and gives the repaired parts; `judge` replays them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from instep_diagnosis.detectors.step_sums import effects
from instep_diagnosis.detectors.step_sums.replay import StepParts
from instep_diagnosis.detectors.step_sums.sums import Array, StepSums, low, low_median


class StepCause(StrEnum):
    """Why a job's steps take longer than they need to."""

    HEALTHY = "healthy"
    SLOW_WORKER = "slow_worker"
    STAGE_IMBALANCE = "stage_imbalance"
    SEQ_IMBALANCE = "seq_imbalance"
    SLOW_LINK = "slow_link"
    SLOW_DP_GROUP = "slow_dp_group"
    GC_PAUSE = "gc_pause"
    DATA_WAIT = "data_wait"


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One cause with its culprit."""

    cause: StepCause
    repaired: StepParts
    hits_T: Array
    """How much of it is in each step, 0 where none is."""
    stage: int | None = None
    dp: int | None = None
    end_stage: int | None = None
    """Of a slow link: the stage of the end that is slow, where that end's other link is slow too."""


def step_parts(sums: StepSums, compute: effects.Compute, shape_of: effects.Shapes, pauses: Array) -> StepParts:
    """The parts as they were; what a silent rank did is taken from its stage, its column and its peers."""
    seconds = sums.seconds
    forward_TPD, backward_TPD = seconds["fwd"] - pauses[0], seconds["bwd"] - pauses[1]
    total_TPD = np.maximum(forward_TPD + backward_TPD, 1e-9)
    forward_TPD, backward_TPD = (_filled_compute(part, total_TPD, compute) for part in (forward_TPD, backward_TPD))
    group_TPx = {name: np.nan_to_num(low(seconds[name], 2)) for name in ("param_ag", "grad_rs", "ln_ar", "opt")}
    shape = forward_TPD.shape
    ready_TPD = np.broadcast_to(group_TPx["param_ag"], shape).copy()
    first_TxD = seconds["first_fwd_at"][:, :1]
    ready_TPD[:, :1] = np.where(np.isfinite(first_TxD), first_TxD, _or(low_median(first_TxD, 2), ready_TPD[:, :1]))
    tail_TPx = group_TPx["grad_rs"] + group_TPx["ln_ar"] + group_TPx["opt"]
    tail_TPx = tail_TPx + np.nan_to_num(low(seconds["clip"], (1, 2)))
    embedding_TPD = seconds["emb_ar"]
    is_tied = shape[1] > 1 and bool(np.nan_to_num(embedding_TPD[:, 0]).max(initial=0.0) > 0)
    if is_tied:
        tail_TPx[:, [0, -1]] += np.nan_to_num(low(embedding_TPD[:, [0, -1]], (1, 2)))
    links = np.stack([_or(way, low_median(way, axis=2)) for way in effects.link_seconds(seconds)])
    return StepParts(
        forward_TPD, backward_TPD, np.maximum(np.nan_to_num(links), 0.0), ready_TPD,
        np.broadcast_to(tail_TPx, shape), pauses, effects.unevenness(shape_of, sums.micro_batches),
        sums.micro_batches, is_tied,
    )  # fmt: skip


def _or(values: Array, other: Array) -> Array:
    return np.where(np.isfinite(values), values, other)


def _filled_compute(seconds_TPD: Array, total_TPD: Array, compute: effects.Compute) -> Array:
    """Forward or backward compute, of silent ranks as of a healthy rank of its stage and column."""
    share_TPx = low_median(seconds_TPD / total_TPD, axis=2)
    return np.nan_to_num(_or(seconds_TPD, compute.expected_TPD * share_TPx))


def hypotheses(sums: StepSums, compute: effects.Compute, parts: StepParts) -> Iterator[Hypothesis]:
    """The strongest culprit of each cause that shows in the sums at all."""
    yield from _slow_worker(compute, parts)
    yield from _slow_stage(compute, parts)
    yield from _uneven_data(compute, parts)
    yield from _pauses(parts)
    yield from _slow_link(sums, parts)
    yield from _slow_group(sums, parts)
    yield from _late_data(sums, parts)


def _strongest(excess: Array) -> tuple[int, ...] | None:
    """Index of the largest mean over steps; None where nothing is above zero."""
    mean = excess.mean(axis=0)
    best = np.unravel_index(int(np.argmax(mean)), mean.shape)
    return tuple(int(i) for i in best) if mean[best] > 0 else None


def _scaled(parts: StepParts, log_ratio_TPD: Array) -> StepParts:
    factor = np.exp(-log_ratio_TPD)
    return replace(
        parts, forward_seconds=parts.forward_seconds * factor, backward_seconds=parts.backward_seconds * factor
    )


def _slow_worker(compute: effects.Compute, parts: StepParts) -> Iterator[Hypothesis]:
    slow_TPD = effects.own_slowness(compute)
    if (found := _strongest(slow_TPD)) is None:
        return
    stage, dp = found
    only = np.zeros_like(slow_TPD)
    only[:, stage, dp] = slow_TPD[:, stage, dp]
    yield Hypothesis(StepCause.SLOW_WORKER, _scaled(parts, only), slow_TPD[:, stage, dp], stage, dp)


def _slow_stage(compute: effects.Compute, parts: StepParts) -> Iterator[Hypothesis]:
    slow_TP = effects.stage_slowness(compute)
    if (found := _strongest(slow_TP)) is None:
        return
    (stage,) = found
    only = np.zeros_like(slow_TP)
    only[:, stage] = slow_TP[:, stage]
    yield Hypothesis(StepCause.STAGE_IMBALANCE, _scaled(parts, only[:, :, None]), slow_TP[:, stage], stage)


def _uneven_data(compute: effects.Compute, parts: StepParts) -> Iterator[Hypothesis]:
    column_TxD = compute.column_TxD
    even_Txx = np.log(np.exp(column_TxD).mean(axis=2, keepdims=True))
    repaired = _scaled(parts, column_TxD - even_Txx)
    repaired = replace(repaired, unevenness=np.zeros_like(parts.unevenness))
    hits_T = np.ptp(column_TxD[:, 0], axis=1) + parts.unevenness[:, 0].max(axis=1)
    yield Hypothesis(StepCause.SEQ_IMBALANCE, repaired, hits_T)


def _pauses(parts: StepParts) -> Iterator[Hypothesis]:
    if parts.pause_seconds.any():
        repaired = replace(parts, pause_seconds=np.zeros_like(parts.pause_seconds))
        yield Hypothesis(StepCause.GC_PAUSE, repaired, parts.pause_seconds.sum(axis=(0, 2, 3)))


def _slow_link(sums: StepSums, parts: StepParts) -> Iterator[Hypothesis]:
    slow = effects.link_slowness(sums)
    if slow.shape[2] < 2 or (found := _strongest(slow.sum(axis=0))) is None:
        return
    stage, dp = found
    end, both = _slow_end(slow.sum(axis=0).mean(axis=0)[:, dp], stage)
    links = parts.link_seconds.copy()
    links[:, :, both, dp] = np.maximum(links[:, :, both, dp] - slow[:, :, both, dp], 0.0)
    hits_T = slow[:, :, stage, dp].sum(axis=0)
    yield Hypothesis(StepCause.SLOW_LINK, replace(parts, link_seconds=links), hits_T, stage, dp, end)


def _slow_end(slow_P: Array, stage: int) -> tuple[int | None, list[int]]:
    """The stage of the end of a slow link that is slow on its other link too, and the links that it is slow on; None
    where other links of the column are slow, or none: a link by itself does not tell which of its ends is slow."""
    slow = np.flatnonzero(slow_P[:-1] > 0.5 * slow_P[stage]).tolist()
    is_pair = len(slow) == 2 and slow[1] == slow[0] + 1
    return (slow[1], slow) if is_pair else (None, [stage])


def _slow_group(sums: StepSums, parts: StepParts) -> Iterator[Hypothesis]:
    slow = effects.group_slowness(sums)
    total_TP = slow["param_ag"] + slow["grad_rs"]
    if (found := _strongest(total_TP)) is None:
        return
    (stage,) = found
    ready, tail = parts.ready_seconds.copy(), parts.tail_seconds.copy()
    ready[:, stage] = np.maximum(ready[:, stage] - slow["param_ag"][:, stage, None], 0.0)
    tail[:, stage] = np.maximum(tail[:, stage] - slow["grad_rs"][:, stage, None], 0.0)
    repaired = replace(parts, ready_seconds=ready, tail_seconds=tail)
    yield Hypothesis(StepCause.SLOW_DP_GROUP, repaired, total_TP[:, stage], stage)


def _late_data(sums: StepSums, parts: StepParts) -> Iterator[Hypothesis]:
    late_TD = effects.data_lateness(sums)
    if (found := _strongest(late_TD)) is None:
        return
    (dp,) = found
    ready = parts.ready_seconds.copy()
    ready[:, 0, dp] = np.maximum(ready[:, 0, dp] - late_TD[:, dp], 0.0)
    yield Hypothesis(StepCause.DATA_WAIT, replace(parts, ready_seconds=ready), late_TD[:, dp], 0, dp)
