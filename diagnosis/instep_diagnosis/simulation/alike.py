"""What gloo's dumps can tell at best: which ranks, each at fault by itself, would have left the same dumps.

gloo's recorder shows the collectives that a rank entered and nothing of its transfers, so that a rank which waits in a
transfer and one which sleeps before it look alike. Every rank is stopped at every place of the step in turn, with the
programs known exactly; those whose dumps come out equal to the true ones can be told apart by no method.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from instep_diagnosis.simulation.hangs import Stopped, stopped_by
from instep_diagnosis.simulation.programs import Program

Shown = tuple[tuple[int, bool], ...]
"""For each rank with a dump: how many collectives of this step it entered, and whether the last is open."""


def alike(programs: Sequence[Program], rank: int, place: int, *, silent: Collection[int] = ()) -> tuple[int, ...]:
    """Ranks that could have left these dumps by not going on at some place of the step, the true one among them.

    `programs` are those of one step, whose end all ranks meet in. Of `silent` ranks there is no dump, and since any
    file may be lost, that alone accuses nobody: what the others show has to.

    >>> from random import Random
    >>> from instep_diagnosis.simulation.programs import STEPS, training
    >>> pipeline = training(Random(1), world_size_max=4, layout="pp").programs
    >>> alike([program[: len(program) // STEPS] for program in pipeline], 0, 0)
    (0, 1)
    """
    heard = [other for other in range(len(programs)) if other not in silent]
    truth = shown(programs, rank, place, heard)
    return tuple(
        other
        for other, program in enumerate(programs)
        if other == rank or any(shown(programs, other, at, heard) == truth for at in range(len(program)))
    )


def shown(programs: Sequence[Program], rank: int, place: int, heard: Sequence[int]) -> Shown:
    """What the dumps of these ranks show where one does not go on before this item of its program."""
    state = stopped_by(programs, rank, place)
    return tuple(_shown(programs[other], other, state) for other in heard)


def _shown(program: Program, rank: int, state: Stopped) -> tuple[int, bool]:
    entered = min(state.limits[rank], state.done[rank] + 1)
    kept = [item for item in program[:entered] if not item[0].is_transfer]
    is_open = entered > state.done[rank] and not program[entered - 1][0].is_transfer
    return len(kept), is_open
