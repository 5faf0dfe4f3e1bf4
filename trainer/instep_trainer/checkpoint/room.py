"""Whether the slots of all ranks of a node fit into its shared memory: asked at start, not found out at a step."""

from __future__ import annotations

import os
from pathlib import Path

from instep_trainer.errors import CannotRun

PAGE_BYTES = 4096
SLOTS_PER_RANK = 2


def slot_bytes_for(snapshot_bytes: int) -> int:
    """Give the size of a slot, in whole pages, for snapshots of up to this size."""
    return -(-snapshot_bytes // PAGE_BYTES) * PAGE_BYTES


def check_room(folder: Path, ranks_here: int, snapshot_bytes: int) -> None:
    """Raise CannotRun with one sentence when the slots of `ranks_here` ranks do not fit beside what is there.

    Slots that are there already count as room: they are written again. Each rank asks by itself while the others may be
    allocating, so what is free is read before what is allocated: the check may pass too early, never fail wrongly, and
    allocation itself is the last word.
    """
    slot_bytes = slot_bytes_for(snapshot_bytes)
    slots = SLOTS_PER_RANK * ranks_here
    free = _free_bytes(folder)
    if slots * slot_bytes > free + _allocated_bytes(folder):
        raise no_room(folder, slots=slots, slot_bytes=slot_bytes, free_bytes=free)


def no_room(folder: Path, *, slots: int, slot_bytes: int, free_bytes: int | None = None) -> CannotRun:
    """Give the error that says how much is needed, how much there is, and what to do."""
    free = _free_bytes(folder) if free_bytes is None else free_bytes
    return CannotRun(
        f"{_mount_of(folder)} too small for the checkpoint: {slots} slots of {_mega(slot_bytes)} MB need "
        f"{_mega(slots * slot_bytes)} MB, {free // 1_000_000} MB are free: make it larger (in Kubernetes an emptyDir "
        "with medium Memory, with Docker --shm-size), or train a smaller model."
    )


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(_existing(folder))
    return status.f_bavail * status.f_frsize


def _allocated_bytes(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(path.stat(follow_symlinks=False).st_blocks * 512 for path in folder.iterdir())


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _mount_of(folder: Path) -> Path:
    here = _existing(folder).resolve()
    while not here.is_mount():
        here = here.parent
    return here


def _mega(size_bytes: int) -> int:
    return -(-size_bytes // 1_000_000)
