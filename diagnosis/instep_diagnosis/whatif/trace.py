"""A recorded trace as columns, checked once and laid out as dense arrays that everything after works on.

Shapes: `N` rows of the file, `O` operations of one lane, `D` data-parallel ranks, `T` steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.whatif.optypes import OPTYPES

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

ROWS_MAX = 40_000_000
"""About 2 GB of working arrays; published traces have 10^5 rows."""
RANKS_MAX = 16_384
"""Stages times data-parallel ranks: with eight tensor-parallel ranks each, 131,072 GPUs."""
STAGES_MAX = 256
SEQ_MAX = 65_536
"""Operations of one kind on one worker in one step."""
CHUNKS_MAX = 64
SECONDS_MAX = 1e6
"""Eleven days: a longer step is a broken clock."""
PRESENCE_MAX = 1 << 22
"""Step numbers that lie within such a range are sorted by marking, others by comparing."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a job is laid out: pipeline stages, data-parallel ranks, model chunks of a stage."""

    pp: int
    dp: int
    vpp: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse sizes that no job has."""
        for size, value, limit in (("pp_size", self.pp, STAGES_MAX), ("dp_size", self.dp, RANKS_MAX)):
            if not 1 <= value <= limit:
                raise EvidenceError(f"The meta file's {size} is {value}: give a number from 1 to {limit}.")
        if self.pp * self.dp > RANKS_MAX:
            raise EvidenceError(f"The meta file's pp_size x dp_size is {self.pp * self.dp}: at most {RANKS_MAX}.")
        if not 1 <= self.vpp <= CHUNKS_MAX:
            raise EvidenceError(f"The meta file's vpp_size is {self.vpp}: give a number from 1 to {CHUNKS_MAX}.")


@dataclass(frozen=True, slots=True)
class Trace:
    """Rows in any order: who did what from when for how long. `chunk_N` is -1 where it does not apply."""

    layout: Layout
    dp_N: NDArray[Any]
    stage_N: NDArray[Any]
    step_N: NDArray[Any]
    optype_N: NDArray[Any]
    """Codes: places in `OPTYPES`; -1 for kinds that the method does not know, which are left out."""
    start_seconds_N: NDArray[Any]
    duration_seconds_N: NDArray[Any]
    seq_N: NDArray[Any]
    chunk_N: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Lanes:
    """The same operations for every step and data-parallel rank, sorted by kind, stage and sequence number."""

    layout: Layout
    steps_T: Ints
    optype_O: Ints
    stage_O: Ints
    seq_O: Ints
    chunk_O: Ints
    start_seconds_ODT: Array
    end_seconds_ODT: Array
    dropped_steps: tuple[int, ...] = ()
    """Steps in which an operation is missing, doubled or met in no other step; they are left out."""

    def only(self, kept_O: NDArray[np.bool_]) -> Lanes:
        """These lanes with some operations only."""
        return replace(
            self,
            optype_O=self.optype_O[kept_O],
            stage_O=self.stage_O[kept_O],
            seq_O=self.seq_O[kept_O],
            chunk_O=self.chunk_O[kept_O],
            start_seconds_ODT=self.start_seconds_ODT[kept_O],
            end_seconds_ODT=self.end_seconds_ODT[kept_O],
        )


def lay_out(trace: Trace) -> Lanes:
    """The rows as dense arrays over the steps that are complete; refuses what is no trace, saying where and why."""
    trace = _checked(trace)
    layout, lanes_per_step = trace.layout, trace.layout.dp
    steps_T, step_index_N = _numbered(trace.step_N)
    seq_count = int(trace.seq_N.max()) + 1
    key_N = (trace.optype_N.astype(np.int64) * layout.pp + trace.stage_N) * seq_count + trace.seq_N
    keys, op_N = _numbered(key_N)
    lanes = len(steps_T) * lanes_per_step
    is_usual = 2 * np.bincount(op_N, minlength=len(keys)) >= lanes
    keys = keys[is_usual]
    op_N = np.where(is_usual, np.cumsum(is_usual) - 1, -1)[op_N]
    index_TDO = _rows_of_cells(trace, op_N, step_index_N, (len(steps_T), lanes_per_step, len(keys)))
    is_whole_T: NDArray[np.bool_] = np.zeros(len(steps_T), dtype=bool)
    if len(keys):
        is_whole_T |= (index_TDO >= 0).all(axis=(1, 2))
        is_whole_T[step_index_N[op_N < 0]] = False
    if not is_whole_T.any():
        raise EvidenceError(_nothing_whole(trace, steps_T, index_TDO))
    return _filled(trace, keys, seq_count, steps_T, index_TDO, is_whole_T)


def _checked(trace: Trace) -> Trace:
    layout = trace.layout
    if len(trace.step_N) > ROWS_MAX:
        raise EvidenceError(f"The trace has {len(trace.step_N)} rows: at most {ROWS_MAX}; record fewer steps.")
    is_known_N = trace.optype_N >= 0
    if not is_known_N.all():
        trace = _rows(trace, is_known_N)
    if not len(trace.step_N):
        raise EvidenceError(f"The trace holds no operation of a known kind: name them as in {OPTYPES[0]}.")
    for name, values, low, high in (
        ("dp_rank", trace.dp_N, 0, layout.dp - 1),
        ("stage", trace.stage_N, 0, layout.pp - 1),
        ("seq_id", trace.seq_N, 0, SEQ_MAX - 1),
        ("mc", trace.chunk_N, -1, layout.vpp - 1),
        ("start_ts", trace.start_seconds_N, -SECONDS_MAX, SECONDS_MAX),
        ("duration", trace.duration_seconds_N, 0, SECONDS_MAX),
    ):
        if not (values.min() >= low and values.max() <= high):  # NaN fails both, and so fails here
            row = int(np.flatnonzero(~((values >= low) & (values <= high)))[0])
            where = f"{OPTYPES[int(trace.optype_N[row])]} of step {trace.step_N[row]}"
            raise EvidenceError(
                f"The trace's column {name} holds {values[row]:g} ({where}): the values lie from {low:g} to {high:g}; "
                "check the recording and the sizes in the meta file."
            )
    return trace


def _rows(trace: Trace, kept_N: NDArray[np.bool_]) -> Trace:
    columns = (trace.dp_N, trace.stage_N, trace.step_N, trace.optype_N, trace.start_seconds_N, trace.duration_seconds_N)
    return Trace(trace.layout, *(values[kept_N] for values in (*columns, trace.seq_N, trace.chunk_N)))


def _numbered(values_N: NDArray[Any]) -> tuple[Ints, Ints]:
    """The distinct values in order, and each row's place among them."""
    low, high = int(values_N.min()), int(values_N.max())
    if high - low >= PRESENCE_MAX:
        distinct, index_N = np.unique(values_N, return_inverse=True)
        return distinct.astype(np.int64), index_N.astype(np.int64)
    offset_N = values_N - low if low else values_N
    is_there = np.zeros(high - low + 1, dtype=bool)
    is_there[offset_N] = True
    return np.flatnonzero(is_there) + low, (np.cumsum(is_there) - 1)[offset_N]


