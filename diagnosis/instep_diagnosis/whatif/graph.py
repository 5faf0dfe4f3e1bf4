"""The dependency graph of one step in the form that replays run over: nodes in an order in which nothing waits for a
later one.

A node is a group of operations that start together; a data-parallel group is one node as well, over all its lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.rules import StepOps, groups, worker_edges
from instep_diagnosis.whatif.trace import Lanes

Index = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order. `members[starts[n]:starts[n + 1]]` are a node's operations; so for `waits_for`."""

    member_starts: Index
    members: Index
    is_dp_wide: NDArray[np.bool_]
    """By node."""
    wait_starts: Index
    waits_for: Index
    """By operation: the operations on its own lane that it waits for."""
    finals: Index
    """The operations whose latest end is the end of the step."""
    slot_O: Index
    """Where a replay may keep an operation's end: a slot is used again once nothing waits for its operation any more,
    so that the ends in use stay in a core's cache."""

    def nodes(self) -> list[tuple[list[int], list[list[int]], bool]]:
        """(operations, what each waits for, whether it is DP-wide) of each node, in order."""
        waits_for, starts = self.waits_for.tolist(), self.wait_starts.tolist()
        members, bounds = self.members.tolist(), self.member_starts.tolist()
        waits = [waits_for[low:high] for low, high in pairwise(starts)]
        each = [members[low:high] for low, high in pairwise(bounds)]
        wide = self.is_dp_wide.tolist()
        return [(ops, [waits[op] for op in ops], is_wide) for ops, is_wide in zip(each, wide, strict=True)]


def build_graph(lanes: Lanes) -> Graph:
    """The graph of the first recorded step of the first data-parallel rank; refuses circles, naming one operation."""
    step = StepOps(lanes)
    ops = len(step.start)
    waits: list[set[int]] = [set() for _ in range(ops)]
    for stage in range(step.layout.pp):
        for before, after in worker_edges(step, stage):
            waits[after].add(before)
    joined = list(groups(step))
    order = _order([group for group, _ in joined], waits, step)
    ordered = [joined[node] for node in order]
    optimizers = [op for op in range(ops) if step.optype[op] == o.CODES[o.OPTIMIZER]]
    finals = optimizers or list(range(ops))
    return Graph(
        member_starts=_bounds([group for group, _ in ordered]),
        members=np.array([op for group, _ in ordered for op in group], dtype=np.int32),
        is_dp_wide=np.array([is_wide for _, is_wide in ordered], dtype=bool),
        wait_starts=_bounds(waits),
        waits_for=np.array([before for each in waits for before in sorted(each)], dtype=np.int32),
        finals=np.array(finals, dtype=np.int32),
        slot_O=_slots([group for group, _ in ordered], waits, finals),
    )


def _bounds(lists: Sequence[Sequence[int] | set[int]]) -> Index:
    return np.concatenate(([0], np.cumsum([len(each) for each in lists]))).astype(np.int32)


def _order(joined: list[list[int]], waits: list[set[int]], step: StepOps) -> list[int]:
    """Kahn's order of the nodes: each after all that its operations wait for."""
    node_of = {op: node for node, group in enumerate(joined) for op in group}
    before = [{node_of[earlier] for op in group for earlier in waits[op]} for group in joined]
    after: list[list[int]] = [[] for _ in joined]
    for node, earlier in enumerate(before):
        for each in earlier:
            after[each].append(node)
    missing = [len(earlier) for earlier in before]
    order = [node for node, count in enumerate(missing) if not count]
    for node in order:
        for later in after[node]:
            missing[later] -= 1
            if not missing[later]:
                order.append(later)
    if len(order) < len(joined):
        op = joined[next(node for node, count in enumerate(missing) if count)][0]
        raise EvidenceError(
            f"The dependencies of the trace form a circle through {o.OPTYPES[step.optype[op]]} {step.seq[op]} of "
            f"stage {step.stage[op]}: the recorded order of its first step cannot have happened; check the clocks and "
            "vpp_size in the meta file."
        )
    return order


def _slots(ordered: list[list[int]], waits: list[set[int]], finals: list[int]) -> Index:
    last_use = [node for _, node in sorted((op, node) for node, group in enumerate(ordered) for op in group)]
    for node, group in enumerate(ordered):
        for op in group:
            for before in waits[op]:
                last_use[before] = max(last_use[before], node)
    for op in finals:
        last_use[op] = len(ordered)
    ending: list[list[int]] = [[] for _ in range(len(ordered) + 1)]
    for op, node in enumerate(last_use):
        ending[node].append(op)
    slot_O, count = np.zeros(len(waits), dtype=np.int32), 0
    free: list[int] = []
    for node, group in enumerate(ordered):
        for op in group:
            if not free:
                free.append(count)
                count += 1
            slot_O[op] = free.pop()
        # Only now: a node may read its operations' ends while it writes its own.
        free += [int(slot_O[op]) for op in ending[node]]
    return slot_O
