"""Removes what dead runs left in shared memory when nobody adopted it within `keep_seconds`.

A run's folder `<record root>/<node>/<run>` outlives its ranks, so that the next `instep run` can resume from it. The
agent sweeps every minute, and each supervisor once at its start. Careful in this order: only beneath the root and
without following a link, only what belongs to us, only when all its ranks are known to be gone, and never while a
living supervisor holds the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instep_agent.errors import RankRecordError, RecordStale, RecordVersionUnknown
from instep_agent.folders import FOLDER_FLAGS, Folder, names, newest_names
from instep_agent.node import Node
from instep_agent.rank_record.reader import RecordReader
from instep_agent.rank_record.report import report

KEEP_SECONDS = 86_400.0
SWEEP_SECONDS = 60.0
RUNS_MAX = 256
"""Looked at in one sweep, the oldest first."""
ENTRIES_MAX = 20_000
"""A run with more files is left alone: that is not what ours leave."""
DEPTH_MAX = 8
RECORDS_MAX = 4096
LOCK_BYTES_MAX = 4096
DOOMED = ".abandoned-"
"""A folder is first renamed to this, so that nobody adopts half of it."""

log = logging.getLogger("instep.agent.keeping")
_holder = re.compile(r"run (.+) \(supervisor pid (\d+)\)\s*")


@dataclass(frozen=True, slots=True)
class RunLook:
    """One look at a run's folder."""

    is_ours: bool
    """A plain folder on the root's file system; everything in it belongs to its owner, who is us or whom we serve."""
    is_held: bool
    """A living supervisor holds the run, or may."""
    ranks_alive: int
    ranks_unknown: int
    """Processes that cannot be seen, or records that cannot be read: they may be alive."""
    idle_seconds: float
    """Since anything in it was written."""


def may_remove(look: RunLook, keep_seconds: float) -> tuple[bool, str]:
    """Return whether a run's folder is abandoned, and why or why not.

    >>> may_remove(RunLook(True, False, 0, 0, 90_000.0), 86_400.0)
    (True, 'nobody adopted it within 86400 s')
    >>> may_remove(RunLook(True, False, 1, 0, 90_000.0), 86_400.0)
    (False, '1 of its ranks live')
    """
    if not look.is_ours:
        return False, "it is not a plain folder of one owner whom we serve"
    if look.idle_seconds < keep_seconds:
        return False, f"it was written {max(0.0, look.idle_seconds):.0f} s ago"
    if look.ranks_alive:
        return False, f"{look.ranks_alive} of its ranks live"
    if look.ranks_unknown:
        return False, f"{look.ranks_unknown} of its ranks cannot be looked at"
    if look.is_held:
        return False, "a supervisor holds it"
    return True, f"nobody adopted it within {keep_seconds:g} s"


def sweep(node: Node, *, keep_seconds: float = KEEP_SECONDS) -> list[str]:
    """Remove the abandoned runs of one node and give their names. What cannot be looked at stays; nothing is raised."""
    try:
        root = os.open(node.record_root / node.name, FOLDER_FLAGS)
    except OSError:
        return []
    try:
        runs = [name for name in reversed(newest_names(root, ENTRIES_MAX)) if _is_candidate(name, root)]
        return [name for name in runs[:RUNS_MAX] if _remove_if_abandoned(name, root, node, keep_seconds)]
    except OSError as error:
        log.warning("Cannot look for abandoned runs in %s (%s).", node.record_root / node.name, error.strerror)
        return []
    finally:
        os.close(root)


