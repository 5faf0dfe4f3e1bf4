"""What remains of a recording once waits are taken out: each operation's own time, and its ideal.

Shapes: `O` operations, `D` data-parallel ranks, `T` steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.graph import Graph
from instep_diagnosis.whatif.trace import Array, Lanes

CLOCK_SLACK_SECONDS = 0.010
"""A time that is negative by so much is no measurement but clocks apart, and counts as 0."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Own seconds of every operation, as recorded and ideal, and the recorded length of each step."""

    recorded_ODT: Array
    ideal_O: Array
    step_seconds_T: Array
    has_clamped: bool = False
    """Whether a recorded time contradicted its group and was taken as 0."""


def weigh(lanes: Lanes, graph: Graph) -> Weights:
    """Compute keeps its duration; a transfer or collective is its end less the latest start in its group."""
    recorded_ODT = lanes.end_seconds_ODT - _ready(lanes, graph)
    is_waiting_O = np.isin(lanes.optype_O, [o.CODES[name] for name in o.WAITING])
    has_clamped = bool(recorded_ODT.min() <= -CLOCK_SLACK_SECONDS)
    if has_clamped:
        recorded_ODT[(recorded_ODT <= -CLOCK_SLACK_SECONDS) & is_waiting_O[:, None, None]] = 0.0
    ends_T = lanes.end_seconds_ODT[graph.finals].max(axis=(0, 1))
    return Weights(recorded_ODT, _ideal(lanes, recorded_ODT), ends_T - step_starts(lanes), has_clamped)


def step_starts(lanes: Lanes) -> Array:
    """The start of each step's first operation."""
    starts: Array = lanes.start_seconds_ODT.min(axis=(0, 1))
    return starts


def _ready(lanes: Lanes, graph: Graph) -> Array:
    """The moment at which each operation's whole group has started."""
    ready_ODT = lanes.start_seconds_ODT.copy()
    members, bounds = graph.members, graph.member_starts
    sizes = np.diff(bounds)
    wide = members[bounds[:-1][graph.is_dp_wide & (sizes == 1)]]
    ready_ODT[wide] = ready_ODT[wide].max(axis=1, keepdims=True)
    first = bounds[:-1][~graph.is_dp_wide & (sizes == 2)]
    left, right = members[first], members[first + 1]
    ready_ODT[left] = ready_ODT[right] = np.maximum(ready_ODT[left], ready_ODT[right])
    is_done = (sizes == 1) | (~graph.is_dp_wide & (sizes == 2))
    for node in np.flatnonzero(~is_done):
        group = members[bounds[node] : bounds[node + 1]]
        axes = (0, 1) if graph.is_dp_wide[node] else 0
        ready_ODT[group] = ready_ODT[group].max(axis=axes, keepdims=True)
    return ready_ODT


def _ideal(lanes: Lanes, recorded_ODT: Array) -> Array:
    """One number for each kind: the median of communication, the mean of all else."""
    ideal_O = np.zeros(len(lanes.optype_O))
    for code in np.unique(lanes.optype_O):
        is_kind_O = lanes.optype_O == code
        values = recorded_ODT[is_kind_O]
        ideal_O[is_kind_O] = np.median(values) if o.OPTYPES[code] in o.MEDIAN_TYPES else values.mean()
    return ideal_O
