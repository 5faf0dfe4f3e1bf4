"""Making the file of a rank record: claimed exactly once, with its room reserved, so that no later store can fail."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from zlib import crc32

from instep_agent.clocks import boot_id, read_anchor
from instep_agent.errors import RankRecordError, RecordNoRoom, RecordTaken
from instep_agent.host.processes import pid_namespace, start_ticks
from instep_agent.rank_record import layout
from instep_agent.rank_record.identity import RankIdentity


def record_path(root: Path, *, node: str, run: str, attempt: int, rank: int) -> Path:
    """Give `<root>/<node>/<run>/<attempt>/<rank>`; raise ValueError for a name that would leave the root.

    >>> record_path(Path("/dev/shm/instep"), node="node-a", run="r1", attempt=0, rank=3)
    PosixPath('/dev/shm/instep/node-a/r1/0/3')
    """
    for what, name in (("node", node), ("run", run)):
        if not name or name.startswith(".") or "/" in name or "\0" in name or len(name.encode()) > 255:
            raise ValueError(
                f"The {what} name {name!r} cannot name a folder: use letters, digits, '-', '_' and '.', "
                "not starting with '.'."
            )
    return root / node / run / str(attempt) / str(rank)


def create_file(root: Path, identity: RankIdentity, regions: layout.Regions) -> tuple[Path, mmap.mmap]:
    """Create, reserve and map the record of `identity`; everything but the magic is in the header."""
    path = record_path(root, node=identity.node, run=identity.run, attempt=identity.attempt, rank=identity.rank)
    size = regions.collective.end
    descriptor = _claim(path, identity)
    try:
        _reserve(descriptor, path, size)
        store = mmap.mmap(descriptor, size)
    except BaseException:  # also an interrupt; it goes on to whoever called
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    store[: layout.HEADER_BYTES] = _header(regions, size)
    return path, store


def _claim(path: Path, identity: RankIdentity) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise RecordTaken(
            f"Rank {identity.rank} of run {identity.run} attempt {identity.attempt} already has a record "
            f"at {path}: a second writer was started, or an attempt number was used twice."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(path, 0) from error
        raise RankRecordError(
            f"Cannot create the rank record {path} ({_reason(error)}): make its folder writable for "
            "the user who runs the job."
        ) from error


def _reserve(descriptor: int, path: Path, size: int) -> None:
    """Take every page now: a store into a hole of a full tmpfs is a SIGBUS that would kill the training."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(path, size) from error
        raise RankRecordError(
            f"Cannot reserve {size} bytes for the rank record {path} ({_reason(error)}): use a tmpfs such as /dev/shm."
        ) from error


def _no_room(path: Path, size: int) -> RecordNoRoom:
    return RecordNoRoom(
        f"There is no room for the rank record {path} ({size} bytes): enlarge that tmpfs, "
        "or remove records of finished runs from it."
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _header(regions: layout.Regions, size: int) -> bytes:
    anchor = read_anchor()
    fields: list[int] = []
    for region in regions.in_order():
        fields += (region.offset, region.slots, region.slot_bytes)
    body = layout.HEADER.pack(
        layout.MAGIC,
        layout.MAJOR,
        layout.MINOR,
        layout.HEADER_BYTES,
        size,
        os.getpid(),
        start_ticks(os.getpid()),
        pid_namespace(),
        boot_id().encode(),
        anchor.monotonic_ns,
        anchor.realtime_ns,
        anchor.uncertainty_ns,
        *fields,
        0,
        0,
    )[: layout.HEADER_CRC_AT]
    whole = body + crc32(body).to_bytes(4, "little")
    return b"\0" * len(layout.MAGIC) + whole[len(layout.MAGIC) :]
