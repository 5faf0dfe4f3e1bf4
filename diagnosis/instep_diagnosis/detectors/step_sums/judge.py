"""Which cause makes a job's steps slow: the one whose repair would gain most, by replay.

Every cause that shows in the sums is taken out of the steps in turn and the steps are replayed without it. What they
would be shorter by is what the cause costs; the dearest one is named, and any other dear one beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instep_diagnosis.detectors.step_sums.confidence import confidence
from instep_diagnosis.detectors.step_sums.effects import pause_seconds, shapes, split_compute, unevenness
from instep_diagnosis.detectors.step_sums.hypotheses import Hypothesis, StepCause, hypotheses, step_parts
from instep_diagnosis.detectors.step_sums.replay import step_seconds
from instep_diagnosis.detectors.step_sums.sums import Array, StepSums
from instep_diagnosis.verdict import Owner

GAIN_RATIO_MIN = 0.012
"""Repairs that would shorten steps by less are not worth a name. In 2,000 simulated healthy jobs (0.3 to 2.5 % noise a
step, 10 to 40 steps, every second one with a silent rank) the largest gain was 0.0109, so that the rate of false alarms
is below 0.15 % a job with 95 % confidence."""

UNIFORM_RATIO_MIN = 1.03
UNIFORM_ERRORS_MIN = 4.0
EARLY_STEPS = 10
"""How many first steps are behind `early_seconds`, at least; more make the error smaller than it is taken for."""
_UNIFORM = " All ranks compute {more} longer than in the job's first steps, which names nobody."
_FIX_UNIFORM = "Look for what all ranks share: clocks and power limits of the site, a new library or other data."

_OWNERS = {
    StepCause.HEALTHY: Owner.UNKNOWN,
    StepCause.SLOW_WORKER: Owner.NODE,
    StepCause.STAGE_IMBALANCE: Owner.JOB,
    StepCause.SEQ_IMBALANCE: Owner.JOB,
    StepCause.SLOW_LINK: Owner.NETWORK,
    StepCause.SLOW_DP_GROUP: Owner.NETWORK,
    StepCause.GC_PAUSE: Owner.JOB,
    StepCause.DATA_WAIT: Owner.JOB,
}


@dataclass(frozen=True, slots=True)
class CauseCost:
    """One cause and what it costs."""

    cause: StepCause
    stage: int | None
    dp: int | None
    gain_ratio: float
    """By how much steps would be shorter without it, as a share of their length."""
    gain_seconds_T: Array
    hits_T: Array
    end_stage: int | None = None

    @property
    def slowdown(self) -> float:
        """Steps as they are over steps without it."""
        return 1.0 / max(1.0 - self.gain_ratio, 0.01)


@dataclass(frozen=True, slots=True)
class StepsVerdict:
    """Why the steps of one job take longer than they need to, if they do."""

    id: str
    cause: StepCause
    stage: int | None
    dp: int | None
    rank: int | None
    slowdown: float
    """Steps as they are over steps without the cause; 1 for a healthy job."""
    confidence: float
    """Probability that the cause is right."""
    owner: Owner
    onset_step: int | None
    cost_gpu_seconds: float
    """Rank-seconds lost in the steps that were given."""
    evidence: str
    """Plain sentences."""
    fix: str
    """One sentence: what to do; empty where nothing is slow."""
    ends: tuple[int, ...]
    """Of a slow link: the ranks at its ends."""
    uniform_slowdown: float
    """How much longer all ranks compute than in the job's first steps; 1 where they do not."""
    also: tuple[CauseCost, ...]
    """Other causes that cost enough to be named, dearest first."""


def judge_steps(sums: StepSums) -> StepsVerdict:
    """The cause that costs most, or `healthy`; a rank that was not heard of is never blamed for its silence."""
    costs = cause_costs(sums)
    worst = costs[0] if costs else None
    sure = confidence([cost.gain_ratio for cost in costs], GAIN_RATIO_MIN)
    uniform = uniform_slowdown(sums)
    shared = _UNIFORM.format(more=f"{uniform - 1:.1%}") if uniform > 1.0 else ""
    if worst is None or worst.gain_ratio < GAIN_RATIO_MIN:
        most = 0.0 if worst is None else max(0.0, worst.gain_ratio)
        text = f"No repair would shorten the steps by more than {most:.1%}.{shared}"
        return StepsVerdict(
            sums.id, StepCause.HEALTHY, None, None, None, 1.0, sure, Owner.UNKNOWN, None, 0.0, text,
            _FIX_UNIFORM if shared else "", (), uniform, (),
        )  # fmt: skip
    return StepsVerdict(
        id=sums.id,
        cause=worst.cause,
        stage=worst.stage,
        dp=worst.dp,
        rank=_rank(sums, worst),
        slowdown=worst.slowdown,
        confidence=sure,
        owner=_OWNERS[worst.cause],
        onset_step=_onset(sums, worst),
        cost_gpu_seconds=float(np.maximum(worst.gain_seconds_T, 0.0).sum()) * sums.shape[1] * sums.shape[2],
        evidence=_sentence(sums, worst) + shared,
        fix=_FIXES[worst.cause],
        ends=_ends(sums, worst),
        uniform_slowdown=uniform,
        also=tuple(cost for cost in costs[1:] if cost.gain_ratio >= GAIN_RATIO_MIN),
    )


def _ends(sums: StepSums, cost: CauseCost) -> tuple[int, ...]:
    if cost.cause is not StepCause.SLOW_LINK or cost.stage is None or cost.dp is None:
        return ()
    return tuple(sums.ranks[stage][cost.dp] for stage in (cost.stage, cost.stage + 1))


