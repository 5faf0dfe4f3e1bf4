"""Traces whose answer is known: pipeline schedules of chosen durations, played by a loop over workers.

It shares nothing with the graph and its replays, so that tests can hold one against the other, and gives benchmarks a
trace of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.trace import Layout, Trace

Seconds = Callable[[int, str, int, int, int], float]
"""Own seconds by (step, kind, stage, data-parallel rank, number of that kind on the worker)."""

Compute = tuple[bool, int, int]
"""Whether it is a forward, its chunk, its micro-batch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played: `layout`, micro-batches of a step, and how gradients are reduced."""

    layout: Layout
    microbatches: int
    is_overlapped: bool = False
    """Gradients of a chunk are reduced as soon as its last backward is done; the rest in a separate reduction."""


@dataclass(slots=True)
class _Worker:
    """One worker while it is played: when its streams are free, and what it has recorded."""

    stage: int
    dp: int
    order: list[Compute]
    done: int = 0
    free: dict[str, float] = field(default_factory=dict)
    ended: dict[Compute, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    posted: dict[bool, float] = field(default_factory=dict)


def order_of(plan: Plan, stage: int) -> list[Compute]:
    """The computes of a stage: one forward and one backward in turn, after a warm-up; interleaved with many chunks."""
    pp, vpp = plan.layout.pp, plan.layout.vpp
    total = plan.microbatches * vpp
    warm_up = pp - stage - 1 if vpp == 1 else (pp - stage - 1) * 2 + (vpp - 1) * pp
    warm_up = min(total, warm_up)
    forwards = [(True, _chunk(k, pp, vpp), _microbatch(k, pp, vpp)) for k in range(total)]
    backwards = [(False, vpp - 1 - chunk, microbatch) for _, chunk, microbatch in forwards]
    turns = [op for pair in zip(forwards[warm_up:], backwards, strict=False) for op in pair]
    return [*forwards[:warm_up], *turns, *backwards[total - warm_up :]]


def _chunk(k: int, pp: int, vpp: int) -> int:
    return (k % (pp * vpp)) // pp if vpp > 1 else 0


def _microbatch(k: int, pp: int, vpp: int) -> int:
    return (k // (pp * vpp)) * pp + k % pp if vpp > 1 else k


class Player:
    """Plays one step of a plan with given durations; `rows` are what a profiler would have recorded."""

    def __init__(self, plan: Plan, seconds: Seconds, step: int) -> None:
        self.plan, self.seconds, self.step = plan, seconds, step
        self.rows: list[tuple[int, int, int, str, float, float, int, int]] = []
        pp, dp = plan.layout.pp, plan.layout.dp
        self.workers = [[_Worker(stage, d, order_of(plan, stage)) for d in range(dp)] for stage in range(pp)]
        self.sends: dict[tuple[int, int, Compute], float] = {}

    def play(self) -> float:
        """Play the step; the time at which its last operation ends."""
        for stage in self.workers:
            for chunk in range(self.plan.layout.vpp):
                self._together(o.ALL_GATHER, stage, "gather", chunk=chunk)
        lanes = [worker for stage in self.workers for worker in stage]
        while any(worker.done < len(worker.order) for worker in lanes):
            if not sum(self._advance(worker) for worker in lanes):
                raise RuntimeError("The schedule waits for itself.")
        return self._end()

    def _advance(self, worker: _Worker) -> bool:
        """Run one compute of a worker if its input is there."""
        if worker.done == len(worker.order):
            return False
        op = worker.order[worker.done]
        source = self._neighbour(worker.stage, op, -1)
        start = max(worker.free.get("compute", 0.0), worker.free.get(f"gather {op[1]}", 0.0) if op[0] else 0.0)
        if source is not None:
            sent = self.sends.get((source[0], worker.dp, source[1]))
            if sent is None:
                return False
            start = max(start, self._receive(worker, op, sent))
        end = start + self._own(o.FORWARD if op[0] else o.BACKWARD, worker)
        self._record(o.FORWARD if op[0] else o.BACKWARD, worker, start, end, op[1])
        worker.free["compute"] = worker.ended[op] = worker.posted[op[0]] = end
        worker.done += 1
        if self._neighbour(worker.stage, op, 1) is not None:
            kind = o.FORWARD_SEND if op[0] else o.BACKWARD_SEND
            self.sends[worker.stage, worker.dp, op] = max(end, worker.free.get(kind, 0.0))
        return True

    def _receive(self, worker: _Worker, op: Compute, sent: float) -> float:
        """Both ends of a transfer: it runs once both have started; each end takes its own seconds from there."""
        send, recv = (o.FORWARD_SEND, o.FORWARD_RECV) if op[0] else (o.BACKWARD_SEND, o.BACKWARD_RECV)
        first = worker.order.index(next(each for each in worker.order if not each[0]))
        before = worker.ended[worker.order[first - 2]] if first >= 2 and not op[0] else 0.0
        posted = max(worker.posted.get(op[0], before), worker.free.get(recv, 0.0))
        source = self._neighbour(worker.stage, op, -1)
        assert source is not None
        sender = self.workers[source[0]][worker.dp]
        begun = max(sent, sender.free.get(send, 0.0))
        ready = max(posted, begun)
        ends = ready + self._own(send, sender), ready + self._own(recv, worker)
        self._record(send, sender, begun, ends[0])
        self._record(recv, worker, posted, ends[1])
        sender.free[send], worker.free[recv] = ends
        return ends[1]

    def _neighbour(self, stage: int, op: Compute, towards: int) -> tuple[int, Compute] | None:
        """Where a compute's input comes from (-1) or its output goes to (1): stage and compute there."""
        layout = self.plan.layout
        place = op[1] * layout.pp + stage + (towards if op[0] else -towards)
        if not 0 <= place < layout.pp * layout.vpp:
            return None
        return place % layout.pp, (op[0], place // layout.pp, op[2])

    def _end(self) -> float:
        plan, stages = self.plan, self.workers
        for stage in stages:
            if plan.is_overlapped:
                last = {op[1]: worker for worker in stage[:1] for op in worker.order if not op[0]}
                for chunk in last:
                    for worker in stage:
                        ends = [end for op, end in worker.ended.items() if not op[0] and op[1] == chunk]
                        worker.free["ready"] = max(ends)
                    self._together(o.REDUCE_SCATTER, stage, "gather", after=("ready", "gather"), chunk=chunk)
            for worker in stage:
                worker.free["end"] = max(worker.free["compute"], worker.free["gather"] if plan.is_overlapped else 0.0)
                self._together(o.LAYERNORM, [worker], "end")
        for dp in range(plan.layout.dp):
            self._together(o.EMBEDDING, [stages[0][dp], stages[-1][dp]][: plan.layout.pp], "end")
        for stage in stages:
            kinds = [(o.SEPARATE, 0)] if plan.is_overlapped else [(o.REDUCE_SCATTER, c) for c in range(plan.layout.vpp)]
            for kind, chunk in kinds:
                self._together(kind, stage, "end", chunk=chunk)
        lanes = [worker for stage in stages for worker in stage]
        self._together(o.CLIP, lanes, "end")
        for worker in lanes:
            self._together(o.OPTIMIZER, [worker], "end")
        return max(worker.free["end"] for worker in lanes)

    def _together(
        self, kind: str, workers: list[_Worker], stream: str, *, after: tuple[str, ...] = (), chunk: int = 0
    ) -> None:
        """An operation that these workers start once all of them are there."""
        starts = [max(worker.free.get(name, 0.0) for name in after or (stream,)) for worker in workers]
        ready = max(starts)
        for worker, start in zip(workers, starts, strict=True):
            end = ready + self._own(kind, worker)
            self._record(kind, worker, start, end, chunk)
            worker.free[stream] = end
            if kind == o.ALL_GATHER:
                worker.free[f"gather {chunk}"] = end

    def _own(self, kind: str, worker: _Worker) -> float:
        return self.seconds(self.step, kind, worker.stage, worker.dp, worker.counts.get(kind, 0))

    def _record(self, kind: str, worker: _Worker, start: float, end: float, chunk: int = -1) -> None:
        seq = worker.counts.get(kind, 0)
        worker.counts[kind] = seq + 1
        self.rows.append((worker.dp, worker.stage, self.step, kind, start, end - start, seq, chunk))


def synthetic_trace(plan: Plan, seconds: Seconds, steps: int) -> tuple[Trace, list[float]]:
    """The trace of these steps, and how long each took."""
    players = [Player(plan, seconds, step) for step in range(steps)]
    lengths = [player.play() for player in players]
    rows = [row for player in players for row in player.rows]
    dp, stage, step, kind, start, length, seq, chunk = zip(*rows, strict=True)
    trace = Trace(
        layout=plan.layout,
        dp_N=np.array(dp),
        stage_N=np.array(stage),
        step_N=np.array(step),
        optype_N=np.array([o.CODES[name] for name in kind]),
        start_seconds_N=np.array(start),
        duration_seconds_N=np.array(length),
        seq_N=np.array(seq),
        chunk_N=np.array(chunk),
    )
    return trace, lengths
