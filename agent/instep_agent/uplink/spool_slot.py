"""The place of the one frame that waits while the server keeps up: a file that is written over and over.

Making and removing a file for each frame cost four times as much as writing it. The slot is filled by one write and
freed by another; a checksum tells a frame that was torn by a loss of power, and a freed slot begins with zeros. While
other frames have files of their own it takes no room: the spool's bound holds for the folder.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

NAME = "newest.slot"
_MAGIC = b"ISS1"
_FREE = bytes(4)
_HEAD = struct.Struct("<4sIQ16sI")
"""Magic, checksum of all that follows, number, kind, bytes of the frame."""
_CHECKED_AT = 8
_SPARE_BYTES_MAX = 4096
"""So much longer than its frame the file may stay: frames vary a little, and each change of a length costs a write."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier agent left in the slot."""

    number: int
    kind: str
    data: bytes
    written_seconds: float
    """By the wall clock."""


class SlotTorn(ValueError):
    """There is something in the slot, and it is no whole frame."""


class Slot:
    """Room for one frame on disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._descriptor = -1
        self._file_bytes = 0

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what is in it stays. The next `put` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def put(self, number: int, kind: str, data: bytes) -> None:
        """Write a frame over what was there. Raise `OSError` as the kernel says it."""
        descriptor = self._open()
        checked = _HEAD.pack(b"", 0, number, kind.encode(), len(data))[_CHECKED_AT:]
        head = _MAGIC + zlib.crc32(data, zlib.crc32(checked)).to_bytes(4, "little") + checked
        whole_bytes = len(head) + len(data)
        if os.pwritev(descriptor, (head, data), 0) != whole_bytes:
            raise OSError("the frame was not written whole")
        self._file_bytes = max(self._file_bytes, whole_bytes)
        if self._file_bytes > whole_bytes + _SPARE_BYTES_MAX:
            self._cut(whole_bytes)

    def free(self, *, keeps_room: bool = True) -> None:
        """Forget the frame. Where that cannot be written a later agent sends it again, and the server knows it."""
        with contextlib.suppress(OSError):
            os.pwrite(self._open(), _FREE, 0)
            if not keeps_room:
                self._cut(0)

    def _cut(self, size_bytes: int) -> None:
        os.ftruncate(self._open(), size_bytes)
        self._file_bytes = size_bytes

    def _open(self) -> int:
        if self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0:  # somebody cleaned the folder up
            self.close()
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._file_bytes = os.fstat(self._descriptor).st_size
        return self._descriptor

    def found(self) -> Found | None:
        """Give what an earlier agent left, None when it is free. Raise `SlotTorn` when it is not whole."""
        try:
            written, status = self._path.read_bytes(), self._path.stat()
        except OSError:
            return None
        if written[:4] in (b"", _FREE):
            return None
        if len(written) < _HEAD.size or written[:4] != _MAGIC:
            raise SlotTorn
        _, checksum, number, kind, size_bytes = _HEAD.unpack_from(written)
        checked = written[_CHECKED_AT : _HEAD.size + size_bytes]
        if len(written) < _HEAD.size + size_bytes or zlib.crc32(checked) != checksum:
            raise SlotTorn
        data = written[_HEAD.size : _HEAD.size + size_bytes]
        return Found(number, kind.rstrip(b"\0").decode(), data, status.st_mtime)
