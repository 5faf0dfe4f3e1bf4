"""Which rank is alive and slower than its peers before the collective that makes all wait, why, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from instep_diagnosis.detectors.calibration import calibrated
from instep_diagnosis.detectors.cores import CoreSpeed, core_speed
from instep_diagnosis.detectors.faint import find_intermittent
from instep_diagnosis.detectors.node_or_job import RankNodeFacts, attribute
from instep_diagnosis.detectors.slowdown import Limits, Slowdown, find_slowdowns
from instep_diagnosis.detectors.work import Array, StepArrays, peers_median_of, step_arrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.settings import StragglerSettings
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Kind, Owner, Suspect, Verdict
from instep_diagnosis.whatif.steps import cost_of

__all__ = ["StragglerSettings", "detect_stragglers"]

_WORDS = {
    Cause.SLOW_COMPUTE: "it computes longer for the same work",
    Cause.SLOW_STALL: "it waits inside its own work without computing",
    Cause.STARVED: "it waits for a core",
    Cause.DATA: "it waits for its data",
    Cause.UNKNOWN: "whether it computes or waits was not observed",
}


@dataclass(frozen=True, slots=True)
class _Found:
    slow: Slowdown
    cause: Cause
    work_TR: Array


def detect_stragglers(job: JobSteps, settings: StragglerSettings | None = None) -> list[Verdict]:
    """Ranks that are slower than their peers now, slowest first, at most `findings_max`.

    Empty with fewer than `steps_min` compared steps, for a slowdown of the whole job, for offsets below
    `slowdown_ratio_min`, and where the rank is not also the one that waits least for its peers. Missing steps are
    left out and never count against a rank. A verdict with `is_ongoing` False tells that a rank has recovered; it
    opens no incident.
    """
    settings = settings or StragglerSettings()
    arrays = step_arrays(job, window_steps=window_of(len(job.steps), settings))
    return [] if arrays is None else detect_in_arrays(job, arrays, settings)


def window_of(ranks: int, settings: StragglerSettings) -> int:
    """How many of the newest steps of a job of so many ranks are looked at.

    >>> window_of(4, StragglerSettings()), window_of(8192, StragglerSettings())
    (128, 64)
    """
    affordable = settings.window_rank_steps_max // max(1, ranks)
    return max(settings.window_steps_min, min(settings.window_steps, affordable))


def detect_in_arrays(job: JobSteps, arrays: StepArrays, settings: StragglerSettings | None = None) -> list[Verdict]:
    """The same where the steps are arrays already; `job` tells names and nodes."""
    settings = settings or StragglerSettings()
    found = _by_channel(job, arrays, settings)
    # When half of the ranks or more stand out, "slow" and "peers" have lost their meaning.
    if 2 * len(found) > len(arrays.ranks) or (len(arrays.ranks) > 2 and 2 * len(found) == len(arrays.ranks)):
        return []
    return [_verdict(job, arrays, item) for item in found[: settings.findings_max]]


def _by_channel(job: JobSteps, arrays: StepArrays, settings: StragglerSettings) -> list[_Found]:
    """Slow work first; then, for ranks whose work is not slow, waiting for a core and waiting for data."""
    own_TR = arrays.own_seconds_TR
    starved_TR = np.nan_to_num(arrays.starved_seconds_TR)
    disturbance = disturbance_of(arrays, settings)
    channels = [
        (0.0 * starved_TR, Limits(settings.slowdown_ratio_min, settings.rise_ratio_min, disturbance), None),
        (starved_TR, Limits(settings.starved_ratio_min, None, disturbance), Cause.STARVED),
        (arrays.data_seconds_TR, Limits(settings.data_ratio_min, None, disturbance), Cause.DATA),
    ]
    found: dict[int, _Found] = {}
    for extra_TR, limits, cause in channels:
        if cause is not None and not _may_slow(own_TR, extra_TR, limits, settings):
            continue
        if cause is Cause.STARVED and _is_pair_of_one_node(job, arrays):
            continue
        work_TR = own_TR + extra_TR
        for slow in find_slowdowns(work_TR, limits, settings):
            if cause is not None and not _is_cause(work_TR, extra_TR, slow, settings):
                continue
            if slow.column in found or not _waits_least(arrays, slow, cause):
                continue
            if cause is None and _is_passing_core(job, arrays, slow, settings):
                continue
            found[slow.column] = _Found(slow, cause or _compute_or_stall(arrays, slow), work_TR)
    # Where neighbours disturb, single slow steps are theirs.
    if not found and disturbance < settings.disturbance_min:
        faint = find_intermittent(own_TR, settings)
        found = {
            s.column: _Found(s, _compute_or_stall(arrays, s), own_TR)
            for s in faint
            if _waits_least(arrays, s) and not _is_passing_core(job, arrays, s, settings)
        }
    return sorted(found.values(), key=lambda item: -item.slow.ratio)


def _may_slow(own_TR: Array, extra_TR: Array, limits: Limits, settings: StragglerSettings) -> bool:
    """Whether any rank waits now for a quarter of the smallest slowdown: else there is nothing to look for."""
    newest = slice(-settings.run_steps_min, None)
    waits_R = np.nansum(extra_TR[newest], axis=0) / settings.run_steps_min
    least = 0.25 * (limits.ratio_min - 1.0) * float(np.nanmedian(own_TR[newest]))
    return bool(waits_R.max(initial=0.0) >= least)


def _is_pair_of_one_node(job: JobSteps, arrays: StepArrays) -> bool:
    """Whether the only peer has the same cores: which of the two waits for one is chance, and may be so for long."""
    return len(arrays.ranks) == 2 and len({job.nodes.get(rank, "") for rank in arrays.ranks}) == 1


def disturbance_of(arrays: StepArrays, settings: StragglerSettings) -> float:
    """How far neighbours on the ranks' cores may explain that ranks come apart, from 0 to 1.

    Time without a core is taken off a rank's work, but not what a shared core costs beyond it: CPU time of the same
    work was seen to grow by half while the core's other thread was busy. So it is the share of CPU time in the work,
    as far as ranks were seen to wait for cores. 0 where neither was observed.
    """
    own_TR, starved_TR, cpu_TR = arrays.own_seconds_TR, arrays.starved_seconds_TR, arrays.cpu_seconds_TR
    known_TR = np.isfinite(own_TR) & np.isfinite(starved_TR) & np.isfinite(cpu_TR)
    if not known_TR.any():
        return 0.0
    work = float(own_TR[known_TR].sum())
    crowded = float(starved_TR[known_TR].sum()) / work / settings.disturbed_starved_share
    return min(1.0, float(cpu_TR[known_TR].sum()) / work) * min(1.0, crowded)


def _is_cause(work_TR: Array, extra_TR: Array, slow: Slowdown, settings: StragglerSettings) -> bool:
    """Whether waiting explains the slowdown: it lasts, makes up most of what the rank loses against its peers, and is
    beyond what others wait, and the rank itself at other times. Where all wait for cores now and then there are too few
    of them, and whose turn it is is chance."""
    rows = list(slow.rows)
    if not _lasts(extra_TR, slow, settings):
        return False
    if _excess(extra_TR[rows], slow.column) < 0.5 * _excess(work_TR[rows], slow.column):
        return False
    elsewhere_TR = extra_TR.copy()
    elsewhere_TR[rows, slow.column] = np.nan
    usual = float(np.nanquantile(elsewhere_TR, settings.waits_usual_quantile))
    return float(np.nanmedian(extra_TR[rows, slow.column])) >= settings.waits_beyond_usual * usual


def _lasts(extra_TR: Array, slow: Slowdown, settings: StragglerSettings) -> bool:
    """Whether a rank waited in enough steps of the stretch: a few long waits are a neighbour's burst and no lasting
    one."""
    extra_T = np.nan_to_num(extra_TR[list(slow.rows), slow.column])
    return int(np.sum(extra_T > 0.25 * extra_T.max(initial=0.0))) >= settings.run_steps_min


def _waits_least(arrays: StepArrays, slow: Slowdown, cause: Cause | None = None) -> bool:
    """Peers wait for a straggler, and it for nobody: its wait lies below theirs in the stretch.

    Where work is slow, waiting for a core counts too: a peer that had none for a while makes the slow rank wait. Waits
    are those that average tokens would have made: where sequences vary, these decide who waits in a step.
    """
    rows = list(slow.rows)
    wait_TR = arrays.wait_seconds_TR[rows] + arrays.tokens_seconds_TR[rows]
    if cause is None:
        wait_TR = wait_TR + np.nan_to_num(arrays.starved_seconds_TR[rows])
    own = float(np.nanmean(wait_TR[:, slow.column]))
    others = np.nanmean(np.delete(wait_TR, slow.column, axis=1))
    return own < float(others)


def _compute_or_stall(arrays: StepArrays, slow: Slowdown) -> Cause:
    """Whether the extra time is computing: the share of it that is CPU time of the rank's main thread."""
    rows = list(slow.rows)
    extra_cpu = _excess(arrays.cpu_seconds_TR[rows], slow.column)
    extra_own = _excess(arrays.own_seconds_TR[rows], slow.column)
    if not np.isfinite(extra_cpu) or extra_own <= 0:
        return Cause.UNKNOWN
    return Cause.SLOW_COMPUTE if extra_cpu >= 0.5 * extra_own else Cause.SLOW_STALL