def _rows_of_cells(trace: Trace, op_N: Ints, step_index_N: Ints, shape: tuple[int, int, int]) -> Ints:
    """The row that fills each cell of [step, data-parallel rank, operation]; -1 where none or more than one does."""
    _, dp, ops = shape
    cell_N = (step_index_N * dp + trace.dp_N) * max(ops, 1) + op_N
    rows = np.flatnonzero(op_N >= 0) if (op_N < 0).any() else np.arange(len(op_N))
    cell_N = cell_N[rows] if len(rows) < len(cell_N) else cell_N
    index = np.full(shape[0] * dp * ops, -1, dtype=np.int64)
    index[cell_N] = rows
    if int((index >= 0).sum()) < len(rows):
        counts = np.bincount(cell_N, minlength=len(index))
        index[counts > 1] = -1
    return index.reshape(shape)


def _filled(
    trace: Trace, keys: Ints, seq_count: int, steps_T: Ints, index_TDO: Ints, is_whole_T: NDArray[np.bool_]
) -> Lanes:
    is_all = bool(is_whole_T.all())
    index_ODT = np.ascontiguousarray((index_TDO if is_all else index_TDO[is_whole_T]).transpose(2, 1, 0))
    start_ODT = trace.start_seconds_N[index_ODT].astype(np.float64)
    end_ODT = trace.duration_seconds_N[index_ODT].astype(np.float64)
    end_ODT += start_ODT
    optype_O, rest_O = np.divmod(keys, trace.layout.pp * seq_count)
    stage_O, seq_O = np.divmod(rest_O, seq_count)
    chunk_O = np.maximum(trace.chunk_N[index_ODT[:, 0, 0]].astype(np.int64), 0)
    dropped = tuple(int(step) for step in steps_T[~is_whole_T])
    whole_T = steps_T[is_whole_T]
    return Lanes(trace.layout, whole_T, optype_O, stage_O, seq_O, chunk_O, start_ODT, end_ODT, dropped)


def _nothing_whole(trace: Trace, steps_T: Ints, index_TDO: Ints) -> str:
    missing = np.argwhere(index_TDO < 0)
    where = f"{len(steps_T)} steps of {trace.layout.dp} DP ranks"
    if len(missing):
        step, dp, _ = missing[0]
        where = f"an operation of step {steps_T[step]} on DP rank {dp} is missing or doubled"
    return f"No step of the trace is complete ({where}): record every rank, and check dp_size in the meta file."
