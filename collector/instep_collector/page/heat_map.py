"""The rank × step heat map: how long each rank's own work took, relative to the median of its step.

Arrays: `R` ranks, `T` steps. Own work is wall time without waiting for peers; where waiting was not observed it is
wall time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from instep_agent.wire import StepReport
from instep_diagnosis.detectors.work import own_seconds

STEPS_SHOWN = 60
RANKS_SHOWN = 64
RANKS_READ_MAX = 1024
"""Of a larger job only the first ranks are looked through for those to draw; the detectors look at all."""
LIMITS = (0.9, 1.08, 1.18, 1.35, 1.7)
"""A cell's level is the number of these that its ratio to the step's median exceeds: 0 fast, 1 as its peers, 5
slowest."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One rank in one step."""

    column: int
    row: int
    level: str
    """Name of a style: `h0` to `h5`, or `none` where the step was not reported."""
    title: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Drawn as inline SVG, a unit a cell."""

    columns: int
    cells: tuple[Cell, ...]
    labels: tuple[tuple[int, str], ...]
    """(rank, node) of each row."""
    first_step: int
    last_step: int
    hidden_ranks: int

    @property
    def rows(self) -> int:
        """Ranks drawn."""
        return len(self.labels)


def heat_map(steps_by_rank: Mapping[int, Iterable[StepReport]], nodes: Mapping[int, str]) -> HeatMap | None:
    """Return the map of the last steps; None before any step. Where not all ranks have room the slowest are drawn."""
    ranks = sorted(steps_by_rank)[:RANKS_READ_MAX]
    kept = [{step.step: step for step in list(steps_by_rank[rank])[-STEPS_SHOWN:]} for rank in ranks]
    numbers = sorted({number for steps in kept for number in steps})[-STEPS_SHOWN:]
    if not numbers:
        return None
    own_RT = np.full((len(ranks), len(numbers)), np.nan)
    for row, steps in enumerate(kept):
        for column, number in enumerate(numbers):
            if number in steps:
                own_RT[row, column] = max(0.0, own_seconds(steps[number]))
    ratio_RT = _ratios(own_RT)
    shown = _slowest(ratio_RT)
    cells = tuple(
        _cell(row, column, float(ratio_RT[at, column]), _words(ranks[at], nodes, numbers[column], own_RT[at, column]))
        for row, at in enumerate(shown)
        for column in range(len(numbers))
    )
    labels = tuple((ranks[at], nodes.get(ranks[at], "")) for at in shown)
    return HeatMap(len(numbers), cells, labels, numbers[0], numbers[-1], len(steps_by_rank) - len(shown))


def _ratios(own_RT: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return each step's own work over the median of its ranks, 1 where that is 0, NaN where it was not reported."""
    typical_T = np.nanmedian(own_RT, axis=0)
    divisor_T = np.where(typical_T > 0, typical_T, 1.0)
    return np.where((typical_T > 0) | np.isnan(own_RT), own_RT / divisor_T, 1.0)


def _slowest(ratio_RT: npt.NDArray[np.float64]) -> list[int]:
    """Return the rows to draw, in their order."""
    slowness_R = np.median(np.nan_to_num(ratio_RT, nan=1.0), axis=1)
    return sorted(int(row) for row in np.argsort(-slowness_R, kind="stable")[:RANKS_SHOWN])


def _words(rank: int, nodes: Mapping[int, str], step: int, seconds: float) -> str:
    return f"rank {rank} on {nodes.get(rank) or 'unknown node'}, step {step}: {seconds:.3f} s own work"


def _cell(row: int, column: int, ratio: float, words: str) -> Cell:
    if np.isnan(ratio):
        return Cell(column, row, "none", f"{words.partition(':')[0]}: not reported")
    return Cell(column, row, level(ratio), f"{words}, {ratio:.2f} × the median")


def level(ratio: float) -> str:
    """Return the style of a ratio to the median.

    >>> level(1.0), level(1.3), level(9.0)
    ('h1', 'h3', 'h5')
    """
    return f"h{sum(ratio > limit for limit in LIMITS)}"