def _core_of(job: JobSteps, arrays: StepArrays, slow: Slowdown) -> CoreSpeed:
    """How fast the rank's core was in the stretch; unknown where most of its work is no computing, as of a rank that
    waits for its GPU."""
    rows = list(slow.rows)
    cpu_T, own_T = arrays.cpu_seconds_TR[rows, slow.column], arrays.own_seconds_TR[rows, slow.column]
    known_T = np.isfinite(cpu_T) & np.isfinite(own_T)
    if 2.0 * float(cpu_T[known_T].sum()) <= float(own_T[known_T].sum()):
        return CoreSpeed()
    return core_speed(job, arrays.ranks[slow.column], {arrays.steps[row] for row in rows})


def _is_passing_core(job: JobSteps, arrays: StepArrays, slow: Slowdown, settings: StragglerSettings) -> bool:
    """Whether the core explains the slowdown and has not been slow for long: neighbours come and go.

    It does where it was as much slower all the time, or where the steps in which it was not are hardly any or hardly
    slow.
    """
    core = _core_of(job, arrays, slow)
    if core.seconds >= settings.slow_core_seconds_min:
        return False
    level = float(np.log(slow.ratio))
    if core.slowness >= settings.slow_core_share * level:
        return True
    rest = [row for row in slow.rows if arrays.steps[row] not in core.slow_steps]
    if 2 * len(rest) < len(slow.rows):
        return True
    own_TR = arrays.own_seconds_TR[rest]
    excess_T = np.log(own_TR[:, slow.column]) - np.log(peers_median_of(own_TR, slow.column))
    return float(np.nanmedian(excess_T)) < 0.5 * level


