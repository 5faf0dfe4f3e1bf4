"""Which operation waits for which: the rules that turn one recorded step into a dependency graph.

The rules are those of "Understanding Stragglers in Large Model Training Using What-if Analysis" (OSDI 2025): one
compute stream and four transfer streams on every worker, and an end of the step in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.trace import Lanes, Layout

NO_OP_SLACK_SECONDS = 50e-6
"""A receive posted so long after the last compute has started, or a send over so long before the first has ended,
carries nothing."""

Edge = tuple[int, int]
ByType = dict[str, list[int]]


class StepOps:
    """The operations of the first step on the first data-parallel rank, by stage and kind in recorded order."""

    def __init__(self, lanes: Lanes) -> None:
        self.layout: Layout = lanes.layout
        self.start = lanes.start_seconds_ODT[:, 0, 0].tolist()
        self.end = lanes.end_seconds_ODT[:, 0, 0].tolist()
        self.optype = lanes.optype_O.tolist()
        self.stage = lanes.stage_O.tolist()
        self.seq = lanes.seq_O.tolist()
        self.chunk = lanes.chunk_O.tolist()
        self.stages: list[ByType] = [{name: [] for name in o.OPTYPES} for _ in range(self.layout.pp)]
        order = np.lexsort((lanes.optype_O, lanes.seq_O, lanes.start_seconds_ODT[:, 0, 0])).tolist()
        for op in order:
            self.stages[self.stage[op]][o.OPTYPES[self.optype[op]]].append(op)

    def in_order(self, ops: Iterable[int]) -> list[int]:
        """Operations by start time; ties by sequence number, then name."""
        return sorted(ops, key=lambda op: (self.start[op], self.seq[op], self.optype[op]))

    def global_chunk(self, op: int) -> int:
        """The place of an operation's chunk in the model."""
        return int(self.chunk[op] * self.layout.pp + self.stage[op])


def carriers(lanes: Lanes) -> NDArray[np.bool_]:
    """Which operations are real: transfers that a profiler recorded although nothing was sent are not."""
    step = StepOps(lanes)
    is_real_O = np.ones(len(step.start), dtype=bool)
    for ops in step.stages:
        for compute, send, recv in (
            (o.FORWARD, o.FORWARD_SEND, o.FORWARD_RECV),
            (o.BACKWARD, o.BACKWARD_SEND, o.BACKWARD_RECV),
        ):
            if not ops[compute]:
                continue
            last_start = max(step.start[op] for op in ops[compute]) + NO_OP_SLACK_SECONDS
            first_end = min(step.end[op] for op in ops[compute]) - NO_OP_SLACK_SECONDS
            is_real_O[[op for op in ops[recv] if step.start[op] > last_start]] = False
            is_real_O[[op for op in ops[send] if step.end[op] < first_end]] = False
    return is_real_O


def worker_edges(step: StepOps, stage: int) -> Iterator[Edge]:
    """What each operation of a stage waits for on its own worker."""
    ops = step.stages[stage]
    chain = step.in_order(ops[o.FORWARD] + ops[o.BACKWARD])
    yield from pairwise(chain)
    for kind in o.TRANSFERS:
        yield from pairwise(ops[kind])
    yield from _transfers(step, ops, o.FORWARD, o.FORWARD_SEND, o.FORWARD_RECV)
    yield from _transfers(step, ops, o.BACKWARD, o.BACKWARD_SEND, o.BACKWARD_RECV)
    if ops[o.BACKWARD] and (place := chain.index(ops[o.BACKWARD][0])) >= 2:
        for kind in (o.BACKWARD_SEND, o.BACKWARD_RECV):
            yield from ((chain[place - 2], op) for op in ops[kind][:1])
    yield from _parameters(step, ops)
    yield from _end_of_step(step, ops, chain)


def _transfers(step: StepOps, ops: ByType, kind: str, send: str, recv: str) -> Iterator[Edge]:
    """A receive comes before its compute and is posted after the compute before that; a send follows its compute."""
    computes = ops[kind]
    place = {op: index for index, op in enumerate(computes)}
    first, last = 0, step.layout.pp * step.layout.vpp - 1
    source, sink = (first, last) if kind == o.FORWARD else (last, first)
    receiving = [op for op in computes if step.global_chunk(op) != source]
    sending = [op for op in computes if step.global_chunk(op) != sink]
    for op, compute in zip(ops[recv], _matched(step, ops[recv], computes, receiving), strict=True):
        yield op, compute
        if place[compute]:
            yield computes[place[compute] - 1], op
    for op, compute in zip(ops[send], _matched(step, ops[send], computes, sending, is_send=True), strict=True):
        yield compute, op


