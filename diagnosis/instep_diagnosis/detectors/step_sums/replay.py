"""How long a step takes when its parts take so long: one-forward-one-backward pipelines, and the collectives around
them.

Shapes: `P` stages, `D` data-parallel ranks, `T` steps, `L` lanes (a pipeline in a step). Seconds throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepParts:
    """What the ranks of a job do in each step. Arrays are [T, P, D]; no NaN."""

    forward_seconds: Array
    """Forward compute of all micro-batches."""
    backward_seconds: Array
    link_seconds: Array
    """One transfer to the next stage, and one back from it, [2, T, P, D]; the last stage has none."""
    ready_seconds: Array
    """From the start of the step until the rank could start its first forward."""
    tail_seconds: Array
    """Of its collectives after the last backward, without waiting."""
    pause_seconds: Array
    """In which one micro-batch stops on top of its compute, forward and backward, [2, T, P, D]."""
    unevenness: Array
    """How a column's micro-batches differ, the same in all its stages: the standard deviation of their logarithm,
    [T, 1, D]."""
    micro_batches: int
    is_first_tied_to_last: bool = False
    """The first and the last stage share an embedding, so each waits for the other's last backward."""


def step_seconds(parts: StepParts) -> Array:
    """Length of each step, [T]: the slowest column's end, since all wait for one another at the end.

    Where ranks pause, the mean over places of the pauses, which are unknown and each column's own.
    """
    draws = PLACE_DRAWS if parts.pause_seconds.any() else 1
    return expected_longest(np.stack([_column_seconds(parts, draw) for draw in range(draws)]))


PLACE_DRAWS = 8
"""With one draw for all columns the longest of 32 columns was found an eighth too short of what pauses cost."""


def _column_seconds(parts: StepParts, draw: int) -> Array:
    """[T, D]: when each column would end the step by itself. Collectives start when their last member is there."""
    T, P, D = parts.forward_seconds.shape
    compute = Compute(
        np.stack([_lanes(parts.forward_seconds), _lanes(parts.backward_seconds)]),
        np.stack([_lanes(way) for way in parts.pause_seconds]),
        np.repeat(_pause_places(P, T, parts.micro_batches, draw), D, axis=1),
        _weights(parts.unevenness[:, 0], parts.micro_batches),
    )
    links = np.stack([_lanes(way) for way in parts.link_seconds])
    end_PTD = pipeline_ends(compute, links, _lanes(parts.ready_seconds), parts.micro_batches).reshape(P, T, D)
    if parts.is_first_tied_to_last:
        end_PTD[[0, -1]] = np.maximum(end_PTD[0], end_PTD[-1])
    tail_PTx = np.moveaxis(parts.tail_seconds, 1, 0).max(axis=2, keepdims=True)
    return np.asarray((end_PTD + tail_PTx).max(axis=0))


def expected_longest(seconds_KTD: Array) -> Array:
    """[T]: mean of the longest over columns when each column takes one of its `K` values by itself, all as likely.

    >>> expected_longest(np.array([[[1.0, 0.0]], [[3.0, 2.0]]]))  # 3 in every second case, else 2 or 1
    array([2.25])
    """
    draws, _, columns = seconds_KTD.shape
    # The probability that all columns are below x is the product of their shares of values below x: zero until each
    # has one, and then it grows by j / (j - 1) where x passes the j-th of a column.
    ordered_KTD = np.sort(seconds_KTD, axis=0)
    number_K = np.arange(1, draws + 1)
    growth_K = np.log(number_K / np.maximum(number_K - 1, 1))
    seconds_VT = np.moveaxis(ordered_KTD, 1, 2).reshape(draws * columns, -1)
    order_VT = np.argsort(seconds_VT, axis=0, kind="stable")
    seconds_VT = np.take_along_axis(seconds_VT, order_VT, axis=0)
    below_VT = np.exp(np.cumsum(np.repeat(growth_K, columns)[order_VT], axis=0) - columns * np.log(draws))
    below_VT[seconds_VT < ordered_KTD[0].max(axis=1)] = 0.0
    return np.asarray((seconds_VT * np.diff(below_VT, axis=0, prepend=0.0)).sum(axis=0))


def _lanes(values_TPD: Array) -> Array:
    return np.moveaxis(values_TPD, 1, 0).reshape(values_TPD.shape[1], -1)


