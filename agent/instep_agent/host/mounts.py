"""File systems of a node, from `/proc/<pid>/mountinfo`: those that hold data, each once."""

from __future__ import annotations

import re
from dataclasses import dataclass

MOUNTS_MAX = 64
LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "overlay"))
NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "beegfs", "wekafs", "9p", "virtiofs", "glusterfs", "afs")
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One file system and the first folder where it is mounted."""

    path: str
    kind: str
    device: str
    """Major and minor number, `259:2`: what the kernel tells file systems apart by."""
    is_read_only: bool
    """The file system itself, whatever the mount says: an error makes it so, or whoever mounted it."""


def parse_mounts(text: str) -> list[Mount]:
    """Give the file systems that hold data, and shared memory, in the order of their paths, at most `MOUNTS_MAX`.

    Of a file system that is mounted at several places (bind mounts of containers) the shortest path counts.

    >>> parse_mounts("36 1 259:2 / /data rw,noatime shared:1 - xfs /dev/nvme0n1 ro,attr2")
    [Mount(path='/data', kind='xfs', device='259:2', is_read_only=True)]
    """
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        mount = _parse_line(line)
        if mount is None:
            continue
        known = found.get(mount.device)
        if known is None or len(mount.path) < len(known.path):
            found[mount.device] = mount
    return sorted(found.values(), key=lambda each: each.path)[:MOUNTS_MAX]


def _parse_line(line: str) -> Mount | None:
    left, _, right = line.partition(" - ")
    fields, tail = left.split(), right.split()
    if len(fields) < 6 or len(tail) < 3:
        return None
    path, kind = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4]), tail[0]
    holds_data = kind in LOCAL or kind in NETWORK or kind.startswith("fuse.") or path == "/dev/shm"
    return Mount(path, kind, fields[2], "ro" in tail[2].split(",")) if holds_data else None
