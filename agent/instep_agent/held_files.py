"""Small files of the kernel that sources read again and again: opened once, held open, and read from their beginning.

Opening a file in sysfs costs several times what reading it does. What stands in its place and is no plain file (a FIFO,
a link, a folder, a device) is refused and never waited for, and no more is read than a kernel file can hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import weakref
from collections.abc import Callable, Iterator

READ_BYTES_MAX = 4096
"""A sysfs file holds at most one page."""
PARTS_MAX = 256
"""A file of /proc comes page by page; what would be longer is cut off here."""
HELD_MAX = 768
"""Descriptors of one source; further files are opened and closed at each reading. 8 HCAs have about 500 counters."""
NAMES_MAX = 1024
"""Of one folder; what is beyond is not looked at."""
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_GONE = (errno.ENODEV, errno.ESTALE, errno.ENXIO)
"""What a held descriptor answers when its device was removed; another one of that name may be there by now."""


class HeldFiles:
    """Reads files by path; `close` what is beneath a folder that went away. It lets go of all when it is let go of."""

    def __init__(self, held_max: int = HELD_MAX, *, pread: Callable[[int, int, int], bytes] = os.pread) -> None:
        self._held_max = min(held_max, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._pread = pread
        self._descriptors: dict[str, int] = {}
        self.reopened_total = 0
        """Files that were of a removed device, and are there again."""
        weakref.finalize(self, _close_all, self._descriptors).atexit = False

    def text(self, path: str) -> str:
        """Give what stands in a file now, without white space around it. Raise `OSError` as the kernel says it."""
        descriptor = self._descriptors.get(path, -1)
        if descriptor >= 0:
            try:
                return self._read(descriptor)
            except OSError as error:
                self._let_go(path)
                if error.errno not in _GONE:
                    raise
                self.reopened_total += 1
        descriptor = _open_plain(path)
        if len(self._descriptors) < self._held_max:
            self._descriptors[path] = descriptor
            return self._read(descriptor)
        try:
            return self._read(descriptor)
        finally:
            os.close(descriptor)

    def close(self, folder: str) -> None:
        """Let go of the files beneath a folder."""
        for path in [path for path in self._descriptors if path.startswith(folder)]:
            self._let_go(path)

    def _read(self, descriptor: int) -> str:
        return self._pread(descriptor, READ_BYTES_MAX, 0).decode("utf-8", "replace").strip()

    def _let_go(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptors.pop(path))


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        with contextlib.suppress(OSError):  # nothing is left to be done about a file that is being let go of
            os.close(descriptor)


def _open_plain(path: str) -> int:
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENOTSUP, "is no plain file", path)
    return descriptor


def text_of(path: str, bytes_max: int = READ_BYTES_MAX) -> str:
    """Give what stands in a file that is read once; empty where there is none or it cannot be read."""
    try:
        descriptor = _open_plain(path)
    except OSError:
        return ""
    try:
        return os.read(descriptor, bytes_max).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def whole_text(path: str) -> str:
    """Give what stands in a file that is read once, to its end. Raise `OSError` as the kernel says it."""
    parts = [b""]
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while (part := os.read(descriptor, READ_BYTES_MAX)) and len(parts) <= PARTS_MAX:
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "replace")


def number_of(path: str) -> int | None:
    """Give the number in a file that is read once, None where there is none."""
    text = text_of(path)
    return int(text) if text.removeprefix("-").isdecimal() and len(text) <= 20 else None


def names_in(folder: str, names_max: int = NAMES_MAX) -> tuple[str, ...]:
    """Give the names in a folder, sorted; none where it is missing or cannot be listed."""
    return tuple(sorted(_names(folder, names_max)))


def _names(folder: str, names_max: int) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(names_max), strict=False):
                yield entry.name
    except OSError:
        return