def _excess(values_TR: Array, column: int) -> float:
    """Median excess of one column over its peers, in seconds a step; NaN where it was not observed."""
    excess_T = values_TR[:, column] - peers_median_of(values_TR, column)
    excess_T = excess_T[np.isfinite(excess_T)]
    return float(np.median(excess_T)) if excess_T.size else float("nan")


def _verdict(job: JobSteps, arrays: StepArrays, found: _Found) -> Verdict:
    slow, cause = found.slow, found.cause
    rank = arrays.ranks[slow.column]
    node = job.nodes.get(rank, "")
    rows = list(slow.rows)
    work_TR = found.work_TR[rows]
    cost = cost_of([slow.column], work_TR).gpu_seconds
    onset = arrays.steps[slow.start]
    percent = round(100 * (slow.ratio - 1))
    now = "is" if slow.is_ongoing else "was"
    summary = (
        f"Rank {rank} on {node or 'an unknown node'} {now} {percent} % slower than its peers since step {onset} "
        f"({len(rows)} steps): {_WORDS[cause]}; {cost:.1f} rank-seconds lost so far."
    )
    verdict = Verdict(
        kind=Kind.STRAGGLER,
        certainty=Certainty.CONFIRMED,
        summary=summary,
        suspects=(Suspect(rank, node, cause=cause, confidence=_confidence(slow)),),
        owner=Owner.UNKNOWN,
        evidence=(
            _own_evidence(arrays, found, rank, node),
            _wait_evidence(arrays, slow, rank, node),
            *_core_evidence(job, arrays, slow, rank, node),
        ),
        job=job.job,
        run=job.run,
        attempt=job.attempt,
        onset_step=onset,
        cost_gpu_seconds=round(cost, 3),
        cause=cause,
        is_ongoing=slow.is_ongoing,
    )
    return _attributed(verdict, node, rank)