def _matched(
    step: StepOps, transfers: list[int], computes: list[int], carrying: list[int], *, is_send: bool = False
) -> Sequence[int]:
    """The compute of each transfer, by their order."""
    if len(transfers) == len(carrying):
        return carrying
    if len(transfers) == len(computes):
        return computes
    if len(transfers) == len(computes) - 1:
        return computes[: len(transfers)] if is_send else computes[1:]
    op = transfers[0] if transfers else computes[0]
    kind = o.OPTYPES[step.optype[op]]
    raise EvidenceError(
        f"Stage {step.stage[op]} has {len(transfers)} transfers for {len(carrying)} computes ({kind}): the trace "
        "lacks operations, or vpp_size in the meta file is wrong."
    )


def _parameters(step: StepOps, ops: ByType) -> Iterator[Edge]:
    """Gathers and reductions share one stream; a chunk's first forward waits for its last gather."""
    yield from pairwise(step.in_order(ops[o.ALL_GATHER] + ops[o.REDUCE_SCATTER]))
    last_gather = {step.chunk[op]: op for op in ops[o.ALL_GATHER]}
    seen: set[int] = set()
    for op in ops[o.FORWARD]:
        chunk = step.chunk[op]
        if chunk not in seen and chunk in last_gather:
            yield last_gather[chunk], op
        seen.add(chunk)


def _end_of_step(step: StepOps, ops: ByType, chain: list[int]) -> Iterator[Edge]:
    """What follows the last compute, in its fixed order."""
    reductions = sorted(ops[o.REDUCE_SCATTER], key=lambda op: step.seq[op])
    if not ops[o.SEPARATE]:
        kinds = (ops[o.GC], ops[o.LAYERNORM], ops[o.EMBEDDING], reductions, ops[o.CLIP], ops[o.OPTIMIZER])
        yield from pairwise([*chain[-1:], *(op for kind in kinds for op in kind)])
        return
    last_backward = {step.chunk[op]: op for op in ops[o.BACKWARD]}
    for op in reductions:
        if step.chunk[op] in last_backward:
            yield last_backward[step.chunk[op]], op
    yield from pairwise([*chain[-1:], *ops[o.GC]])
    names = (o.LAYERNORM, o.EMBEDDING, o.SEPARATE, o.CLIP, o.OPTIMIZER)
    tail = [op for name in names for op in ops[name]]
    yield from pairwise(tail)
    before = [*reductions[-1:], *(ops[o.GC][-1:] or chain[-1:])]
    yield from ((op, tail[0]) for op in before if tail)


def groups(step: StepOps) -> Iterator[tuple[list[int], bool]]:
    """Operations of a lane that start together, and whether all data-parallel ranks join; each operation once."""
    joined: set[int] = set()
    for group in (*_pairs(step), *_across_stages(step)):
        joined.update(group)
        yield group, o.OPTYPES[step.optype[group[0]]] in o.DP_WIDE
    for op in range(len(step.start)):
        if op not in joined:
            yield [op], o.OPTYPES[step.optype[op]] in o.DP_WIDE


def _pairs(step: StepOps) -> Iterator[list[int]]:
    """The k-th send of a stage and the k-th receive of its neighbour; the outer ends of the pipeline are alone."""
    pp, is_circle = step.layout.pp, step.layout.vpp > 1
    for send, recv, towards in ((o.FORWARD_SEND, o.FORWARD_RECV, 1), (o.BACKWARD_SEND, o.BACKWARD_RECV, -1)):
        for stage in range(pp):
            neighbour = stage + towards
            if not 0 <= neighbour < pp and not is_circle:
                continue
            sends, recvs = step.stages[stage][send], step.stages[neighbour % pp][recv]
            if len(sends) != len(recvs):
                raise EvidenceError(
                    f"Stage {stage} has {len(sends)} operations {send} and stage {neighbour % pp} {len(recvs)} "
                    f"operations {recv}: the trace lacks some, or vpp_size in the meta file is wrong."
                )
            yield from map(list, zip(sends, recvs, strict=True))


def _across_stages(step: StepOps) -> Iterator[list[int]]:
    for kind in (o.EMBEDDING, o.CLIP):
        together: dict[int, list[int]] = {}
        for ops in step.stages:
            for place, op in enumerate(ops[kind]):
                together.setdefault(place, []).append(op)
        yield from together.values()
