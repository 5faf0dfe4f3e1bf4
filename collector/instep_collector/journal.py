"""The journal: every frame and report is kept here before it is acknowledged and before a detector sees it.

Files `00000001.log`, … of records `length u32 | crc32 u32 | kind u8 | realtime f64 | payload`, little-endian; length
and checksum cover kind, time and payload. One write per group of records that arrived together, then the
acknowledgement: that survives the death of the process at any moment. The disk is synchronised by a timer, so that
power loss costs at most `journal_fsync_seconds`. The torn end of the last file is cut off at start.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from instep_collector.errors import JournalError, StartError

MAGIC = b"INSTEPJ1"
HEAD = struct.Struct("<II")
META = struct.Struct("<Bd")
RECORD_BYTES_MAX = 32 * 1024 * 1024
SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENTS_MAX = 8
"""Half a GiB in all; what must outlive that (jobs, incidents, plans, orders) is in the store."""


class RecordKind(IntEnum):
    """What a record's payload is."""

    FRAME = 1
    DICTIONARY = 2
    REPORT = 3
    NODE_DUMP = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was kept."""

    kind: int
    realtime: float
    """Of this server, when it was received."""
    payload: bytes


def encode_record(kind: int, realtime: float, payload: bytes) -> bytes:
    """Return a record's bytes.

    >>> next(iter(decode_records(encode_record(1, 2.0, b"abc"))))[0].payload
    b'abc'
    """
    body = META.pack(kind, realtime) + payload
    return HEAD.pack(len(body), zlib.crc32(body)) + body


def decode_records(data: bytes) -> Iterator[tuple[Record, int]]:
    """Yield each whole record with the offset just behind it; stop silently at the first torn or damaged one."""
    offset = 0
    while offset + HEAD.size <= len(data):
        length, checksum = HEAD.unpack_from(data, offset)
        start = offset + HEAD.size
        if not META.size <= length <= RECORD_BYTES_MAX or start + length > len(data):
            return
        body = data[start : start + length]
        if zlib.crc32(body) != checksum:
            return
        kind, realtime = META.unpack_from(body)
        offset = start + length
        yield Record(kind, realtime, body[META.size :]), offset


class Journal:
    """Append-only files in one folder; made for one process and one event loop."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, segments_max: int = SEGMENTS_MAX) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._segments_max = segments_max
        self._pending: list[bytes] = []
        self._waiting: asyncio.Future[None] | None = None
        self._descriptor = -1
        self._size_bytes = 0
        self._is_dirty = False
        self.cut_bytes = 0
        """Cut off the torn end of the last file at start."""
        self.written_bytes_total = 0

    def open(self) -> None:
        """Cut a torn tail and open the last file for appending; raises StartError without access."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            segments = self.segments()
            if segments:
                self._open_last(segments[-1])
            else:
                self._start_segment(1)
        except OSError as error:
            raise StartError(
                f"Cannot write the journal in {self._folder} ({error.strerror}): give the server a "
                "--state-dir it may write to."
            ) from error

    def segments(self) -> list[Path]:
        """Return the files, oldest first."""
        return sorted(self._folder.glob("[0-9]*.log"))

    def replay(self) -> Iterator[Record]:
        """Yield every whole record still kept, oldest first. A damaged file ends early; the next ones are read."""
        for path in self.segments():
            data = path.read_bytes()
            if data.startswith(MAGIC):
                for record, _ in decode_records(data[len(MAGIC) :]):
                    yield record

    async def append(self, kind: RecordKind, realtime: float, payload: bytes) -> None:
        """Keep one record. Returns when it is written; records of the same loop turn share one write."""
        self._pending.append(encode_record(kind, realtime, payload))
        if self._waiting is None:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            loop.call_soon(self._write_pending)
        await asyncio.shield(self._waiting)

    async def sync(self) -> None:
        """Bring what was written to the disk, off the event loop."""
        if not self._is_dirty:
            return
        self._is_dirty = False
        descriptor = os.dup(self._descriptor)
        try:
            await asyncio.to_thread(os.fsync, descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Write what is pending, synchronise and close."""
        if self._descriptor < 0:
            return
        if self._pending:
            self._write_pending()
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1

    def _write_pending(self) -> None:
        data, waiting = b"".join(self._pending), self._waiting
        self._pending, self._waiting = [], None
        try:
            self._write(data)
        except OSError as error:
            failure = JournalError(f"Cannot write the journal in {self._folder} ({error.strerror}): make room.")
            if waiting is not None and not waiting.done():
                waiting.set_exception(failure)
                waiting.exception()  # A caller that was cancelled leaves nobody to fetch it.
            return
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _write(self, data: bytes) -> None:
        if self._size_bytes + len(data) > self._segment_bytes and self._size_bytes > len(MAGIC):
            self._rotate()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size_bytes)  # Half a record would hide all later ones.
            raise
        self._size_bytes += len(data)
        self.written_bytes_total += len(data)
        self._is_dirty = True

    def _rotate(self) -> None:
        number = int(self.segments()[-1].stem) + 1
        os.fsync(self._descriptor)
        old = self._descriptor
        self._start_segment(number)
        os.close(old)
        for path in self.segments()[: -self._segments_max]:
            path.unlink()

    def _start_segment(self, number: int) -> None:
        path = self._folder / f"{number:08d}.log"
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(self._descriptor, MAGIC)
        self._size_bytes = len(MAGIC)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _open_last(self, path: Path) -> None:
        data = path.read_bytes()
        if not data.startswith(MAGIC):  # Died while making the file: nothing in it was acknowledged.
            path.unlink()
            self._start_segment(int(path.stem))
            return
        end = len(MAGIC)
        for _, behind in decode_records(data[len(MAGIC) :]):
            end = len(MAGIC) + behind
        self.cut_bytes = len(data) - end
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(self._descriptor, end)
        self._size_bytes = end