def _attributed(verdict: Verdict, node: str, rank: int) -> Verdict:
    """With its owner and how to mend it, as far as the rank's own steps tell."""
    found = attribute(verdict, RankNodeFacts())
    advice = Evidence(
        text=f"{found.reason} {found.fix}",
        node=node,
        rank=rank,
        source="rank-record",
        fields={"cost_gpu_hours": found.cost_gpu_hours},
    )
    return replace(verdict, owner=found.owner, evidence=(*verdict.evidence, advice))


def _confidence(slow: Slowdown) -> float:
    """The measured share of right answers at this distance to the null, in standard errors."""
    return calibrated("straggler", slow.z)


def _own_evidence(arrays: StepArrays, found: _Found, rank: int, node: str) -> Evidence:
    rows, column = list(found.slow.rows), found.slow.column
    own = float(np.nanmedian(found.work_TR[rows, column]))
    peers = float(np.nanmedian(peers_median_of(found.work_TR[rows], column)))
    return Evidence(
        text=f"Rank {rank} worked {own:.4g} s a step, its peers {peers:.4g} s.",
        node=node,
        rank=rank,
        source="rank-record",
        fields={
            "own_seconds": own,
            "peers_seconds": peers,
            "ratio": found.slow.ratio,
            "z": found.slow.z,
            "steps": len(rows),
            "cpu_excess_seconds": _number(_excess(arrays.cpu_seconds_TR[rows], column)),
            "starved_excess_seconds": _number(_excess(arrays.starved_seconds_TR[rows], column)),
        },
    )


def _wait_evidence(arrays: StepArrays, slow: Slowdown, rank: int, node: str) -> Evidence:
    wait_TR = arrays.wait_seconds_TR[list(slow.rows)]
    own = float(np.nanmean(wait_TR[:, slow.column]))
    others = float(np.nanmean(np.delete(wait_TR, slow.column, axis=1)))
    return Evidence(
        text=f"Rank {rank} waited {own:.4g} s a step for its peers, they {others:.4g} s.",
        node=node,
        rank=rank,
        source="rank-record",
        fields={"wait_seconds": own, "peers_wait_seconds": others},
    )


def _core_evidence(job: JobSteps, arrays: StepArrays, slow: Slowdown, rank: int, node: str) -> tuple[Evidence, ...]:
    """Nothing where the yardstick was not observed."""
    core = _core_of(job, arrays, slow)
    if core.slowness == 0.0:
        return ()
    times = float(np.exp(core.slowness))
    text = f"What is the same for all ranks took {times:.2f} times as long on the core of rank {rank}."
    return (Evidence(text=text, node=node, rank=rank, source="rank-record", fields={"core_ratio": times}),)


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
