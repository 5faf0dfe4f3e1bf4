"""Replays the graph of a step under many scenarios at once: the longest path, with waits made anew.

`start` of an operation is the latest end of what it waits for; a group is ready at its latest start; each member ends
its own seconds later. Shapes: `O` operations, `D` data-parallel ranks, `T` steps, `S` scenarios, `L` lanes of a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from instep_diagnosis.whatif.graph import Graph
from instep_diagnosis.whatif.scenarios import Scenarios
from instep_diagnosis.whatif.trace import Array, Lanes
from instep_diagnosis.whatif.weights import CLOCK_SLACK_SECONDS, Weights, step_starts

BLOCK_BYTES_MAX = 64 << 20
"""Memory that the ends of one block of steps may take; longer traces are replayed block by block."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a replay needs: the graph, each operation's class and its two weights."""

    graph: Graph
    class_O: NDArray[np.int64]
    weights: Weights
    ideal_end_O: Array


Replay = Callable[[Model, Scenarios], Array]


def model_of(lanes: Lanes, graph: Graph, weights: Weights) -> Model:
    """The model of laid-out lanes, with the ends of the ideal step."""
    class_O = lanes.optype_O * lanes.layout.pp + lanes.stage_O
    return Model(graph, class_O, weights, _ideal_ends(graph, weights.ideal_O.tolist()))


def ideal_seconds(model: Model) -> float:
    """How long a step takes with all weights ideal."""
    return float(model.ideal_end_O[model.graph.finals].max())


def replay(model: Model, scenarios: Scenarios) -> Array:
    """Step seconds [scenario, step], of paired scenarios [scenario and data-parallel rank, step]; by NumPy alone."""
    recorded_KSD = scenarios.recorded_KSD
    steps, count = model.weights.recorded_ODT.shape[2], recorded_KSD.shape[1]
    row_bytes = 8 * len(model.class_O) * recorded_KSD[0].size * scenarios.lanes
    block = max(1, min(steps, BLOCK_BYTES_MAX // row_bytes))
    if block == 1 and row_bytes > BLOCK_BYTES_MAX and count > 1:
        halves = (recorded_KSD[:, : count // 2], recorded_KSD[:, count // 2 :])
        return np.concatenate([replay(model, replace(scenarios, recorded_KSD=half)) for half in halves])
    blocks = [_block(model, scenarios, slice(first, first + block)) for first in range(0, steps, block)]
    return np.concatenate(blocks, axis=1)


def _block(model: Model, scenarios: Scenarios, steps: slice) -> Array:
    recorded_ODT = model.weights.recorded_ODT[:, :, steps]
    ideal_O, class_O = model.weights.ideal_O.tolist(), model.class_O.tolist()
    _, count, dp = scenarios.recorded_KSD.shape
    ends_OLSDT = np.empty((len(class_O), scenarios.lanes, count, dp, recorded_ODT.shape[2]))
    masks_KLSD1 = np.zeros((len(scenarios.recorded_KSD), *ends_OLSDT.shape[1:4], 1), dtype=bool)
    masks_KLSD1[:, 0, ..., 0] = scenarios.recorded_KSD
    waiting_axis = 0 if scenarios.is_paired else 2
    for ops, waits, is_wide in model.graph.nodes():
        ready_LSDT: Array | None = None
        for before in waits:
            for op in before:
                ready_LSDT = ends_OLSDT[op] if ready_LSDT is None else np.maximum(ready_LSDT, ends_OLSDT[op])
        if is_wide and ready_LSDT is not None:
            ready_LSDT = ready_LSDT.max(axis=waiting_axis, keepdims=True)
        for op in ops:
            ends_OLSDT[op] = np.where(masks_KLSD1[class_O[op]], recorded_ODT[op], ideal_O[op])
            if ready_LSDT is not None:
                ends_OLSDT[op] += ready_LSDT
    latest: Array = ends_OLSDT[model.graph.finals].max(axis=(0, 1))
    return latest.reshape(count * dp, -1) if scenarios.is_paired else latest.max(axis=1)


def _ideal_ends(graph: Graph, ideal_O: list[float]) -> Array:
    end_O = [0.0] * len(ideal_O)
    for ops, waits, _ in graph.nodes():
        ready = max((end_O[op] for before in waits for op in before), default=0.0)
        for op in ops:
            end_O[op] = ready + ideal_O[op]
    return np.array(end_O)


def starts_of_ideal(graph: Graph, ideal_O: Array) -> Array:
    """When each operation starts in the ideal step: the latest end of what it waits for itself."""
    end_O = _ideal_ends(graph, ideal_O.tolist())
    spans = pairwise(graph.wait_starts.tolist())
    return np.array([end_O[graph.waits_for[low:high]].max(initial=0.0) for low, high in spans])


def replay_error_ratio(lanes: Lanes, model: Model) -> float:
    """By how much of its length a step is missed at most when the delays between its operations are kept.

    Delays and own times add up to the recording, so only what was clamped, because it came before its cause, can make
    a difference.
    """
    slack, recorded_T = CLOCK_SLACK_SECONDS, model.weights.step_seconds_T
    if not model.weights.has_clamped and not _is_before_its_cause(lanes, model.graph, slack):
        return 0.0
    again_T = replay_with_delays(lanes, model, slack)
    return float(np.abs(again_T / np.maximum(recorded_T, 1e-12) - 1.0).max())


def _is_before_its_cause(lanes: Lanes, graph: Graph, slack_seconds: float) -> bool:
    after = np.repeat(np.arange(len(graph.slot_O)), np.diff(graph.wait_starts))
    pairs = zip(np.array_split(after, 16), np.array_split(graph.waits_for, 16), strict=True)
    starts_ODT, ends_ODT = lanes.start_seconds_ODT, lanes.end_seconds_ODT
    return any(len(a) and float((starts_ODT[a] - ends_ODT[b]).min()) <= -slack_seconds for a, b in pairs)


def replay_with_delays(lanes: Lanes, model: Model, slack_seconds: float) -> Array:
    """Step seconds with recorded weights and the recorded delays between operations: the recording made again."""
    graph, weights = model.graph, model.weights
    starts_ODT, first_T = lanes.start_seconds_ODT, step_starts(lanes)
    ends_ODT = np.empty_like(starts_ODT)
    for ops, waits, is_wide in graph.nodes():
        ready_DT: Array | None = None
        for op, before in zip(ops, waits, strict=True):
            seen_DT = _latest(lanes.end_seconds_ODT, before) if before else first_T
            delay_DT = starts_ODT[op] - seen_DT
            if delay_DT.min() <= -slack_seconds:
                delay_DT = np.where(delay_DT <= -slack_seconds, 0.0, delay_DT)
            start_DT = delay_DT + _latest(ends_ODT, before) if before else delay_DT
            ready_DT = start_DT if ready_DT is None else np.maximum(ready_DT, start_DT)
        assert ready_DT is not None
        if is_wide:
            ready_DT = ready_DT.max(axis=0, keepdims=True)
        for op in ops:
            np.add(ready_DT, weights.recorded_ODT[op], out=ends_ODT[op])
    latest: Array = ends_ODT[graph.finals].max(axis=(0, 1))
    return latest


def _latest(ends_ODT: Array, ops: list[int]) -> Array:
    latest: Array = ends_ODT[ops[0]]
    for op in ops[1:]:
        latest = np.maximum(latest, ends_ODT[op])
    return latest
