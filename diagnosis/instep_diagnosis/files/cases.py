"""Sums of steps of many jobs from a file: one JSON object a line, plain or compressed with gzip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.step_sums.sums import NAMES, StepSums
from instep_diagnosis.errors import EvidenceError, reason_of
from instep_diagnosis.files.gzipped import UNREADABLE, Lines, plain_or_gzip

LINE_BYTES_MAX = 256 * 1024 * 1024
"""One case: 8,192 ranks, 20 names and 128 steps in text."""
VALUES_MAX = 32 * 1024 * 1024
"""Numbers in one array of a case."""
MICRO_BATCHES_MAX = 4096
SECONDS_MAX = 1e9
"""No step lasts thirty years; what says so is no duration."""

Array = npt.NDArray[np.float64]


class _Case(msgspec.Struct):
    pp: int
    dp: int
    mb: int
    agg: dict[str, list[list[list[float | None]]]]
    id: str | int = ""
    steps: list[int] | int | None = None
    ranks: list[list[int]] | None = None
    ref: dict[str, list[list[float | None]]] = {}


def read_cases(path: str) -> Iterator[StepSums]:
    """Each case of a file, one at a time. Raises `EvidenceError` where the file or a line cannot be read, or where
    there is none."""
    try:
        with plain_or_gzip(Path(path)) as stream:
            yield from _cases(stream, path)
    except UNREADABLE as error:
        raise EvidenceError(f"Cannot read {path} ({reason_of(error)}): give a file of cases, plain or gzip.") from error


def _cases(stream: Lines, path: str) -> Iterator[StepSums]:
    number, is_any = 0, False
    while line := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        where = f"Line {number} of {path}"
        if len(line) > LINE_BYTES_MAX:
            raise EvidenceError(f"{where} is over {LINE_BYTES_MAX} bytes: give fewer steps in a case.")
        if line.strip():
            try:
                yield _sums(msgspec.json.decode(line, type=_Case), number)
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
                raise EvidenceError(f"{where} is no case ({error}): see docs/guide/diagnose.md.") from error
            is_any = True
    if not is_any:
        raise EvidenceError(f"{path} holds no case: give one JSON object a line, see docs/guide/diagnose.md.")


def _sums(case: _Case, number: int) -> StepSums:
    """A case as arrays. Raises ValueError in one clause."""
    if not 1 <= case.mb <= MICRO_BATCHES_MAX:
        raise ValueError(f"mb is {case.mb}, allowed is 1 to {MICRO_BATCHES_MAX}")
    if "fwd" not in case.agg or "bwd" not in case.agg:
        raise ValueError("agg has no fwd or no bwd")
    shape = (len(case.agg["fwd"]), case.pp, case.dp)
    if min(shape) < 1 or np.prod([float(n) for n in shape]) > VALUES_MAX:
        raise ValueError(f"{shape[0]} steps of {case.pp} stages and {case.dp} ranks are none or too many")
    seconds = {name: _array(case.agg.get(name), shape, name) for name in NAMES}
    if silent := [name for name in ("fwd", "bwd") if not np.isfinite(seconds[name]).any()]:
        raise ValueError(f"{silent[0]} holds no duration of any rank")
    early = {name: _array(case.ref.get(name), shape[1:], name) for name in NAMES}
    return StepSums(str(case.id) or str(number), case.mb, _ranks(case, shape), _steps(case, shape[0]), seconds, early)


def _array(values: object, shape: tuple[int, ...], name: str) -> Array:
    if values is None:
        return np.full(shape, np.nan)
    try:
        array = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{name} is ragged") from error
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}, expected is {shape}")
    return np.where((array >= 0.0) & (array <= SECONDS_MAX), array, np.nan)


def _ranks(case: _Case, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], ...]:
    _, stages, width = shape
    if case.ranks is None:
        return tuple(tuple(range(stage * width, (stage + 1) * width)) for stage in range(stages))
    if len(case.ranks) != stages or any(len(row) != width for row in case.ranks):
        raise ValueError(f"ranks is not {stages} stages of {width} ranks")
    return tuple(tuple(row) for row in case.ranks)


def _steps(case: _Case, count: int) -> tuple[int, ...]:
    if not isinstance(case.steps, list):
        return tuple(range(count))
    if len(case.steps) != count:
        raise ValueError(f"steps names {len(case.steps)} steps, agg has {count}")
    return tuple(case.steps)