def _is_candidate(name: str, root: int) -> bool:
    try:
        status = os.stat(name, dir_fd=root, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (not name.startswith(".") or name.startswith(DOOMED))


def _remove_if_abandoned(name: str, root: int, node: Node, keep_seconds: float) -> bool:
    with Folder(name, root) as folder, contextlib.ExitStack() as locks:
        if folder < 0:
            return False
        tree = _look_at_tree(folder, root)
        if name.startswith(DOOMED):  # An earlier sweep was ended in the middle of removing it.
            return tree.is_ours and _remove(name, root)
        now_seconds = node.realtime_ns() / 1e9
        idle_seconds = now_seconds - tree.newest_seconds
        if not tree.is_ours or idle_seconds < keep_seconds:
            return False  # The usual case, and the cheap one.
        booted_seconds = now_seconds - node.monotonic_ns() / 1e9
        ranks = _look_at_ranks(folder, node, is_of_older_boot=tree.newest_seconds < booted_seconds)
        is_held = not ranks.alive and any(
            _is_held(lock, name, root, node.proc, locks) for lock in _locks_of(name, ranks.jobs, root)
        )
        idle_seconds = min(idle_seconds, ranks.idle_seconds)
        is_abandoned, why = may_remove(RunLook(True, is_held, ranks.alive, ranks.unknown, idle_seconds), keep_seconds)
        log.log(logging.INFO if is_abandoned else logging.DEBUG, "Run %s: %s.", name, why)
        return is_abandoned and _set_aside_and_remove(name, root, folder)


# The tree -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tree:
    owner: int
    device: int
    newest_seconds: float
    is_ours: bool = True
    entries: int = 0

    def see(self, status: os.stat_result) -> None:
        self.entries += 1
        self.newest_seconds = max(self.newest_seconds, status.st_mtime)
        is_one = status.st_uid == self.owner and status.st_dev == self.device
        self.is_ours = self.is_ours and is_one and self.entries <= ENTRIES_MAX


def _look_at_tree(folder: int, root: int) -> _Tree:
    """See every entry without following a link. Another owner, another file system, too many or too deep: not ours."""
    status = os.fstat(folder)
    tree = _Tree(status.st_uid, os.fstat(root).st_dev, 0.0)
    tree.see(status)
    tree.is_ours = tree.is_ours and os.geteuid() in (0, status.st_uid)
    _descend(folder, tree, DEPTH_MAX)
    return tree


def _descend(folder: int, tree: _Tree, depth: int) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                tree.see(entry.stat(follow_symlinks=False))
                if not tree.is_ours:
                    return
                if entry.is_dir(follow_symlinks=False):
                    with Folder(entry.name, folder) as below:
                        if below < 0 or depth == 0:
                            tree.is_ours = False
                            return
                        _descend(below, tree, depth - 1)
    except OSError:  # It changed while it was looked at: somebody lives there.
        tree.is_ours = False


# Its ranks ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ranks:
    alive: int = 0
    unknown: int = 0
    idle_seconds: float = 0.0
    jobs: frozenset[str] = frozenset()


def _look_at_ranks(folder: int, node: Node, *, is_of_older_boot: bool) -> _Ranks:
    """Read the records of every attempt, the newest first; the first living rank is enough.

    Memory that a rank has mapped is written without the file's times changing, so the records' own times count too.
    They are monotonic: by the wall clock alone every run would be old at once when that clock is set right.
    """
    now_ns = node.monotonic_ns()
    # What has no record of this boot was written since it, unless its times are older.
    ranks = _Ranks(idle_seconds=float("inf") if is_of_older_boot else now_ns / 1e9)
    for name, attempt in _record_names(folder):
        with Folder(attempt, folder) as attempt_folder:
            try:
                with RecordReader(name, dir_fd=attempt_folder) as reader:
                    ranks.jobs |= {reader.identity.job}
                    record = reader.read(with_collectives=False)
                said = report(record, now_monotonic_ns=now_ns, boot_id=node.boot_id, proc=node.proc)
            except RecordStale:  # Of an older boot, or of a sandbox with a kernel of its own.
                ranks.unknown += not is_of_older_boot
            except RecordVersionUnknown:
                ranks.unknown += 1
            except RankRecordError:
                continue  # Its writer died while making it; a living one would have gone on within keep_seconds.
            else:
                ranks.idle_seconds = min(ranks.idle_seconds, said.heartbeat_age_seconds)
                ranks.alive += said.process_state not in ("gone", "zombie", "unknown")
                ranks.unknown += said.process_state == "unknown"
        if ranks.alive:
            break
    return ranks


def _record_names(folder: int) -> Iterator[tuple[str, str]]:
    left = RECORDS_MAX
    for attempt in sorted(filter(str.isdecimal, names(folder, ENTRIES_MAX)), key=int, reverse=True):
        with Folder(attempt, folder) as attempt_folder:
            found = [name for name in names(attempt_folder, left) if name.isdecimal()]
        left -= len(found)
        yield from ((name, attempt) for name in found)


# Its locks ------------------------------------------------------------------------------------------------------------


def _locks_of(run: str, jobs: frozenset[str], root: int) -> list[str]:
    """Give the job locks that concern a run: those that name it, and those of the jobs that its records name."""
    locks = [name for name in names(root, ENTRIES_MAX) if name.startswith(".") and name.endswith(".lock")]
    return [name for name in locks if name[1:-5] in jobs or _holder_of(name, root)[0] == run]


def _is_held(lock: str, run: str, root: int, proc: Path, held: contextlib.ExitStack) -> bool:
    """Whether a living supervisor has the lock for this run. One that is free is ours until the removal is over, so
    that nobody adopts the run meanwhile.
    """
    try:
        descriptor = _open_lock(lock, root)
    except OSError:
        return True
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder, pid = _holder_of(lock, root)
        # Who has just locked may not have written its name yet, and then that of its dead forerunner is read.
        return holder in ("", run) or not (proc / str(pid)).exists()
    return False


def _holder_of(lock: str, root: int) -> tuple[str, int]:
    """Give the run and the process that a lock names; empty and 0 for one that names none."""
    try:
        descriptor = _open_lock(lock, root)
    except OSError:
        return "", 0
    try:
        found = _holder.fullmatch(os.read(descriptor, LOCK_BYTES_MAX).decode("utf-8", "replace"))
    finally:
        os.close(descriptor)
    return (found[1], int(found[2])) if found else ("", 0)


def _open_lock(lock: str, root: int) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(lock, flags, dir_fd=root)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(lock)
    return descriptor


# Removal --------------------------------------------------------------------------------------------------------------


def _set_aside_and_remove(name: str, root: int, folder: int) -> bool:
    """Rename, see that it is the folder that was looked at, then remove it."""
    doomed = DOOMED + os.urandom(8).hex()
    try:
        os.rename(name, doomed, src_dir_fd=root, dst_dir_fd=root)
        renamed, looked_at = os.stat(doomed, dir_fd=root, follow_symlinks=False), os.fstat(folder)
        if (renamed.st_dev, renamed.st_ino) != (looked_at.st_dev, looked_at.st_ino):
            os.rename(doomed, name, src_dir_fd=root, dst_dir_fd=root)
            return False
    except OSError as error:
        log.warning("Cannot remove the abandoned run %s (%s).", name, error.strerror)
        return False
    return _remove(doomed, root)


def _remove(name: str, root: int) -> bool:
    """Remove a tree beneath an open folder; rmtree follows no link there (`shutil.rmtree.avoids_symlink_attacks`)."""
    import shutil  # for once in a while

    try:
        shutil.rmtree(name, dir_fd=root)
    except FileNotFoundError:
        return False  # Agent and supervisor sweep at the same time, and the other one is removing it.
    except OSError as error:
        log.warning("Cannot remove all of an abandoned run (%s); the next sweep tries again.", error.strerror)
        return False
    return True
