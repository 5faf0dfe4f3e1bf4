"""Folders of benchmarks: removed when a benchmark ends, and by the next one where it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from instep_agent.clocks import boot_id
from instep_agent.folders import ENTRIES_MAX, FOLDER_FLAGS, Folder, names
from instep_agent.host.processes import PROC, look_at, pid_namespace, start_ticks

PREFIX = "instep-bench-"
OWNER = ".owner"
"""In each: pid, start, pid namespace and boot of the process that made it."""
OWNER_BYTES_MAX = 200


@contextlib.contextmanager
def scratch_folder(parent: Path | str = "") -> Iterator[Path]:
    """Give a new folder in `parent` (by default that for temporary files); what dead ones left there is removed."""
    where = str(parent) or tempfile.gettempdir()
    remove_left_behind(where)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=where, ignore_cleanup_errors=True) as folder:
        owner = f"{os.getpid()} {start_ticks(os.getpid())} {pid_namespace()} {boot_id(PROC)}"
        (Path(folder) / OWNER).write_text(owner, encoding="ascii")
        yield Path(folder)


def remove_left_behind(parent: Path | str) -> list[str]:
    """Remove the folders of our own user whose process is known to be gone; give their names.

    Nothing is followed that may be a link. One without an owner, or of another pid namespace, stays.
    """
    removed = []
    folder = os.open(parent, FOLDER_FLAGS)
    try:
        for name in names(folder, ENTRIES_MAX):
            if name.startswith(PREFIX) and _is_left_behind(name, folder):
                shutil.rmtree(name, ignore_errors=True, dir_fd=folder)  # a benchmark beside us may be at it, too
                removed.append(name)
    finally:
        os.close(folder)
    return removed


def _is_left_behind(name: str, parent: int) -> bool:
    with Folder(name, parent) as folder:
        if folder < 0 or os.fstat(folder).st_uid != os.geteuid():
            return False
        owner = _owner(folder).split()
    boot, ours = boot_id(PROC), pid_namespace()
    if len(owner) != 4 or not all(part.isdecimal() for part in owner[:3]) or not boot or not ours:
        return False
    pid, started_ticks, namespace = map(int, owner[:3])
    if owner[3] != boot:
        return True
    return namespace == ours and look_at(pid, started_ticks).state in ("gone", "zombie")


def _owner(folder: int) -> str:
    """Give what is in the owner's file; nothing where there is none, or it is not a plain file of ours."""
    try:
        descriptor = os.open(OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    try:
        status = os.fstat(descriptor)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        return os.read(descriptor, OWNER_BYTES_MAX).decode("ascii", "replace") if is_ours else ""
    finally:
        os.close(descriptor)
