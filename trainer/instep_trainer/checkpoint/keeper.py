"""Keeps one training state: in this rank's slots at every step, on disk now and then, and brings it back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from instep_trainer.checkpoint import disk
from instep_trainer.checkpoint.agree import Agreement
from instep_trainer.checkpoint.resume import resume
from instep_trainer.checkpoint.room import check_room
from instep_trainer.checkpoint.slots import Entry, Slots
from instep_trainer.checkpoint.snapshot import Extras, Layout, Snapshot, decode, encode, load_into
from instep_trainer.place import Place

log = logging.getLogger(__name__)


class Keeper:
    """Bound to the tensors of one state, which are read at every `keep` and written at `resume`."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        place: Place,
        *,
        disk_folder: Path | None = None,
        keep_last: int = 2,
        boundary: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Reserve the slots when the place has a memory folder; raises CannotRun when they do not fit."""
        self._state = state
        self._place = place
        self._disk_folder = disk_folder
        self._keep_last = keep_last
        self._layout = Layout(state)
        self._attempt = place.attempt
        self._slots: Slots | None = None
        if place.memory_folder is not None:
            check_room(place.memory_folder, place.local_world_size, self._layout.snapshot_bytes_max)
            self._slots = Slots(place.memory_folder, place.rank, boundary=boundary)
            self._slots.reserve(self._layout.snapshot_bytes_max)

    def resume(self, device: torch.device) -> tuple[Agreement, Extras]:
        """Have all ranks load the same state; give what they agreed on and the extras that were kept with it."""
        resumed = resume(self._slots, self._disk_folder, attempt=self._place.attempt, device=device)
        self._attempt = resumed.attempt
        self._compare(resumed.agreement)
        if resumed.raw is None:
            return resumed.agreement, {}
        snapshot = decode(resumed.raw)
        load_into(self._state, snapshot)
        return resumed.agreement, snapshot.extras

    def keep(self, step: int, extras: Extras, state: Mapping[str, Tensor] | None = None) -> None:
        """Keep the state, or the one given in its place, in shared memory; on return this rank has kept the step.

        Without slots nothing is done.
        """
        if self._slots is not None:
            self._slots.write(
                Entry(step, self._attempt),
                self._layout.manifest(extras),
                self._layout.payload_bytes,
                self._layout.chunks(state or self._state),
            )

    def save(self, step: int, extras: Extras) -> None:
        """Write the state to disk from rank 0; the state is replicated, so one copy is enough."""
        if self._disk_folder is not None and self._place.rank == 0:
            raw = encode(Snapshot(step, self._attempt, self._state, extras), self._layout)
            disk.save(self._disk_folder, step, raw, keep_last=self._keep_last)

    def close(self) -> None:
        """Let go of the slots; what they hold stays."""
        if self._slots is not None:
            self._slots.close()

    def _compare(self, agreement: Agreement) -> None:
        hint = self._place.resume_step
        if hint is not None and hint != agreement.entry.step and self._place.rank == 0:
            log.warning(
                "The supervisors expected to resume at step %d; by what the ranks could read it is step %d (from %s).",
                hint,
                agreement.entry.step,
                agreement.source,
            )
