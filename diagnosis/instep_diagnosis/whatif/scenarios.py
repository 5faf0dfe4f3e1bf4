"""Which operations keep their recorded time in which scenario; all others take their ideal.

Shapes: `K` classes of operations (one kind on one stage), `S` scenarios, `D` data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.trace import Layout

Mask = NDArray[np.bool_]
Workers = Iterable[tuple[int, int]]
"""Pairs of stage and data-parallel rank."""


@dataclass(frozen=True, slots=True)
class Scenarios:
    """What is recorded where."""

    recorded_KSD: Mask
    is_paired: bool = False
    """Each data-parallel rank is a scenario of its own, beside one ideal lane that stands for all other ranks; else
    the ranks of a scenario wait for one another."""

    @property
    def lanes(self) -> int:
        """Two for a pair; a job with one data-parallel rank has no others."""
        return 2 if self.is_paired and self.recorded_KSD.shape[2] > 1 else 1


def whole(layout: Layout, masks: list[Mask]) -> Scenarios:
    """Scenarios over all ranks of the job, each given as [kind, stage, data-parallel rank]."""
    return Scenarios(np.stack(masks, axis=2).reshape(len(o.OPTYPES) * layout.pp, len(masks), layout.dp))


def paired(layout: Layout) -> Scenarios:
    """Each data-parallel rank, then each worker by stage, alone recorded: one real lane, one ideal for all others.

    The lanes of ideal ranks are alike, so one stands for all of them: the cost of a scenario does not grow with their
    number. The first scenario is that of the ranks, the next that of the workers of stage 0, and so on.
    """
    rows = np.ones((1 + layout.pp, layout.pp), dtype=bool)
    rows[1:] = np.eye(layout.pp, dtype=bool)
    recorded = np.tile(rows.T[None, :, :, None], (len(o.OPTYPES), 1, 1, layout.dp))
    return Scenarios(recorded.reshape(-1, 1 + layout.pp, layout.dp), is_paired=True)


def nothing(layout: Layout) -> Mask:
    """All ideal."""
    return np.zeros((len(o.OPTYPES), layout.pp, layout.dp), dtype=bool)


def kinds_recorded(layout: Layout, names: Iterable[str]) -> Mask:
    """Only these kinds are recorded."""
    mask = nothing(layout)
    mask[[o.CODES[name] for name in names]] = True
    return mask


def stage_recorded(layout: Layout, stage: int) -> Mask:
    """Only this stage is recorded."""
    mask = nothing(layout)
    mask[:, stage] = True
    return mask


def workers_recorded(layout: Layout, workers: Workers) -> Mask:
    """Only these workers are recorded."""
    mask = nothing(layout)
    for stage, dp in workers:
        mask[:, stage, dp] = True
    return mask