def _pause_places(stages: int, steps: int, micro_batches: int, draw: int) -> npt.NDArray[np.int64]:
    """[P, T]: in which micro-batch a stage pauses. Sums do not tell; any place is as good as another, but stages pause
    apart, and no rank is special."""
    return np.random.default_rng((stages, draw)).integers(0, micro_batches, size=(stages, steps))


def _weights(unevenness_TD: Array, micro_batches: int) -> Array:
    """[M, L]: a micro-batch's share of its lane's work, 1/M on average: normal scores in another order each step."""
    scores = normal_scores(micro_batches)
    order = np.random.default_rng(micro_batches)
    scores_MT = np.stack([order.permutation(scores) for _ in unevenness_TD], axis=1)
    weights_MTD = np.exp(scores_MT[:, :, None] * unevenness_TD)
    return np.asarray(weights_MTD / weights_MTD.sum(axis=0)).reshape(micro_batches, -1)


def normal_scores(count: int) -> Array:
    """Where `count` values of a normal distribution lie on average.

    >>> normal_scores(3).round(2)
    array([-0.87,  0.  ,  0.87])
    """
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.625) / (count + 0.25)) for i in range(count)])


@dataclass(frozen=True, slots=True)
class Compute:
    """What the lanes compute; 2 is forward and backward, `M` the micro-batches."""

    seconds_FPL: Array
    pause_FPL: Array
    pause_place_PL: npt.NDArray[np.int64]
    weight_ML: Array

    def of(self, direction: int, stage: int, number: int) -> Array:
        """Seconds of one compute in every lane."""
        seconds = self.seconds_FPL[direction, stage] * self.weight_ML[number]
        return np.asarray(seconds + self.pause_FPL[direction, stage] * (self.pause_place_PL[stage] == number))


def pipeline_ends(compute: Compute, link_FPL: Array, ready_PL: Array, micro_batches: int) -> Array:
    """When each stage ends its last backward, [P, L].

    A receive is posted after the previous compute of its direction, and transfers of a direction follow one another:
    a slow link therefore costs more than its latency.
    """
    stages, lanes = ready_PL.shape
    free_PL = ready_PL.copy()
    end_FPL = np.zeros((2, stages, lanes))  # of the newest compute of a direction
    sent_FPL = np.zeros((2, stages, lanes))  # of the newest transfer *out of* a stage
    arrived: dict[tuple[int, int, int], Array] = {}
    for stage, direction, number in schedule(stages, micro_batches):
        start = free_PL[stage]
        source = stage - 1 if direction == 0 else stage + 1
        if 0 <= source < stages:
            # The rendezvous: the sender has computed and sent what came before, the receiver has computed it.
            ready = np.maximum(arrived.pop((direction, source, number)), end_FPL[direction, stage])
            ready = np.maximum(ready, sent_FPL[direction, source])
            sent_FPL[direction, source] = ready + link_FPL[direction, min(stage, source)]
            start = np.maximum(start, sent_FPL[direction, source])
        free_PL[stage] = end_FPL[direction, stage] = start + compute.of(direction, stage, number)
        arrived[direction, stage, number] = free_PL[stage].copy()
    return free_PL


@lru_cache(maxsize=64)
def schedule(stages: int, micro_batches: int) -> tuple[tuple[int, int, int], ...]:
    """(stage, direction, micro-batch) of every compute in an order in which each follows what it needs; direction 0
    is forward.

    >>> schedule(1, 2)
    ((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))
    """
    queues = [_stage_order(stage, stages, micro_batches) for stage in range(stages)]
    done: set[tuple[int, int, int]] = set()
    order: list[tuple[int, int, int]] = []
    places = [0] * stages
    while len(order) < 2 * stages * micro_batches:
        for stage in range(stages):
            while places[stage] < len(queues[stage]):
                direction, number = queues[stage][places[stage]]
                needed = (stage - 1 if direction == 0 else stage + 1, direction, number)
                if 0 <= needed[0] < stages and needed not in done:
                    break
                done.add((stage, direction, number))
                order.append((stage, direction, number))
                places[stage] += 1
    return tuple(order)


def _stage_order(stage: int, stages: int, micro_batches: int) -> list[tuple[int, int]]:
    """A stage's computes: its warm-up forwards, then one forward and one backward, then the remaining backwards."""
    warm = min(micro_batches, stages - 1 - stage)
    order = [(0, number) for number in range(warm)]
    for number in range(warm, micro_batches):
        order += [(0, number), (1, number - warm)]
    return order + [(1, number) for number in range(micro_batches - warm, micro_batches)]
