"""A descriptor that becomes readable when a file changes: poll() says of a plain file that it is always ready."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_MODIFY, _ATTRIB, _DELETE_SELF, _MOVE_SELF = 0x2, 0x4, 0x400, 0x800
_CHANGES = _MODIFY | _ATTRIB | _DELETE_SELF | _MOVE_SELF
_EVENTS_BYTES = 4096


class FileWatch:
    """Watches one file by inotify(7); `close` it.

    `descriptor` is -1 where the kernel gives none: the user's watches are used up, or it was built without.
    """

    def __init__(self, path: Path) -> None:
        """Watch the file that is at `path` now: appended to, cut short, renamed or removed."""
        libc = ctypes.CDLL(None)
        self.descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self.descriptor >= 0 and libc.inotify_add_watch(self.descriptor, os.fsencode(path), _CHANGES) < 0:
            self.close()

    def forget(self) -> None:
        """Take what happened as known. Do it before the file is read: what is written meanwhile then wakes again."""
        with contextlib.suppress(BlockingIOError):
            while self.descriptor >= 0 and os.read(self.descriptor, _EVENTS_BYTES):
                pass

    def close(self) -> None:
        """Watch no more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
