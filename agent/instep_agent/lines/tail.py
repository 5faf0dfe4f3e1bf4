"""A log file of somebody else, read as it grows: through rotation and truncation, and never more than a bound."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

CHUNK_BYTES = 1 << 16
BACKLOG_BYTES_MAX = 8 << 20
"""Of one file; of what came beyond that since the last look, only the newest is read."""


class NotALog(Exception):
    """What is there is no regular file: a link, a device, a pipe, a folder."""


class Tail:
    """One open file. Give its bytes with `read`; `close` it.

    It is opened without following a link and without waiting: whoever may write into the folder of the logs cannot have
    another file read.
    """

    def __init__(self, path: Path, *, from_end: bool) -> None:
        """Open it, to read what comes from now on, or all. Raise OSError, or NotALog."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise NotALog(str(path)) from error
            raise
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise NotALog(str(path))
        self.inode = (status.st_dev, status.st_ino)
        self._offset = status.st_size if from_end else 0
        self.skipped_bytes = 0

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def read(self, bytes_max: int) -> bytes:
        """Give what came since, at most so much; empty when nothing did. A file that became shorter begins anew."""
        size = os.fstat(self._descriptor).st_size
        if size < self._offset:
            self._offset = 0
        behind_bytes = size - self._offset - BACKLOG_BYTES_MAX
        if behind_bytes > 0:
            self.skipped_bytes += behind_bytes
            self._offset += behind_bytes
        data = os.pread(self._descriptor, min(bytes_max, CHUNK_BYTES), self._offset)
        self._offset += len(data)
        return data

    def is_replaced(self) -> bool:
        """Whether its path leads to another file by now, or to none: it was rotated away."""
        try:
            status = self.path.lstat()
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self.inode
