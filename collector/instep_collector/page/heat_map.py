"""The rank × step heat map: how long each rank's own work took, relative to the median of its step.

Arrays: `R` ranks, `T` steps. Own work is wall time without waiting for peers; where waiting was not observed it is
wall time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from instep_agent.wire import StepReport
from instep_diagnosis.detectors.work import own_seconds

STEPS_SHOWN = 60
RANKS_SHOWN = 64
CELL = 11
LEFT = 52
SCALE = ((0.9, "#dbe9f6"), (1.08, "#e9eef2"), (1.18, "#fde7b0"), (1.35, "#f9bf5b"), (1.7, "#ee7f3a"))
"""Up to this ratio to the step's median → colour; beyond the last it is the hottest."""
HOTTEST = "#c8312b"
EMPTY = "#f6f7f8"


@dataclass(frozen=True, slots=True)
class Cell:
    """One rank in one step."""

    x: int
    y: int
    colour: str
    title: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Drawn as inline SVG."""

    width: int
    height: int
    cells: tuple[Cell, ...]
    labels: tuple[tuple[int, str], ...]
    """(y, text) of each row."""
    first_step: int
    last_step: int
    hidden_ranks: int


def heat_map(steps_by_rank: Mapping[int, Iterable[StepReport]], nodes: Mapping[int, str]) -> HeatMap | None:
    """Return the map of the last steps; None before any step."""
    kept = {rank: {step.step: step for step in list(steps)[-STEPS_SHOWN:]} for rank, steps in steps_by_rank.items()}
    numbers = sorted({number for steps in kept.values() for number in steps})[-STEPS_SHOWN:]
    if not numbers:
        return None
    ranks = sorted(kept)[:RANKS_SHOWN]
    own_RT = np.full((len(ranks), len(numbers)), np.nan)
    for row, rank in enumerate(ranks):
        for column, number in enumerate(numbers):
            if number in kept[rank]:
                own_RT[row, column] = max(0.0, own_seconds(kept[rank][number]))
    cells = tuple(
        _cell(row, column, rank, number, own_RT, nodes.get(rank, ""))
        for row, rank in enumerate(ranks)
        for column, number in enumerate(numbers)
    )
    return HeatMap(
        LEFT + CELL * len(numbers),
        CELL * len(ranks),
        cells,
        tuple((CELL * row + 9, f"rank {rank}") for row, rank in enumerate(ranks)),
        numbers[0],
        numbers[-1],
        len(kept) - len(ranks),
    )


def _cell(row: int, column: int, rank: int, number: int, own_RT: npt.NDArray[np.float64], node: str) -> Cell:
    seconds = float(own_RT[row, column])
    column_R = own_RT[:, column]
    known = column_R[~np.isnan(column_R)]
    typical = float(np.median(known)) if known.size else math.nan
    ratio = seconds / typical if typical > 0 else 1.0
    x, y = LEFT + CELL * column, CELL * row
    if math.isnan(seconds):
        return Cell(x, y, EMPTY, f"rank {rank}, step {number}: not reported")
    words = (
        f"rank {rank} on {node or 'unknown node'}, step {number}: {seconds:.3f} s own work, {ratio:.2f} × the median"
    )
    return Cell(x, y, colour(ratio), words)


def colour(ratio: float) -> str:
    """Return the colour of a ratio to the median."""
    return next((name for limit, name in SCALE if ratio <= limit), HOTTEST)
