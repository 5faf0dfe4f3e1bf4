"""A table of numbers per worker and time from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instep_diagnosis.errors import EvidenceError

COLUMNS = ("time", "worker", "value")
ROWS_MAX = 2_000_000
CELLS_MAX = 16_000_000
"""Times multiplied by workers."""
WORKER_CHARACTERS_MAX = 200
ALIGNED_RATIO = 1.5
"""Workers that together have at most so many times more moments than one of them are sampled together."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """Numbers by time and worker; NaN where there is none."""

    values_TW: Array
    times_T: Array
    workers: tuple[str, ...]
    is_dated: bool
    """Times were given as dates and are seconds since 1970 here."""

    def moment(self, time: float) -> float | str:
        """A time as the file writes it."""
        return datetime.fromtimestamp(time, UTC).isoformat() if self.is_dated else time


def read_series(path: str) -> SeriesTable:
    """The table of a file, in order of time. Rows may come in any order; of rows for one worker and moment the mean
    counts; values that are no finite number are gaps. Raises `EvidenceError` where the file cannot be read."""
    try:
        with Path(path).open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            return _table(list(_rows(stream, path)), path)
    except OSError as error:
        raise EvidenceError(f"Cannot read {path} ({error.strerror}): give a CSV file.") from error
    except csv.Error as error:
        raise EvidenceError(f"{path} is no CSV file ({error}): give columns {', '.join(COLUMNS)}.") from error


def _rows(stream: Iterator[str], path: str) -> Iterator[tuple[float, bool, str, float]]:
    reader = csv.DictReader(stream)
    names = [name.strip() for name in reader.fieldnames or ()]
    if missing := [name for name in COLUMNS if name not in names]:
        raise EvidenceError(f"{path} has no column {missing[0]}: its first line must name {', '.join(COLUMNS)}.")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise EvidenceError(f"{path} has the column {twice[0]} twice: its first line must name it once.")
    reader.fieldnames = names
    for number, row in enumerate(reader, start=1):
        if number > ROWS_MAX:
            raise EvidenceError(f"{path} has over {ROWS_MAX} rows: give fewer at a time.")
        time, is_dated = _time(row["time"] or "", f"Line {reader.line_num} of {path}")
        yield time, is_dated, (row["worker"] or "").strip()[:WORKER_CHARACTERS_MAX], _value(row["value"])


def _time(text: str, where: str) -> tuple[float, bool]:
    try:
        time, is_dated = float(text), False
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError as error:
            raise EvidenceError(f"{where} has the time {text[:40]!r}: give seconds or an ISO 8601 date.") from error
        time, is_dated = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), True
    if not abs(time) < 1e15:
        raise EvidenceError(f"{where} has the time {text[:40]!r}: give seconds or an ISO 8601 date.")
    return time, is_dated


def _value(text: str | None) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        return float("nan")
    return value if abs(value) < 1e150 else float("nan")


def _table(rows: list[tuple[float, bool, str, float]], path: str) -> SeriesTable:
    workers = tuple(sorted({worker for _, _, worker, _ in rows}))
    column = {worker: number for number, worker in enumerate(workers)}
    times = np.array([time for time, *_ in rows], dtype=np.float64)
    columns = np.array([column[worker] for _, _, worker, _ in rows], dtype=np.int64)
    values = np.array([value for *_, value in rows], dtype=np.float64)
    if not np.isfinite(values).any():
        raise EvidenceError(f"{path} holds no value: give one number for each time and worker.")
    places, moments = _grid(times, columns, len(workers))
    if len(moments) * len(workers) > CELLS_MAX:
        raise EvidenceError(f"{path} has {len(moments)} times of {len(workers)} workers: give fewer at a time.")
    shape = (len(moments), len(workers))
    total, count = np.zeros(shape), np.zeros(shape)
    known = np.isfinite(values)
    np.add.at(total, (places[known], columns[known]), values[known])
    np.add.at(count, (places[known], columns[known]), 1.0)
    filled = np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
    return SeriesTable(filled, moments, workers, any(is_dated for _, is_dated, _, _ in rows))


def _grid(times: Array, columns: npt.NDArray[np.int64], workers: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Row of each sample, and the time of each row: the moments themselves, or intervals of the typical distance where
    workers are not sampled together."""
    moments, places = np.unique(times, return_inverse=True)
    most = int(np.bincount(columns, minlength=1).max()) if columns.size else 0
    if workers == 0 or len(moments) <= ALIGNED_RATIO * most:
        return places, moments
    order = np.lexsort((times, columns))
    steps = [b - a for a, b in pairwise(times[order]) if b > a]
    if not steps:  # one sample of each worker
        return places, moments
    interval = float(np.median(steps))
    numbers = np.floor((times - moments[0]) / interval + 0.5)
    cells, places = np.unique(numbers, return_inverse=True)
    return places, moments[0] + cells * interval
