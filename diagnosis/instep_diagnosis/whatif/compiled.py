"""The replay compiled by Numba: the same numbers as `replay.replay`, without the operations that a scenario leaves
ideal.

An operation's ends on all data-parallel ranks of a tile (some ranks, some steps) are one row, and a row is one vector
loop: with a row for each rank, half of the time went into beginning and ending loops. Shapes as in `replay`; `R` rows,
`V` places of a row, `X` data-parallel ranks × steps. Numba comes with the extra `whatif`; without it nothing imports
this module. The first call compiles (or reads the compiled code from Numba's cache); the guide says what that costs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from instep_diagnosis.whatif.replay import Model
from instep_diagnosis.whatif.scenarios import Scenarios
from instep_diagnosis.whatif.trace import Array

TILE_BYTES = 1024 << 10
"""The ends of a tile should stay in a core's second-level cache."""
TILE_STEPS_MIN = 8
IDEAL, RECORDED, MIXED = range(3)
"""The weights of one class of operations in one scenario; mixed ones differ by data-parallel rank."""


def replay(model: Model, scenarios: Scenarios) -> Array:
    """Step seconds [scenario, step]; of paired scenarios [scenario and data-parallel rank, step]."""
    graph, weights = model.graph, model.weights
    ops, dp, steps = weights.recorded_ODT.shape
    lanes = scenarios.lanes
    places = max(1, TILE_BYTES // (8 * (int(graph.slot_O.max()) + 1) * lanes))
    tile_steps = min(steps, places if lanes > 1 else max(TILE_STEPS_MIN, places // dp))
    tile_ranks = min(dp, max(1, places // tile_steps)) if scenarios.is_paired else dp
    recorded_KSD = scenarios.recorded_KSD
    weight_SK = np.where(recorded_KSD.all(axis=2), RECORDED, np.where(recorded_KSD.any(axis=2), MIXED, IDEAL)).T
    seconds_SRT = np.full((recorded_KSD.shape[1], dp if scenarios.is_paired else 1, steps), -np.inf)
    _replay(
        (graph.member_starts, graph.members, graph.is_dp_wide, graph.wait_starts, graph.waits_for, graph.slot_O),
        *(graph.finals, model.class_O, weights.recorded_ODT.reshape(ops, dp * steps), weights.ideal_O),
        *(model.ideal_end_O, np.ascontiguousarray(weight_SK), recorded_KSD, scenarios.is_paired, lanes),
        *(tile_ranks, tile_steps, seconds_SRT),
    )
    return seconds_SRT.reshape(-1, steps)


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})(function)


@_compiled
def _replay(
    graph: Any,
    finals: Any,
    class_O: Any,
    recorded_OX: Any,
    ideal_O: Any,
    ideal_end_O: Any,
    weight_SK: Any,
    recorded_KSD: Any,
    is_paired: bool,
    lanes: int,
    tile_ranks: int,
    tile_steps: int,
    seconds_SRT: Any,
) -> None:
    """All scenarios, one after the other, tile by tile."""
    ops, dp, steps = len(class_O), recorded_KSD.shape[2], seconds_SRT.shape[2]
    ends_RV = np.empty(((graph[5].max() + 2) * lanes, tile_ranks * tile_steps))
    is_off_OL = np.empty((ops, lanes), dtype=np.bool_)
    source_L = np.empty(lanes, dtype=np.int64)
    for scenario in range(len(weight_SK)):
        _mark(graph, class_O, weight_SK[scenario], is_off_OL)
        for first_dp in range(0, dp, tile_ranks):
            ranks = min(tile_ranks, dp - first_dp)
            for first in range(0, steps, tile_steps):
                tile = (first_dp, ranks, first, min(tile_steps, steps - first), steps)
                _tile(
                    *(graph, class_O, recorded_OX, ideal_O, ideal_end_O, weight_SK[scenario]),
                    *(recorded_KSD[:, scenario], is_paired, tile, is_off_OL, source_L, ends_RV),
                )
                _finish(
                    *(finals, graph[5], ideal_end_O, is_paired, tile, is_off_OL, ends_RV, seconds_SRT[scenario]),
                )


@_compiled
def _mark(graph: Any, class_O: Any, weight_K: Any, is_off_OL: Any) -> None:
    """Which operations can end at another moment than in the ideal step: recorded ones, which are on the first lane,
    and all that wait for one."""
    member_starts, members, is_dp_wide, wait_starts, waits_for, _ = graph
    lanes = is_off_OL.shape[1]
    for node in range(len(is_dp_wide)):
        group = members[member_starts[node] : member_starts[node + 1]]
        is_any = False
        for lane in range(lanes):
            is_late = False
            for op in group:
                for place in range(wait_starts[op], wait_starts[op + 1]):
                    is_late = is_late or is_off_OL[waits_for[place], lane]
            is_any = is_any or is_late
            for op in group:
                is_off_OL[op, lane] = is_late or (lane == 0 and weight_K[class_O[op]] != IDEAL)
        if is_dp_wide[node] and is_any:
            for op in group:
                is_off_OL[op, :] = True


@_compiled
def _tile(
    graph: Any,
    class_O: Any,
    recorded_OX: Any,
    ideal_O: Any,
    ideal_end_O: Any,
    weight_K: Any,
    recorded_KD: Any,
    is_paired: bool,
    tile: Any,
    is_off_OL: Any,
    source_L: Any,
    ends_RV: Any,
) -> None:
    """The ends of one scenario on some ranks in some steps: a row for each slot and lane, at the end one for each lane
    to gather in."""
    member_starts, members, is_dp_wide, _, _, slot_O = graph
    lanes = is_off_OL.shape[1]
    count = tile[1] * tile[3]
    for node in range(len(is_dp_wide)):
        group = members[member_starts[node] : member_starts[node + 1]]
        is_any = False
        for op in group:
            for lane in range(lanes):
                is_any = is_any or is_off_OL[op, lane]
        if not is_any:
            continue
        for lane in range(lanes):
            source_L[lane] = _gather(graph, group, lane, count, ideal_end_O, is_off_OL, ends_RV)
        if is_dp_wide[node]:
            _join(tile, is_paired, source_L, ends_RV)
        for op in group:
            for lane in range(lanes):
                if is_off_OL[op, lane]:
                    ready_V, end_V = ends_RV[source_L[lane]], ends_RV[slot_O[op] * lanes + lane]
                    weight = weight_K[class_O[op]] if lane == 0 else IDEAL
                    if weight == IDEAL:
                        own = ideal_O[op]
                        for place in range(count):
                            end_V[place] = ready_V[place] + own
                    else:
                        recorded_D = recorded_KD[class_O[op]]
                        _add_recorded(tile, ready_V, recorded_OX[op], weight, recorded_D, ideal_O[op], end_V)


@_compiled
def _gather(graph: Any, group: Any, lane: int, count: int, ideal_end_O: Any, is_off_OL: Any, ends_RV: Any) -> Any:
    """The row that holds when a group could start on one lane: the latest end of what its members wait for."""
    _, _, _, wait_starts, waits_for, slot_O = graph
    lanes = is_off_OL.shape[1]
    row = len(ends_RV) - lanes + lane
    ready_V = ends_RV[row]
    latest, found, source = -np.inf, 0, row
    for op in group:
        for place in range(wait_starts[op], wait_starts[op + 1]):
            before = waits_for[place]
            if not is_off_OL[before, lane]:
                latest = max(latest, ideal_end_O[before])
                continue
            end_V = ends_RV[slot_O[before] * lanes + lane]
            if found == 0:
                source = slot_O[before] * lanes + lane
            else:
                so_far_V = ends_RV[source]
                for v in range(count):
                    ready_V[v] = max(so_far_V[v], end_V[v])
                source = row
            found += 1
    if found == 0:
        ready_V[:count] = 0.0 if latest == -np.inf else latest
    elif latest > -np.inf:
        so_far_V = ends_RV[source]
        for v in range(count):
            ready_V[v] = max(so_far_V[v], latest)
        source = row
    return source


@_compiled
def _join(tile: Any, is_paired: bool, source_L: Any, ends_RV: Any) -> None:
    """Make a data-parallel group ready at its latest start: over the lanes of a pair, or over all ranks."""
    _, ranks, _, steps, _ = tile
    row = len(ends_RV) - len(source_L)
    ready_V = ends_RV[row]
    if is_paired:
        for lane in range(1, len(source_L)):
            one_V, other_V = ends_RV[source_L[0]], ends_RV[source_L[lane]]
            for place in range(ranks * steps):
                ready_V[place] = max(one_V[place], other_V[place])
            source_L[:] = row
        return
    source_V = ends_RV[source_L[0]]
    for step in range(steps):
        ready_V[step] = source_V[step]
    for rank in range(1, ranks):
        for step in range(steps):
            ready_V[step] = max(ready_V[step], source_V[rank * steps + step])
    for rank in range(1, ranks):
        for step in range(steps):
            ready_V[rank * steps + step] = ready_V[step]
    source_L[0] = row


@_compiled
def _add_recorded(
    tile: Any, ready_V: Any, recorded_X: Any, weight: int, recorded_D: Any, ideal: float, end_V: Any
) -> None:
    first_dp, ranks, first, steps, steps_all = tile
    if weight == RECORDED and steps == steps_all:
        own_V = recorded_X[first_dp * steps : (first_dp + ranks) * steps]
        for place in range(ranks * steps):
            end_V[place] = ready_V[place] + own_V[place]
        return
    for rank in range(ranks):
        from_V, to_V = ready_V[rank * steps : (rank + 1) * steps], end_V[rank * steps : (rank + 1) * steps]
        if recorded_D[first_dp + rank]:
            begin = (first_dp + rank) * steps_all + first
            own_V = recorded_X[begin : begin + steps]
            for place in range(steps):
                to_V[place] = from_V[place] + own_V[place]
        else:
            for place in range(steps):
                to_V[place] = from_V[place] + ideal


@_compiled
def _finish(
    finals: Any,
    slot_O: Any,
    ideal_end_O: Any,
    is_paired: bool,
    tile: Any,
    is_off_OL: Any,
    ends_RV: Any,
    seconds_RT: Any,
) -> None:
    """Put down the latest end of each step: of each rank's own scenario where they are paired, else of all ranks."""
    first_dp, ranks, first, steps, _ = tile
    lanes = is_off_OL.shape[1]
    for op in finals:
        for lane in range(lanes):
            end_V = ends_RV[slot_O[op] * lanes + lane]
            for rank in range(ranks):
                seconds_T = seconds_RT[first_dp + rank if is_paired else 0]
                for step in range(steps):
                    end = end_V[rank * steps + step] if is_off_OL[op, lane] else ideal_end_O[op]
                    seconds_T[first + step] = max(seconds_T[first + step], end)
