"""torch's flight recorder of a rank on order, from what the rank itself offers; all of it is untrusted.

A rank under `instep run` has torch's evidence server on the socket beside its record: it answers from C++, also while a
call holds the GIL, and gives JSON. Another one may have torch's own means: any byte in `<pipe prefix><rank>.pipe`
(`TORCH_NCCL_DEBUG_INFO_PIPE_FILE`, NCCL jobs only) makes it write a pickle to `<file prefix><rank>`
(`TORCH_FR_DUMP_TEMP_FILE`). The agent never reads that pickle: it hands the bytes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from instep_agent.folders import FOLDER_FLAGS, Folder
from instep_agent.node import Node

ANSWER_SECONDS_MAX = 0.5
DUMP_SECONDS_MAX = 2.0
"""torch looks into its pipe once a second."""
LOOK_SECONDS = 0.05
RECORDERS_BYTES_MAX = 5 << 20
"""Of all ranks of a node: 2,000 entries, the recorder's default, take about 1 MB."""
ANSWER_BYTES_MAX = 8 << 20
_PICKLE_BEGIN, _PICKLE_END = b"\x80", b"."


@dataclass(frozen=True, slots=True)
class RecorderFiles:
    """Where ranks that have no evidence server take orders and leave dumps; empty is *nowhere*."""

    pipe_prefix: str = ""
    file_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Recorder:
    """What one rank gave."""

    text: str = ""
    pickle: bytes = b""
    answers: bool | None = None
    """Whether the rank's Python answered in time; None where there is nobody to ask."""
    missing: tuple[str, ...] = ()


def recorder_of(
    node: Node, run: str, attempt: int, rank: int, *, owner: int, files: RecorderFiles, bytes_max: int
) -> Recorder:
    """Give the recorder of a live rank whose record belongs to user `owner`; what could not be had is in `missing`."""
    with _attempt_folder(node, run, attempt) as folder:
        path = f"/proc/self/fd/{folder}/{rank}.sock"
        if folder >= 0 and _is_own(path, owner, stat.S_ISSOCK):
            return _from_server(path, owner, bytes_max)
    if files.file_prefix:
        return _from_files(node.root, files, rank, owner, bytes_max)
    return Recorder(
        missing=(
            f"Rank {rank} has no evidence server, and flight_recorder_file_prefix is not set: no flight recorder.",
        )
    )


@contextlib.contextmanager
def _attempt_folder(node: Node, run: str, attempt: int) -> Iterator[int]:
    """Open it without following a link; -1 when it is not there."""
    try:
        root = os.open(node.record_root / node.name, FOLDER_FLAGS)
    except OSError:
        yield -1
        return
    try:
        with Folder(run, root) as run_folder, Folder(str(attempt), run_folder) as folder:
            yield folder
    finally:
        os.close(root)


