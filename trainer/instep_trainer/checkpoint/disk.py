"""Checkpoints on disk, for when memory is gone: `<folder>/step-N.instep`, the snapshot format, written whole or not at
all."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from instep_trainer.checkpoint.errors import DamagedSnapshot
from instep_trainer.checkpoint.header import Raw
from instep_trainer.checkpoint.slots import read_snapshot
from instep_trainer.errors import UsageError

CHECKPOINTS_MAX = 10_000
"""Files looked at in a folder."""

_name = re.compile(r"step-([0-9]{1,16})\.instep")


def save(folder: Path, step: int, raw: Raw, *, keep_last: int = 2) -> Path:
    """Write a snapshot so that it is there after a power loss, then remove all but the newest `keep_last`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step}.instep"
    temporary = folder / f".step-{step}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    _prune(folder, step, keep_last)
    return path


def saved_steps(folder: Path) -> list[int]:
    """Give the steps of the checkpoints in `folder` by their names, newest first."""
    if not folder.is_dir():
        return []
    matches = [_name.fullmatch(path.name) for path in folder.iterdir()]
    return sorted((int(match[1]) for match in matches if match), reverse=True)[:CHECKPOINTS_MAX]


def newest(folder: Path) -> bytearray | None:
    """Give the newest checkpoint that is whole, or None; damaged ones are passed over."""
    for step in saved_steps(folder):
        with contextlib.suppress(DamagedSnapshot, FileNotFoundError):
            return load(folder, step)
    return None


def load(folder: Path, step: int) -> bytearray:
    """Give one checkpoint, digest checked; raise DamagedSnapshot when it is not whole."""
    file = os.open(folder / f"step-{step}.instep", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_snapshot(file)
    finally:
        os.close(file)


def check_writable(folder: Path) -> None:
    """Raise UsageError with one sentence when checkpoints cannot be written to `folder`; creates it."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"Cannot write to {folder} ({error.strerror}): give another folder with --out.") from error


def _prune(folder: Path, step: int, keep_last: int) -> None:
    older = [known for known in saved_steps(folder) if known < step]
    for known in older[max(0, keep_last - 1) :]:
        (folder / f"step-{known}.instep").unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
