"""Which operations keep their recorded time in which scenario; all others take their ideal.

Shapes: `K` classes of operations (one kind on one stage), `S` scenarios, `L` lanes of a scenario.
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
    """What is recorded where. Data-parallel groups wait for all lanes of a scenario."""

    recorded_KSL: Mask
    dp_SL: NDArray[np.int64]
    """The data-parallel rank that a lane takes its recorded times from."""


def whole(layout: Layout, masks: list[Mask]) -> Scenarios:
    """Scenarios over all lanes of the job, each given as [kind, stage, data-parallel rank]."""
    recorded = np.stack(masks, axis=2).reshape(len(o.OPTYPES) * layout.pp, len(masks), layout.dp)
    return Scenarios(recorded, np.tile(np.arange(layout.dp), (len(masks), 1)))


def paired(layout: Layout) -> Scenarios:
    """Each data-parallel rank, then each worker by stage, alone recorded: one real lane, one ideal for all others.

    The lanes of ideal ranks are alike, so one stands for all of them: the cost of a scenario does not grow with their
    number. The first `dp` scenarios are the ranks, the next `dp` the workers of stage 0, and so on.
    """
    pp, dp, kinds = layout.pp, layout.dp, len(o.OPTYPES)
    rows = np.ones((1 + pp, pp), dtype=bool)
    rows[1:] = np.eye(pp, dtype=bool)
    recorded = np.zeros((kinds, pp, 1 + pp, dp, 2 if dp > 1 else 1), dtype=bool)
    recorded[..., 0] = rows.T[None, :, :, None]
    lanes = recorded.shape[-1]
    dp_SL = np.tile(np.repeat(np.arange(dp), lanes).reshape(dp, lanes), (1 + pp, 1))
    return Scenarios(recorded.reshape(kinds * pp, (1 + pp) * dp, lanes), dp_SL)


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
