"""Folders that others may write to, opened one below the other without following a link, and listed within bounds."""

from __future__ import annotations

import contextlib
import errno
import os

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ENTRIES_MAX = 4096
"""Of one folder; what is beyond is not looked at."""


NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Nothing of that name, a file, or a link."""


class Folder:
    """A folder beneath another one, opened without following a link: a descriptor, or -1 for one that is not open.

    Then `problem` tells whether there is none (empty) or it could not be looked into (why). What is beneath a folder
    that is not open has no problem of its own.
    """

    def __init__(self, name: str, dir_fd: int) -> None:
        self._name, self._dir_fd, self._descriptor = name, dir_fd, -1
        self.problem = ""

    def __enter__(self) -> int:
        if self._dir_fd >= 0:
            try:
                self._descriptor = os.open(self._name, FOLDER_FLAGS, dir_fd=self._dir_fd)
            except OSError as error:
                self.problem = "" if error.errno in NO_FOLDER else os.strerror(error.errno or errno.EIO).lower()
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def names(folder: int, limit: int) -> list[str]:
    """Give the names in an open folder, no more than `limit`; none in one that is not open."""
    if folder < 0:
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry, _ in zip(entries, range(limit), strict=False)]


def newest_names(folder: int, limit: int) -> list[str]:
    """Give the folders most recently changed: on a node with too many runs the old ones are left out."""
    dated = []
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(ENTRIES_MAX), strict=False):
            with contextlib.suppress(OSError):  # it was removed meanwhile
                if entry.is_dir(follow_symlinks=False):
                    dated.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    return [name for _, name in sorted(dated, reverse=True)[:limit]]


def inode(name: str, folder: int) -> int:
    """Give the inode number of a name in an open folder; 0 when it is not there."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
    except OSError:
        return 0
