"""Profiles of ranks as the rows of a trace.

Two kinds can be converted. Ranges that the training script named as a trace names its operations ("forward-compute",
"grads-reduce-scatter", …, and with more than one chunk "forward-compute chunk=1") are taken as they are, from the
device where the profiler saw them there. Without such names a plain data-parallel step on CPUs is told apart by what
torch itself names: the wrapper's forward, autograd's functions, the collectives and the optimizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.trace import Layout, Trace

CLOCKS_APART_SECONDS_MIN = 1e-3
"""Collectives end on all ranks at about the same moment; a lasting difference above this is the clocks'."""

_STEP = re.compile(r"ProfilerStep#(\d{1,15})$")
_NAMED = re.compile(r"(" + "|".join(o.OPTYPES) + r")(?: chunk=(\d{1,3}))?$")
_FORWARD = re.compile(r"(DistributedDataParallel|FullyShardedDataParallel)\.forward$")
_BACKWARD = "autograd::engine::evaluate_function: "
_COLLECTIVE = re.compile(r"(gloo|nccl|mpi|ucc|xccl):_?(all_?reduce|reduce_scatter)")
_OPTIMIZER = "Optimizer.step#"


@dataclass(frozen=True, slots=True)
class Span:
    """A named range of time, in seconds of the rank's clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What was profiled of one rank: ranges in any order."""

    rank: int
    spans: Sequence[Span]
    has_kernels: bool = False
    """Whether work ran on a device, so that the host's ranges do not tell when it was done."""


@dataclass(frozen=True, slots=True)
class _Row:
    step: int
    optype: str
    start: float
    end: float
    chunk: int = 0


def trace_of(profiles: Sequence[Profile], layout: Layout, *, tp: int = 1) -> Trace:
    """The rows of all ranks, with clocks made to agree where the job is purely data parallel.

    Ranks are laid out as Megatron does: tensor-parallel ranks next to each other, then data-parallel, then stages. Of
    the tensor-parallel ranks the first speaks for all. Raises `EvidenceError` where a rank or its operations are
    missing.
    """
    by_rank = {profile.rank: profile for profile in profiles}
    wanted = [index * tp for index in range(layout.pp * layout.dp)]
    missing = [rank for rank in wanted if rank not in by_rank]
    if missing:
        raise EvidenceError(
            f"The profile of rank {missing[0]} is missing ({len(missing)} of {len(wanted)} are): record every rank, or "
            "give the job's sizes with --meta."
        )
    rows = [_rows(by_rank[rank], layout) for rank in wanted]
    shifts = _shifts(rows) if layout.pp == 1 else [0.0] * len(rows)
    return _trace(layout, rows, shifts)


def _rows(profile: Profile, layout: Layout) -> list[_Row]:
    steps = [(match, span) for span in profile.spans if (match := _STEP.match(span.name))]
    named = [span for span in profile.spans if _NAMED.match(span.name)]
    if not steps:
        raise EvidenceError(
            f"The profile of rank {profile.rank} has no steps: give the profiler a schedule, and call its step()."
        )
    if not named and (profile.has_kernels or layout.pp > 1):
        raise EvidenceError(
            f"The profile of rank {profile.rank} does not say which operation is which: name them in the script with "
            f"torch.profiler.record_function, as in {o.FORWARD}."
        )
    rows: list[_Row] = []
    for match, step in steps:
        inside = [span for span in profile.spans if step.start <= span.start < step.end]
        number = int(match[1])
        rows += _named_rows(number, inside) if named else _plain_rows(number, step, inside)
    if not rows:
        raise EvidenceError(f"The profile of rank {profile.rank} has no operation in its steps: profile backward too.")
    return rows


def _named_rows(step: int, spans: Iterable[Span]) -> list[_Row]:
    found = ((_NAMED.match(span.name), span) for span in spans)
    return [_Row(step, match[1], span.start, span.end, int(match[2] or 0)) for match, span in found if match]


def _plain_rows(number: int, step: Span, spans: Sequence[Span]) -> list[_Row]:
    """The operations of a data-parallel step, whose gradients are reduced while the last backward still runs.

    Only the part of the reductions that backward does not hide is kept, as one operation.
    """
    backward = sorted((s for s in spans if s.name.startswith(_BACKWARD)), key=lambda s: s.start)
    if not backward:
        return []
    forwards = sorted(s.start for s in spans if _FORWARD.match(s.name)) or [step.start]
    rows = []
    for start, limit in pairwise([*forwards, step.end]):
        own = [s for s in backward if start <= s.start < limit]
        if own:
            rows.append(_Row(number, o.FORWARD, start, own[0].start))
            rows.append(_Row(number, o.BACKWARD, own[0].start, max(s.end for s in own)))
    reductions = [s for s in spans if _COLLECTIVE.match(s.name)]
    if reductions and rows:
        over = rows[-1].end
        start = max(over, min(s.start for s in reductions))
        rows.append(_Row(number, o.REDUCE_SCATTER, start, max(start, *(s.end for s in reductions))))
    rows += [_Row(number, o.OPTIMIZER, s.start, s.end) for s in spans if s.name.startswith(_OPTIMIZER)]
    return rows


def _shifts(rows: Sequence[Sequence[_Row]]) -> list[float]:
    """By how much each rank's clock is ahead of the first one's, from the ends of its gradient reductions."""
    ends = [{row.step: row.end for row in each if row.optype == o.REDUCE_SCATTER} for each in rows]
    shifts = []
    for each in ends:
        differences = [each[step] - ends[0][step] for step in each.keys() & ends[0].keys()]
        shift = median(differences) if differences else 0.0
        shifts.append(shift if abs(shift) > CLOCKS_APART_SECONDS_MIN else 0.0)
    return shifts


def _trace(layout: Layout, rows: Sequence[Sequence[_Row]], shifts: Sequence[float]) -> Trace:
    firsts: dict[int, float] = {}
    for each, shift in zip(rows, shifts, strict=True):
        for row in each:
            firsts[row.step] = min(firsts.get(row.step, np.inf), row.start - shift)
    columns: list[tuple[int, int, int, int, float, float, int, int]] = []
    for index, (each, shift) in enumerate(zip(rows, shifts, strict=True)):
        stage, dp = divmod(index, layout.dp)
        counts: dict[tuple[int, str], int] = {}
        for row in sorted(each, key=lambda row: row.start):
            seq = counts.get((row.step, row.optype), 0)
            counts[row.step, row.optype] = seq + 1
            start = row.start - shift - firsts[row.step]
            columns.append((dp, stage, row.step, o.CODES[row.optype], start, row.end - row.start, seq, row.chunk))
    return Trace(layout, *(np.array(column) for column in zip(*columns, strict=True)))
