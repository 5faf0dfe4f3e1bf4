"""Two slots per rank in shared memory: the newest kept state and the one before it, which outlive the rank.

A slot is a file `<rank>.<0 or 1>` that holds one snapshot. It is written in an order that makes a torn slot
recognisable at every moment: complete flag cleared, manifest, payload, header with the digest, complete flag. Only
the older slot is ever written, so what the other one holds stays whole whatever happens to the writer. No torch: the
supervisor reads inventories.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from instep_trainer.checkpoint.errors import DamagedSnapshot
from instep_trainer.checkpoint.header import (
    FLAG_AT,
    HEADER_BYTES,
    MANIFEST_BYTES_MAX,
    Header,
    align,
    body_digest,
    check_digest,
    pack_flag,
    pack_header,
    parse_header,
)
from instep_trainer.checkpoint.room import no_room, slot_bytes_for

SLOTS = (0, 1)
RANKS_MAX = 1 << 20
FOLDER_ENTRIES_MAX = 8192
"""More than 64 ranks on a node with two slots each will ever have."""
BOUNDARIES = (
    "begun",
    "flag_cleared",
    "manifest_written",
    "payload_begun",
    "payload_written",
    "header_written",
    "complete",
)
"""The moments between the sub-writes of a slot, in order, at which a test stops or kills the writer."""

Chunk = tuple[int, memoryview]
"""An offset in the payload and the bytes that belong there."""

_name = re.compile(r"([0-9]{1,7})\.([01])")


class Entry(NamedTuple):
    """A kept state, identified over all ranks of a run."""

    step: int
    attempt: int


class Slots:
    """The two slots of one rank, open for writing."""

    def __init__(self, folder: Path, rank: int, *, boundary: Callable[[str], None] = lambda name: None) -> None:
        """Open or create the slots of `rank`; they get their size by `reserve`. `boundary` hears of each of
        `BOUNDARIES`."""
        self.folder = folder
        self._paths = [slot_path(folder, rank, slot) for slot in SLOTS]
        self._boundary = boundary
        _make_folder(folder)
        self._files = [_open_slot(path) for path in self._paths]
        self._maps: list[mmap.mmap] = []
        self._entries = [_entry_in(file) for file in self._files]

    def reserve(self, snapshot_bytes: int) -> None:
        """Have room for snapshots of up to this size; what the slots hold stays. Raises CannotRun without room."""
        size = slot_bytes_for(snapshot_bytes)
        for file, path in zip(self._files, self._paths, strict=True):
            try:
                os.posix_fallocate(file, 0, max(size, os.fstat(file).st_size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise no_room(path.parent, slots=len(SLOTS), slot_bytes=size) from error
        self._unmap()
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # a page that is cold at a step costs ten times a warm one
        self._maps = [mmap.mmap(file, os.fstat(file).st_size, flags=flags) for file in self._files]

    @property
    def entries(self) -> list[Entry]:
        """What the slots hold by their headers, newest first."""
        return sorted((entry for entry in self._entries if entry is not None), reverse=True)

    def read(self, entry: Entry) -> bytearray:
        """Give a private copy of a kept snapshot, its digest checked; raise DamagedSnapshot when it is not whole."""
        file = self._files[self._entries.index(entry)]
        return read_snapshot(file)

    def write(self, entry: Entry, manifest: bytes, payload_bytes: int, chunks: Iterable[Chunk]) -> None:
        """Keep a state in the older slot; on return it is complete."""
        slot = self._older()
        region = self._maps[slot]
        payload_offset = align(HEADER_BYTES + len(manifest))
        _check_fits(len(manifest), payload_offset + payload_bytes, len(region))
        self._boundary("begun")
        self._entries[slot] = None
        region[FLAG_AT : FLAG_AT + 4] = pack_flag(is_complete=False)
        self._boundary("flag_cleared")
        region[HEADER_BYTES : HEADER_BYTES + len(manifest)] = manifest
        self._boundary("manifest_written")
        self._copy(region, payload_offset, chunks)
        self._boundary("payload_written")
        digest = body_digest(memoryview(region), payload_offset + payload_bytes)
        header = Header(entry.step, entry.attempt, digest, len(manifest), payload_offset, payload_bytes)
        region[:HEADER_BYTES] = pack_header(header, is_complete=False)
        self._boundary("header_written")
        region[FLAG_AT : FLAG_AT + 4] = pack_flag(is_complete=True)
        self._entries[slot] = entry
        self._boundary("complete")

    def settle(self, entry: Entry) -> None:
        """Forget what the resume at `entry` leaves behind: newer states, and other states of the same step."""
        for slot, held in enumerate(self._entries):
            if held is not None and held != entry and held.step >= entry.step:
                os.pwrite(self._files[slot], pack_flag(is_complete=False), FLAG_AT)
                self._entries[slot] = None

    def forget(self, entry: Entry) -> None:
        """Drop a state whose digest failed, so that its slot is the next one written."""
        slot = self._entries.index(entry)
        os.pwrite(self._files[slot], pack_flag(is_complete=False), FLAG_AT)
        self._entries[slot] = None

    def close(self) -> None:
        """Let go of the slots; what they hold stays."""
        self._unmap()
        for file in self._files:
            os.close(file)
        self._files = []

    def _older(self) -> int:
        return min(SLOTS, key=lambda slot: self._entries[slot] or Entry(-1, -1))

    def _copy(self, region: mmap.mmap, offset: int, chunks: Iterable[Chunk]) -> None:
        is_begun = False
        for at, chunk in chunks:
            region[offset + at : offset + at + len(chunk)] = chunk
            if not is_begun:
                self._boundary("payload_begun")
                is_begun = True

    def _unmap(self) -> None:
        for region in self._maps:
            region.close()
        self._maps = []


def inventory(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """Give the (step, attempt) of what each rank keeps in `folder`, newest first, by headers alone.

    A folder that is not there holds nothing.
    """
    held: dict[int, list[tuple[int, int]]] = {}
    try:
        names = sorted(os.listdir(folder))[:FOLDER_ENTRIES_MAX]  # noqa: PTH208  names are what is matched
    except (FileNotFoundError, NotADirectoryError):
        return held
    for name in names:
        match = _name.fullmatch(name)
        if match is None or int(match[1]) >= RANKS_MAX:
            continue
        entry = _entry_at(folder / name)
        if entry is not None:
            held.setdefault(int(match[1]), []).append(entry)
    return {rank: sorted(entries, reverse=True) for rank, entries in held.items()}


def borrowed_states(folder: Path) -> dict[Entry, bytearray]:
    """Give the newest whole states of any rank in `folder`, for a rank that has none: replicated state is anybody's.

    At most one per slot of a rank, so that a restart reads no more than it would of its own.
    """
    places = {
        entry: slot_path(folder, rank, slot)
        for rank in inventory(folder)
        for slot in SLOTS
        if (entry := _entry_at(slot_path(folder, rank, slot))) is not None
    }
    states: dict[Entry, bytearray] = {}
    for entry in sorted(places, reverse=True)[: len(SLOTS)]:
        with contextlib.suppress(DamagedSnapshot, OSError):
            file = os.open(places[entry], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                states[entry] = read_snapshot(file)
            finally:
                os.close(file)
    return states


def slot_path(folder: Path, rank: int, slot: int) -> Path:
    """Give the file of one slot."""
    return folder / f"{rank}.{slot}"


def read_snapshot(file: int) -> bytearray:
    """Give a private copy of the snapshot in an open file, bounds and digest checked; raise DamagedSnapshot.

    A copy by `pread`, because a mapped file that somebody truncates kills its reader, and one that somebody writes
    to can change between the check and the use.
    """
    header = parse_header(os.pread(file, HEADER_BYTES, 0), os.fstat(file).st_size)
    raw = bytearray(header.end)
    filled = 0
    while filled < header.end:
        count = os.preadv(file, [memoryview(raw)[filled:]], filled)
        if count == 0:
            raise DamagedSnapshot(f"The snapshot of step {header.step} was cut while it was read.")
        filled += count
    if parse_header(raw, header.end) != header:
        raise DamagedSnapshot(f"The snapshot of step {header.step} changed while it was read.")
    check_digest(raw, header)
    return raw


def _entry_at(path: Path) -> Entry | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _entry_in(file)
    finally:
        os.close(file)


def _entry_in(file: int) -> Entry | None:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        return None
    try:
        header = parse_header(os.pread(file, HEADER_BYTES, 0), status.st_size)
    except DamagedSnapshot:
        return None
    return Entry(header.step, header.attempt)


def _make_folder(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True, mode=0o700)


def _open_slot(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _check_fits(manifest_bytes: int, end: int, room_bytes: int) -> None:
    if manifest_bytes > MANIFEST_BYTES_MAX or end > room_bytes:
        raise ValueError(f"A snapshot of {end} bytes does not fit its slot of {room_bytes}: reserve the room first.")
