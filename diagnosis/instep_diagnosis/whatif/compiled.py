"""The replay compiled by Numba: the same numbers as `replay.replay`, without the operations that a scenario leaves
ideal.

Numba comes with the extra `whatif`; without it nothing imports this module. The first call compiles (or reads the
compiled code from Numba's cache); the guide says what that costs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from instep_diagnosis.whatif.replay import Model
from instep_diagnosis.whatif.scenarios import Scenarios
from instep_diagnosis.whatif.trace import Array

BLOCK_BYTES = 1024 << 10
"""The ends of a block of steps should stay in a core's second-level cache."""
BLOCK_STEPS_MIN = 8


def replay(model: Model, scenarios: Scenarios) -> Array:
    """Step seconds [scenario, step]."""
    graph, weights = model.graph, model.weights
    steps = weights.recorded_ODT.shape[2]
    count, lanes = scenarios.dp_SL.shape
    slots = int(graph.slot_O.max()) + 1
    block = min(steps, max(BLOCK_STEPS_MIN, BLOCK_BYTES // (8 * slots * lanes)))
    seconds_ST = np.empty((count, steps))
    _replay(
        *(graph.member_starts, graph.members, graph.is_dp_wide, graph.wait_starts, graph.waits_for, graph.slot_O),
        graph.finals,
        *(model.class_O, weights.recorded_ODT, weights.ideal_O, model.ideal_end_O),
        *(scenarios.recorded_KSL, scenarios.dp_SL, block, seconds_ST),
    )
    return seconds_ST


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})(function)


@_compiled
def _replay(
    member_starts: Any,
    members: Any,
    is_dp_wide: Any,
    wait_starts: Any,
    waits_for: Any,
    slot_O: Any,
    finals: Any,
    class_O: Any,
    recorded_ODT: Any,
    ideal_O: Any,
    ideal_end_O: Any,
    recorded_KSL: Any,
    dp_SL: Any,
    block: int,
    seconds_ST: Any,
) -> None:
    """All scenarios, one after the other; steps in blocks."""
    graph = (member_starts, members, is_dp_wide, wait_starts, waits_for, slot_O)
    lanes, steps = dp_SL.shape[1], recorded_ODT.shape[2]
    ends_BLT = np.empty((slot_O.max() + 1, lanes, block))
    ready_LT = np.empty((lanes, block))
    is_off_OL = np.empty((len(class_O), lanes), dtype=np.bool_)
    for scenario in range(dp_SL.shape[0]):
        _mark(graph, class_O, recorded_KSL, scenario, is_off_OL)
        for first in range(0, steps, block):
            count = min(block, steps - first)
            _block(
                *(graph, class_O, recorded_ODT, ideal_O, ideal_end_O, recorded_KSL[:, scenario], dp_SL[scenario]),
                *(first, count, is_off_OL, ready_LT, ends_BLT),
            )
            for step in range(count):
                seconds_ST[scenario, first + step] = 0.0
            for op in finals:
                for lane in range(lanes):
                    for step in range(count):
                        end = ends_BLT[slot_O[op], lane, step] if is_off_OL[op, lane] else ideal_end_O[op]
                        seconds_ST[scenario, first + step] = max(seconds_ST[scenario, first + step], end)


@_compiled
def _mark(graph: Any, class_O: Any, recorded_KSL: Any, scenario: int, is_off_OL: Any) -> None:
    """Which operations can end at another moment than in the ideal step: recorded ones, and all that wait for one."""
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
                is_off_OL[op, lane] = is_late or recorded_KSL[class_O[op], scenario, lane]
        if is_dp_wide[node] and is_any:
            for op in group:
                is_off_OL[op, :] = True


@_compiled
def _block(
    graph: Any,
    class_O: Any,
    recorded_ODT: Any,
    ideal_O: Any,
    ideal_end_O: Any,
    recorded_KL: Any,
    dp_L: Any,
    first: int,
    count: int,
    is_off_OL: Any,
    ready_LT: Any,
    ends_BLT: Any,
) -> None:
    member_starts, members, is_dp_wide, wait_starts, waits_for, slot_O = graph
    lanes = len(dp_L)
    for node in range(len(is_dp_wide)):
        group = members[member_starts[node] : member_starts[node + 1]]
        is_wide = is_dp_wide[node]
        for lane in range(lanes):
            _gather(wait_starts, waits_for, slot_O, group, lane, count, ideal_end_O, is_off_OL, ends_BLT, ready_LT)
        if is_wide:
            for lane in range(1, lanes):
                for step in range(count):
                    ready_LT[0, step] = max(ready_LT[0, step], ready_LT[lane, step])
        for op in group:
            for lane in range(lanes):
                if not is_off_OL[op, lane]:
                    continue
                slot, dp, source = slot_O[op], dp_L[lane], 0 if is_wide else lane
                if recorded_KL[class_O[op], lane]:
                    for step in range(count):
                        ends_BLT[slot, lane, step] = ready_LT[source, step] + recorded_ODT[op, dp, first + step]
                else:
                    own = ideal_O[op]
                    for step in range(count):
                        ends_BLT[slot, lane, step] = ready_LT[source, step] + own


@_compiled
def _gather(
    wait_starts: Any,
    waits_for: Any,
    slot_O: Any,
    group: Any,
    lane: int,
    count: int,
    ideal_end_O: Any,
    is_off_OL: Any,
    ends_BLT: Any,
    ready_LT: Any,
) -> None:
    """When a group could start on one lane: the latest end of what its members wait for."""
    latest = 0.0
    for op in group:
        for place in range(wait_starts[op], wait_starts[op + 1]):
            before = waits_for[place]
            if not is_off_OL[before, lane]:
                latest = max(latest, ideal_end_O[before])
    for step in range(count):
        ready_LT[lane, step] = latest
    for op in group:
        for place in range(wait_starts[op], wait_starts[op + 1]):
            before = waits_for[place]
            if is_off_OL[before, lane]:
                slot = slot_O[before]
                for step in range(count):
                    ready_LT[lane, step] = max(ready_LT[lane, step], ends_BLT[slot, lane, step])
