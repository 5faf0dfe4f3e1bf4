"""What-if analysis of a recorded trace: how long its steps would take if some of it had not been slow.

The quantities are those of "Understanding Stragglers in Large Model Training Using What-if Analysis" (OSDI 2025), but a
worker's slowdown is computed exactly, not taken as the lesser of its stage's and its data-parallel rank's. Shapes:
`S` scenarios, `T` steps, `P` stages, `D` data-parallel ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif import scenarios as sc
from instep_diagnosis.whatif.graph import build_graph
from instep_diagnosis.whatif.replay import Model, Replay, ideal_seconds, model_of, replay, replay_error_ratio
from instep_diagnosis.whatif.rules import carriers
from instep_diagnosis.whatif.trace import Array, Ints, Lanes, Layout, Trace, lay_out
from instep_diagnosis.whatif.weights import weigh

WORST_SHARE = 0.03
"""The share of workers that M_W makes ideal, as published."""

Worker = tuple[int, int]
"""Stage and data-parallel rank."""


@dataclass(frozen=True, slots=True)
class Blame:
    """What a set of workers explains: `removed` of the loss is gone when they are ideal; alone they add `added`.

    `m` is the published M_W or M_S: the same number as `removed`. NaN where there is no loss to explain.
    """

    workers: tuple[Worker, ...]
    seconds_without: float
    seconds_alone: float
    removed: float
    added: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result. Slowdowns are ratios of mean step seconds; `_T` arrays are by step in the order of `steps_T`."""

    layout: Layout
    steps_T: Ints
    dropped_steps: tuple[int, ...]
    recorded_seconds_T: Array
    simulated_seconds_T: Array
    """With recorded weights and no delays between operations."""
    ideal_seconds: float
    replay_error_ratio: float
    """How far a step is missed at most when the delays are kept: more than rounding only where operations are recorded
    before what they wait for."""
    stage_seconds_PT: Array
    dp_seconds_DT: Array
    optype_seconds_T: dict[str, Array]
    worker_seconds_PDT: Array
    worst_workers: Blame
    last_stage: Blame
    recovered: tuple[tuple[int, float], ...]
    """For 1, 2, 4, … of the slowest workers: the share of the loss that is gone when they are made ideal."""

    @property
    def slowdown(self) -> float:
        """Mean simulated over ideal step seconds."""
        return self.ratio(self.simulated_seconds_T)

    @property
    def launch_slowdown(self) -> float:
        """Mean recorded over simulated step seconds: how far the model is off without the delays."""
        return float(self.recorded_seconds_T.mean() / self.simulated_seconds_T.mean())

    @property
    def slowdown_by_worker_PD(self) -> Array:
        """Exact slowdown of each worker."""
        slowdowns: Array = self.worker_seconds_PDT.mean(axis=2) / self.ideal_seconds
        return slowdowns

    def ratio(self, seconds_T: Array) -> float:
        """Mean step seconds of a scenario over those of the ideal one."""
        return float(seconds_T.mean() / self.ideal_seconds)


def analyse(trace: Trace, replay: Replay = replay) -> Analysis:
    """The analysis of a trace; raises `EvidenceError` with one sentence for a trace that has no answer."""
    lanes = lay_out(trace)
    return analyse_lanes(lanes, prepare(lanes), replay)


def prepare(lanes: Lanes) -> tuple[Lanes, Model]:
    """The lanes without transfers that carry nothing, and their model."""
    is_real_O = carriers(lanes)
    lanes = lanes if is_real_O.all() else lanes.only(is_real_O)
    graph = build_graph(lanes)
    return lanes, model_of(lanes, graph, weigh(lanes, graph))


def analyse_lanes(original: Lanes, prepared: tuple[Lanes, Model], replay: Replay = replay) -> Analysis:
    """The analysis of laid-out and prepared lanes."""
    lanes, model = prepared
    return decompose(
        lanes.layout,
        model,
        replay,
        names=[o.OPTYPES[code] for code in np.unique(lanes.optype_O)],
        steps_T=original.steps_T,
        dropped_steps=original.dropped_steps,
        error_ratio=replay_error_ratio(lanes, model),
    )


