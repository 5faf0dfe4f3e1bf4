"""Stacks of a job's ranks in one folder: what `py-spy dump --json` wrote, one file for each rank."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from instep_agent.wire import StackFrame, ThreadStack

from instep_diagnosis.errors import EvidenceError

FILE_BYTES_MAX = 16 << 20
FILES_MAX = 65_536
FRAMES_MAX = 1_024

_NUMBER = re.compile(r"\d{1,6}")


class _Frame(msgspec.Struct):
    name: str
    filename: str = ""
    line: int = 0


class _Thread(msgspec.Struct):
    frames: list[_Frame]
    thread_name: str | None = None
    pid: int | None = None
    os_thread_id: int | None = None
    active: bool = False
    owns_gil: bool = False


def read_stack_folder(folder: Path) -> tuple[dict[int, tuple[ThreadStack, ...]], tuple[str, ...]]:
    """Rank → its threads, and a sentence for each file that was left out. Raises `EvidenceError` where none is left."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise EvidenceError(f"Cannot read {folder} ({error.strerror}): give a folder of py-spy dumps.") from error
    if len(paths) > FILES_MAX:
        raise EvidenceError(f"{folder} holds {len(paths)} files: at most {FILES_MAX} are read.")
    found: dict[int, tuple[ThreadStack, ...]] = {}
    names: dict[int, str] = {}
    notes = []
    for path in paths:
        numbers = _NUMBER.findall(path.stem)
        try:
            stacks = _read(path)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            notes.append(f"{path.name} was left out: it is no py-spy dump in JSON ({error}).")
            continue
        if not numbers:
            notes.append(f"{path.name} was left out: its name has no rank.")
        elif (rank := int(numbers[-1])) in found:
            notes.append(f"{path.name} was left out: {names[rank]} is of the same rank {rank}.")
        else:
            found[rank], names[rank] = stacks, path.name
    if not found:
        first = f" ({notes[0]})" if notes else ""
        raise EvidenceError(f"{folder} holds no stacks{first}: give one py-spy dump --json for each rank.")
    return found, tuple(notes)


def _read(path: Path) -> tuple[ThreadStack, ...]:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise msgspec.DecodeError(f"more than {FILE_BYTES_MAX} bytes")
    threads = msgspec.json.decode(path.read_bytes(), type=list[_Thread])
    return tuple(_stack(thread) for thread in threads)


def _stack(thread: _Thread) -> ThreadStack:
    frames = tuple(StackFrame(function=f.name, file=f.filename, line=f.line) for f in thread.frames[:FRAMES_MAX])
    is_main = thread.thread_name == "MainThread" or (thread.pid is not None and thread.pid == thread.os_thread_id)
    return ThreadStack(
        name=thread.thread_name or "", is_main=is_main, is_active=thread.active, owns_gil=thread.owns_gil, frames=frames
    )
