"""Which rank is alive and slower than its peers before the collective that makes all wait, why, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from instep_diagnosis.detectors.calibration import calibrated
from instep_diagnosis.detectors.node_or_job import RankNodeFacts, attribute
from instep_diagnosis.detectors.slowdown import Slowdown, find_faint_slowdowns, find_slowdowns
from instep_diagnosis.detectors.work import Array, StepArrays, peers_median, step_arrays
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
    arrays = step_arrays(job, window_steps=settings.window_steps)
    return [] if arrays is None else detect_in_arrays(job, arrays, settings)


def detect_in_arrays(job: JobSteps, arrays: StepArrays, settings: StragglerSettings | None = None) -> list[Verdict]:
    """The same where the steps are arrays already; `job` tells names and nodes."""
    settings = settings or StragglerSettings()
    found = _by_channel(arrays, settings)
    # When half of the ranks or more stand out, "slow" and "peers" have lost their meaning.
    if 2 * len(found) > len(arrays.ranks) or (len(arrays.ranks) > 2 and 2 * len(found) == len(arrays.ranks)):
        return []
    return [_verdict(job, arrays, item) for item in found[: settings.findings_max]]


def _by_channel(arrays: StepArrays, settings: StragglerSettings) -> list[_Found]:
    """Slow work first; then, for ranks whose work is not slow, waiting for a core and waiting for data."""
    own_TR = arrays.own_seconds_TR
    starved_TR = np.nan_to_num(arrays.starved_seconds_TR)
    channels = [
        (0.0 * starved_TR, settings.slowdown_ratio_min, None),
        (starved_TR, settings.starved_ratio_min, Cause.STARVED),
        (arrays.data_seconds_TR, settings.data_ratio_min, Cause.DATA),
    ]
    found: dict[int, _Found] = {}
    for extra_TR, ratio_min, cause in channels:
        if cause is not None and not np.nan_to_num(extra_TR).any():
            continue
        work_TR = own_TR + extra_TR
        for slow in find_slowdowns(work_TR, ratio_min, settings):
            if cause is not None and not _lasts(extra_TR, slow, settings):
                continue
            if slow.column not in found and _waits_least(arrays, slow):
                found[slow.column] = _Found(slow, cause or _compute_or_stall(arrays, slow), work_TR)
    if not found:
        faint = find_faint_slowdowns(own_TR, settings)
        found = {s.column: _Found(s, _compute_or_stall(arrays, s), own_TR) for s in faint if _waits_least(arrays, s)}
    return sorted(found.values(), key=lambda item: -item.slow.ratio)


def _lasts(extra_TR: Array, slow: Slowdown, settings: StragglerSettings) -> bool:
    """Whether a rank waited in enough steps of the stretch: a few long waits are a neighbour's burst and no lasting
    one."""
    extra_T = np.nan_to_num(extra_TR[list(slow.rows), slow.column])
    return int(np.sum(extra_T > 0.25 * extra_T.max(initial=0.0))) >= settings.run_steps_min


def _waits_least(arrays: StepArrays, slow: Slowdown) -> bool:
    """Peers wait for a straggler, and it for nobody: its wait lies below theirs in the stretch."""
    wait_TR = arrays.wait_seconds_TR[list(slow.rows)]
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


def _excess(values_TR: Array, column: int) -> float:
    """Median excess of one column over its peers, in seconds a step; NaN where it was not observed."""
    excess_T = values_TR[:, column] - peers_median(values_TR)[:, column]
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
        evidence=(_own_evidence(arrays, found, rank, node), _wait_evidence(arrays, slow, rank, node)),
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
    peers = float(np.nanmedian(peers_median(found.work_TR[rows])[:, column]))
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


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