def decompose(
    layout: Layout,
    model: Model,
    replay: Replay,
    *,
    names: list[str],
    steps_T: Ints,
    dropped_steps: tuple[int, ...],
    error_ratio: float,
) -> Analysis:
    """Every scenario of the analysis, in three batches."""
    by_report: dict[str, list[str]] = {}
    for name in names:
        by_report.setdefault(o.REPORTED_AS[name], []).append(name)
    stages = [sc.stage_recorded(layout, stage) for stage in range(layout.pp)]
    types = [sc.kinds_recorded(layout, each) for each in by_report.values()]
    whole_ST = replay(model, sc.whole(layout, [~sc.nothing(layout), ~stages[-1], *stages, *types]))
    simulated_T, without_last_T, stage_PT = whole_ST[0], whole_ST[1], whole_ST[2 : 2 + layout.pp]
    paired_PDT = replay(model, sc.paired(layout)).reshape(1 + layout.pp, layout.dp, -1)
    ideal = ideal_seconds(model)
    if not (ideal > 0 and simulated_T.mean() > 0):
        raise EvidenceError("The steps of the trace take no time: check its column duration, which holds seconds.")
    worker_PD = paired_PDT[1:].mean(axis=2)
    least_PD = np.minimum(stage_PT.mean(axis=1)[:, None], paired_PDT[0].mean(axis=1)[None, :])
    worst = slowest(least_PD, math.ceil(WORST_SHARE * worker_PD.size))
    order = slowest(worker_PD, worker_PD.size)
    counts = _doubling(len(order))
    # The worst workers are mostly the first of the order as well, and a set is replayed once.
    fixed = list(dict.fromkeys([worst, *(order[:count] for count in counts)]))
    masks = [sc.workers_recorded(layout, each) for each in fixed]
    fixed_ST = replay(model, sc.whole(layout, [masks[0], *(~mask for mask in masks)]))
    without_T = dict(zip(fixed, fixed_ST[1:], strict=True))
    loss = float(simulated_T.mean()) - ideal
    last = tuple((layout.pp - 1, dp) for dp in range(layout.dp))
    return Analysis(
        layout=layout,
        steps_T=steps_T,
        dropped_steps=dropped_steps,
        recorded_seconds_T=model.weights.step_seconds_T,
        simulated_seconds_T=simulated_T,
        ideal_seconds=ideal,
        replay_error_ratio=error_ratio,
        stage_seconds_PT=stage_PT,
        dp_seconds_DT=paired_PDT[0],
        optype_seconds_T=dict(zip(by_report, whole_ST[2 + layout.pp :], strict=True)),
        worker_seconds_PDT=paired_PDT[1:],
        worst_workers=_blame(worst, simulated_T, without_T[worst], fixed_ST[0], ideal),
        last_stage=_blame(last, simulated_T, without_last_T, stage_PT[-1], ideal),
        recovered=tuple(
            (count, _share(float(simulated_T.mean() - without_T[order[:count]].mean()), loss, ideal))
            for count in counts
        ),
    )


def slowest(slowdown_PD: Array, count: int) -> tuple[Worker, ...]:
    """The workers with the highest values; of equal ones, the lower rank first."""
    dps = slowdown_PD.shape[1]
    order = np.argsort(-slowdown_PD, axis=None, kind="stable")[:count]
    return tuple((int(place) // dps, int(place) % dps) for place in order)


def _doubling(workers: int) -> list[int]:
    """1, 2, 4, … and all."""
    return [*(1 << power for power in range((workers - 1).bit_length())), workers]


def _blame(workers: tuple[Worker, ...], simulated_T: Array, without_T: Array, alone_T: Array, ideal: float) -> Blame:
    simulated, without, alone = (float(values.mean()) for values in (simulated_T, without_T, alone_T))
    loss = simulated - ideal
    return Blame(
        workers=workers,
        seconds_without=without,
        seconds_alone=alone,
        removed=_share(simulated - without, loss, ideal),
        added=_share(alone - ideal, loss, ideal),
    )


def _share(part: float, loss: float, ideal: float) -> float:
    """A share of the loss; NaN where the loss is no more than rounding."""
    return part / loss if abs(loss) > 1e-9 * ideal else math.nan
