"""Flight-recorder dumps of a job in one folder: pickles or JSON, one file a rank, under whatever names.

A rank is what its dump says, else the number in its file's name, else the one rank that all its groups have in common.
A file that cannot be read is said, and its rank has no evidence.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.files.restricted_unpickler import RefusedPickle, load_plain
from instep_diagnosis.wait_graph.recorder import RecorderDump, read_dump

FILE_BYTES_MAX = 128 << 20
"""A dump of the recorder's default size with stacks takes some megabytes."""
FILES_MAX = 65_536
NOTES_MAX = 32

_RANK_NAMED = re.compile(r"rank[^0-9]{0,2}(\d{1,6})", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_ENDING = re.compile(r"(\.(json|pkl|pickle|pt|bin|dump|txt|log))+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DumpFolder:
    """What a folder of dumps holds."""

    dumps: dict[int, RecorderDump]
    unreadable: dict[int, str]
    """Ranks whose dump cannot be read, and why."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    """One file that was looked at."""

    name: str
    dump: RecorderDump | None
    trouble: str = ""
    is_like_a_dump: bool = False


def read_dump_folder(folder: Path) -> DumpFolder:
    """All dumps in a folder. Raises `EvidenceError` where it cannot be read or holds none."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise EvidenceError(
            f"Cannot read {folder} ({error.strerror}): give a folder of flight-recorder dumps."
        ) from error
    if len(paths) > FILES_MAX:
        raise EvidenceError(f"{folder} holds {len(paths)} files: at most {FILES_MAX} are read.")
    files = [_read(path) for path in paths]
    if not any(file.dump for file in files):
        first = next((f" ({file.name}: {file.trouble})" for file in files if file.is_like_a_dump), "")
        raise EvidenceError(
            f"{folder} holds no flight-recorder dump that can be read{first}: give one file for each rank."
        )
    return _by_rank(_of_one_job(files, folder))


def _of_one_job(files: list[_File], folder: Path) -> list[_File]:
    """The files, without the dumps whose job has other ranks than that of most: they were left by another one. Raises
    `EvidenceError` where as many are of one job as of another."""
    worlds = Counter(world for file in files if file.dump is not None and (world := _world(file.dump)))
    if len(worlds) < 2:
        return files
    (most, count), (_, next_count) = worlds.most_common(2)
    if count == next_count:
        sizes = " and ".join(sorted(str(len(world)) for world, times in worlds.items() if times == count))
        raise EvidenceError(
            f"{folder} holds as many dumps of one job as of another (their default groups have {sizes} ranks): "
            f"put those of one job and attempt into a folder of their own."
        )
    trouble = "it is of a job with other ranks than that of most dumps"
    return [
        replace(file, dump=None, trouble=trouble, is_like_a_dump=False)
        if file.dump is not None and _world(file.dump) not in ((), most)
        else file
        for file in files
    ]


def _world(dump: RecorderDump) -> tuple[int, ...]:
    """The ranks of the job that a dump is of; empty where it does not say."""
    return next((group.members for group in dump.groups if group.description == "default_pg"), ())


def _read(path: Path) -> _File:
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            return _File(
                path.name, None, f"it has {size} bytes, at most {FILE_BYTES_MAX} are read", is_like_a_dump=True
            )
        data = path.read_bytes()
    except OSError as error:
        return _File(path.name, None, f"it cannot be read ({error.strerror})", is_like_a_dump=True)
    return _decoded(path.name, data)


def _decoded(name: str, data: bytes) -> _File:
    is_pickle, is_json = data[:1] == b"\x80", data.lstrip()[:1] in (b"{", b"[")
    is_like_a_dump = is_pickle or is_json or not data or name.endswith((".json", ".pkl", ".pickle"))
    try:
        value = load_plain(data) if is_pickle else msgspec.json.decode(data) if is_json else None
    except RefusedPickle as error:
        return _File(name, None, str(error), is_like_a_dump=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        return _File(name, None, f"it is no whole JSON text ({error})", is_like_a_dump=True)
    dump = read_dump(value)
    trouble = "" if dump else "it is empty" if not data else "it is no flight-recorder dump"
    return _File(name, dump, trouble, is_like_a_dump)


def _by_rank(files: list[_File]) -> DumpFolder:
    dumps: dict[int, RecorderDump] = {}
    names: dict[int, str] = {}
    unreadable: dict[int, str] = {}
    notes: list[str] = []
    for file, rank in _ranked(files):
        if file.dump is None:
            if rank is not None and file.is_like_a_dump:
                unreadable[rank] = f"its dump {file.name} cannot be read: {file.trouble}"
            else:
                notes.append(f"{file.name} was left out: {file.trouble}.")
        elif rank is None:
            notes.append(f"{file.name} was left out: nothing tells of which rank it is.")
        elif rank not in dumps or _newest(file.dump) > _newest(dumps[rank]):
            notes += (
                [f"{names[rank]} was left out: {file.name} is newer, of the same rank {rank}."] if rank in dumps else []
            )
            dumps[rank], names[rank] = file.dump, file.name
        else:
            notes.append(f"{file.name} was left out: {names[rank]} is of the same rank {rank}.")
    unreadable = {rank: why for rank, why in unreadable.items() if rank not in dumps}
    return DumpFolder(dumps, unreadable, tuple(notes[:NOTES_MAX]))


def _newest(dump: RecorderDump) -> int:
    return max((entry.created_ns for entry in dump.entries), default=0)


def _ranked(files: list[_File]) -> list[tuple[_File, int | None]]:
    """Each file with its rank, as far as known: names first, then what is left to the dumps' own groups."""
    ranked = [(file, _rank_named(file)) for file in files]
    taken = {rank for _, rank in ranked}
    found: list[tuple[_File, int | None]] = []
    for file, rank in ranked:
        if rank is None and file.dump is not None:
            common = _common_members(file.dump) - taken
            rank = common.pop() if len(common) == 1 else None
            taken.add(rank)
        found.append((file, rank))
    return found


def _rank_named(file: _File) -> int | None:
    if file.dump is not None and file.dump.rank is not None:
        return file.dump.rank
    stem = _ENDING.sub("", file.name)
    named = _RANK_NAMED.findall(stem) or _NUMBER.findall(stem)
    number = int(named[-1]) if named and len(named[-1]) <= 6 else None
    if file.dump is None or number is None:
        return number
    common = _common_members(file.dump)
    return number if not common or number in common else None


def _common_members(dump: RecorderDump) -> set[int]:
    """The ranks that are in all of a dump's groups: its own rank is, and often alone."""
    members = [set(group.members) for group in dump.groups if group.members]
    return set.intersection(*members) if members else set()