def _is_own(path: str | Path, owner: int, is_kind: Callable[[int], bool]) -> bool:
    """Whether this is of that kind and of that user: an order must not be carried to anybody else."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == owner and is_kind(status.st_mode)


def _from_server(path: str, owner: int, bytes_max: int) -> Recorder:
    from instep_agent.ranks.evidence_server import ask  # it brings the parser for mail along, for an order that is rare

    try:
        ask(path, owner, "dump_traceback", timeout_seconds=ANSWER_SECONDS_MAX, bytes_max=ANSWER_BYTES_MAX)
        answers = True
    except OSError:
        answers = False
    try:
        whole = ask(path, owner, "fr_trace_json", timeout_seconds=ANSWER_SECONDS_MAX, bytes_max=ANSWER_BYTES_MAX)
    except OSError as error:
        return Recorder(answers=answers, missing=(f"The flight recorder did not answer ({error}).",))
    text, missing = newest_entries(whole, bytes_max)
    return Recorder(text=text, answers=answers, missing=missing)


def newest_entries(text: str, bytes_max: int) -> tuple[str, tuple[str, ...]]:
    """Give a recorder's JSON in at most so many bytes: only its newest entries when it is larger, and it says so.

    >>> newest_entries('{"version": "2.10", "entries": [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]}', 50)[0]
    '{"version":"2.10","entries":[{"n": 4}]}'
    """
    if len(text.encode()) <= bytes_max:
        return text, ()
    try:
        document = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries = msgspec.json.decode(document.get("entries", msgspec.Raw(b"[]")), type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        return "", (f"The flight recorder gave more than {bytes_max} bytes, and no JSON ({error}).",)
    count = len(entries)
    while entries:
        entries = entries[(len(entries) + 1) // 2 :]
        shorter = msgspec.json.encode(document | {"entries": entries})
        if len(shorter) <= bytes_max:
            said = f"The flight recorder was too large: only its newest {len(entries)} of {count} entries are here."
            return shorter.decode(), (said,)
    return "", (f"The flight recorder gave more than {bytes_max} bytes that are no entries.",)


def _from_files(root: Path, files: RecorderFiles, rank: int, owner: int, bytes_max: int) -> Recorder:
    """Order a dump if there is a pipe, wait for it, and hand on what is there; an older dump is told as such."""
    path = root / f"{files.file_prefix}{rank}".lstrip("/")
    before_ns = _changed_ns(path)
    missing: tuple[str, ...] = ()
    if files.pipe_prefix:
        pipe = root / f"{files.pipe_prefix}{rank}.pipe".lstrip("/")
        problem = _trigger(pipe, owner)
        missing = (problem,) if problem else ()
        if not problem and not _wait_for_dump(path, before_ns):
            missing = (f"Rank {rank} wrote no flight recorder to {path} within {DUMP_SECONDS_MAX:g} s of the order.",)
    data, problem = _read_dump(path, owner, bytes_max)
    if data and _changed_ns(path) == before_ns:
        age_seconds = max(0.0, time.time() - before_ns / 1e9)
        missing += (f"The flight recorder of rank {rank} was written {age_seconds:.0f} s before it was asked for.",)
    return Recorder(pickle=data, missing=(*missing, problem) if problem else missing)


def _changed_ns(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


def _trigger(pipe: Path, owner: int) -> str:
    """Put one byte into a rank's pipe; give a sentence when that is not possible."""
    if not _is_own(pipe, owner, stat.S_ISFIFO):
        return f"There is no pipe {pipe} of the rank's user, through which torch takes the order for a dump."
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return f"Nobody takes orders from {pipe} ({(error.strerror or '').lower()})."
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return f"{pipe} is no pipe any more."
        os.write(descriptor, b"1")
    except OSError as error:
        return f"Cannot write to {pipe} ({(error.strerror or '').lower()})."
    finally:
        os.close(descriptor)
    return ""


def _wait_for_dump(path: Path, before_ns: int) -> bool:
    """Wait until there is a newer file that ends as a pickle does."""
    until_seconds = time.monotonic() + DUMP_SECONDS_MAX
    while time.monotonic() < until_seconds:
        if _changed_ns(path) != before_ns and _ends_whole(path):
            return True
        select.select([], [], [], LOOK_SECONDS)
    return False


def _ends_whole(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        return size > 1 and os.pread(descriptor, 1, size - 1) == _PICKLE_END
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _read_dump(path: Path, owner: int, bytes_max: int) -> tuple[bytes, str]:
    """Give the bytes of a dump, or a sentence; never more than the bound, never another user's file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return b"", f"There is no flight recorder in {path} ({(error.strerror or '').lower()})."
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
            return b"", f"{path} is no regular file of the rank's user, so it is not taken for its flight recorder."
        data = os.pread(descriptor, bytes_max + 1, 0)
    except OSError as error:
        return b"", f"Cannot read the flight recorder {path} ({(error.strerror or '').lower()})."
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        return b"", f"The flight recorder has {status.st_size} bytes, more than fit: fetch {path} from the node."
    if data[:1] != _PICKLE_BEGIN or data[-1:] != _PICKLE_END:
        return b"", f"{path} is no whole dump of a flight recorder."
    return data, ""