def _rank(sums: StepSums, cost: CauseCost) -> int | None:
    """The one rank that is to blame; of a link its slow end, where that is known."""
    stage = cost.end_stage if cost.cause is StepCause.SLOW_LINK else cost.stage
    return None if stage is None or cost.dp is None else sums.ranks[stage][cost.dp]


def uniform_slowdown(sums: StepSums) -> float:
    """How many times as long as in the job's first steps all ranks but a quarter compute at least; 1 where that is less
    than `UNIFORM_RATIO_MIN`, within the noise of the steps, or where the first steps are not known."""
    now_TR = (sums.seconds["fwd"] + sums.seconds["bwd"]).reshape(sums.shape[0], -1)
    early_R = (sums.early_seconds["fwd"] + sums.early_seconds["bwd"]).reshape(-1)
    with np.errstate(all="ignore"):
        ratio_TR = np.log(now_TR / early_R)
    ratio_TR = ratio_TR[:, np.isfinite(ratio_TR).all(axis=0)]
    if not ratio_TR.size:
        return 1.0
    shared_T = np.quantile(ratio_TR, 0.25, axis=1, method="lower")
    error = 1.25 * float(shared_T.std()) * np.sqrt(1 / shared_T.size + 1 / EARLY_STEPS)
    shared = float(np.median(shared_T))
    is_clear = shared > max(np.log(UNIFORM_RATIO_MIN), UNIFORM_ERRORS_MIN * error)
    return float(np.exp(min(shared, 10.0))) if is_clear else 1.0


def cause_costs(sums: StepSums) -> list[CauseCost]:
    """What each cause that shows at all costs, dearest first."""
    with np.errstate(all="ignore"):
        shape = shapes(sums)
        pauses = pause_seconds(sums, shape)
        is_data_even = not unevenness(shape, sums.micro_batches).any()
        compute = split_compute(sums, pauses, is_data_even=is_data_even)
        parts = step_parts(sums, compute, shape, pauses)
        replayed_T = step_seconds(parts)
        length = _length(sums) or float(replayed_T.mean())
        found = [_cost(item, replayed_T, length) for item in hypotheses(sums, compute, parts)]
    return sorted(found, key=lambda cost: -cost.gain_ratio)


def _length(sums: StepSums) -> float:
    """Mean length of a step as reported, 0 where it is not. All ranks end a step together, so each report is good."""
    step_TR = sums.seconds["step"].reshape(sums.shape[0], -1)
    step_T = np.nanmedian(np.where(np.isfinite(step_TR).any(axis=1, keepdims=True), step_TR, 0.0), axis=1)
    known = step_T[step_T > 0]
    return float(known.mean()) if known.size else 0.0


def _cost(item: Hypothesis, replayed_T: Array, length: float) -> CauseCost:
    gain_T = replayed_T - step_seconds(item.repaired)
    # No repair saves more than the step, whatever a rank reports that its length was.
    ratio = min(float(gain_T.mean()) / length, 1.0) if length > 0 else 0.0
    return CauseCost(item.cause, item.stage, item.dp, ratio, gain_T, item.hits_T, item.end_stage)


def _onset(sums: StepSums, cost: CauseCost) -> int | None:
    """The first of the given steps in which the cause acts as it mostly does."""
    acting = cost.hits_T[cost.hits_T > 0]
    if not acting.size:
        return None
    return sums.steps[int(np.argmax(cost.hits_T > 0.5 * np.median(acting)))]


def _sentence(sums: StepSums, cost: CauseCost) -> str:
    acting = cost.hits_T > 0
    typical = float(np.median(cost.hits_T[acting])) if acting.any() else 0.0
    what = _WORDS[cost.cause].format(
        stage=cost.stage,
        next=(cost.stage or 0) + 1,
        dp=cost.dp,
        seconds=f"{typical:.4g} s",
        more=f"{min(np.expm1(min(typical, 10.0)), 99.0):.1%}",
    )
    often = f"in {np.mean(acting):.0%} of {sums.shape[0]} steps"
    return f"{what}, {often}; without it steps would be {cost.gain_ratio:.1%} shorter."


_WORDS = {
    StepCause.SLOW_WORKER: "The rank of stage {stage}, dp {dp} computes {more} longer than its stage and its column",
    StepCause.STAGE_IMBALANCE: "All ranks of stage {stage} compute {more} longer than other stages",
    StepCause.SEQ_IMBALANCE: "Forward and backward of whole columns vary together from step to step",
    StepCause.SLOW_LINK: "The shortest transfers between stages {stage} and {next} of dp {dp} take {seconds} longer",
    StepCause.SLOW_DP_GROUP: "The collectives of stage {stage}'s data-parallel group take {seconds} longer even for "
    "the member that waits least",
    StepCause.GC_PAUSE: "Single micro-batches of single ranks stop, for {seconds} a step over all ranks",
    StepCause.DATA_WAIT: "The first forward of stage 0, dp {dp} starts {seconds} later than that of its peers",
}

_FIXES = {
    StepCause.SLOW_WORKER: "Look at its node's clocks, heat and neighbours, and swap the node for a spare if it stays.",
    StepCause.STAGE_IMBALANCE: "Give that stage fewer layers, or move its head or embedding to another one.",
    StepCause.SEQ_IMBALANCE: "Balance the tokens of each step over the ranks: sort or pack sequences by length.",
    StepCause.SLOW_LINK: "Look at port, cable and switch between its two ends; the rank, where one is named, first.",
    StepCause.SLOW_DP_GROUP: "Test the links of that group's members in pairs: sums do not tell which of them is slow.",
    StepCause.GC_PAUSE: "Collect garbage on all ranks at the same step, and freeze what lives long.",
    StepCause.DATA_WAIT: "Give its loader more workers, or look at the storage that its shard lies on.",
}
