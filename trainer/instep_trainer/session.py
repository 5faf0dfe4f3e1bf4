"""`with instep_trainer.session() as s:` in a script of any make: phases, tokens, exact resume. Idle without a launcher.

    with instep_trainer.session() as s:
        first = s.resume(state)                       # steps done so far, 0 at the beginning
        for step, batch in enumerate(s.steps(loader), first + 1):
            with s.phase("forward"):
                ...
            s.keep(state, step)

`state` maps names to the live tensors of the model and its optimizer; names, shapes and dtypes stay the same at every
call. State is taken to be replicated over the ranks, as under DDP. torch is imported only when `resume` or `keep` has
something to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self, TypeVar

from instep_trainer.phases import finish_step, phase, recorder
from instep_trainer.place import Place, place_from

if TYPE_CHECKING:
    from torch import Tensor

    from instep_trainer.checkpoint.keeper import Keeper

Batch = TypeVar("Batch")


def session() -> Session:
    """Give the session of this rank, to be used as a context manager."""
    return Session(place_from(os.environ))


class Session:
    """One rank's side of a training loop that marks itself."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._keeper: Keeper | None = None
        self._finished = 0
        self._tokens = (0, 0)

    def __enter__(self) -> Self:
        recorder().annotate()
        return self

    def __exit__(self, *_: object) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def steps(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Give the loader's batches, their time marked as `data`; a step is finished when the next is asked for."""
        batches = iter(loader)
        while True:
            with phase("data"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch
            self._finished += 1
            finish_step(self._finished, tokens=self._tokens[0], tokens_squared=self._tokens[1])
            self._tokens = (0, 0)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Mark what the script does inside the block: forward, backward, optimizer, checkpoint, evaluation or data."""
        return phase(name)

    def tokens(self, sequence_lengths: Iterable[int]) -> None:
        """Count the tokens of a batch, so that a rank with longer sequences is not taken for a slow one."""
        for length in sequence_lengths:
            self._tokens = (self._tokens[0] + length, self._tokens[1] + length * length)

    def resume(self, state: Mapping[str, Tensor]) -> int:
        """Load the newest state that all ranks keep into `state`, and give its step; 0 when nothing is kept.

        Every rank calls it, after the process group is there and before the first `keep`. For losses that repeat bit
        for bit under DDP on more than two ranks, make two backward passes and discard them before: they settle DDP's
        buckets.
        """
        if self._place.memory_folder is None:
            return 0
        import torch
        import torch.distributed as dist

        on_gpu = dist.is_initialized() and dist.get_backend() == "nccl"
        agreement, _extras = self._keeper_of(state).resume(torch.device("cuda" if on_gpu else "cpu"))
        self._finished = agreement.entry.step
        return self._finished

    def keep(self, state: Mapping[str, Tensor], step: int) -> None:
        """Keep `state` after `step` updates in shared memory; on return this rank has kept it."""
        if self._place.memory_folder is not None:
            with phase("checkpoint"):
                self._keeper_of(state).keep(step, {"data_position": step, "world_size": self._place.world_size}, state)

    def _keeper_of(self, state: Mapping[str, Tensor]) -> Keeper:
        if self._keeper is None:
            from instep_trainer.checkpoint.keeper import Keeper

            self._keeper = Keeper(state, self._place)
        return self._keeper
