"""Network namespaces of this node's ranks: what listens on a loopback address can be asked from within only.

For a source that runs in a child process: the child has one thread, and so may step into another namespace and back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instep_agent.errors import SourceFailed
from instep_agent.host.processes import look_at, owner_of
from instep_agent.node import Node
from instep_agent.ranks.recorded import recorded_ranks

_CLONE_NEWNET = 0x40000000
_RIGHTS = (
    "give the agent CAP_SYS_ADMIN, CAP_SYS_PTRACE and the node's pid namespace, or let the job use the node's network"
)


@dataclass(frozen=True, slots=True)
class Network:
    """A namespace in which a rank with a GPU runs; `path` is empty when it cannot be told which."""

    rank: str
    """A rank there, for sentences."""
    path: str
    inode: int


def networks_of_ranks(node: Node) -> tuple[Network, ...]:
    """Give the namespaces, other than the agent's own, of the ranks that have a GPU and a record here."""
    own = _inode(node.proc / "self/ns/net")
    found: dict[int, Network] = {}
    for rank, pid in _processes(node):
        path = node.proc / str(pid) / "ns/net" if pid else None
        inode = _inode(path) if path is not None else 0
        if inode != own:
            found.setdefault(inode, Network(rank, str(path) if inode else "", inode))
    return tuple(found.values())


@contextlib.contextmanager
def inside(network: Network) -> Iterator[None]:
    """Be in that namespace for a while. Raise SourceFailed with the right that is missing."""
    if not network.path:
        raise SourceFailed(f"Cannot tell in which network {network.rank} is: {_RIGHTS}.")
    libc = ctypes.CDLL(None, use_errno=True)
    with _opened("/proc/self/ns/net", network) as home, _opened(network.path, network) as there:
        if os.fstat(there).st_ino != network.inode:
            raise SourceFailed(f"{network.rank} ended before its network could be entered.")
        _enter(libc, there, network)
        try:
            yield
        finally:
            _enter(libc, home, network)


@contextlib.contextmanager
def _opened(path: str, network: Network) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceFailed(
            f"Cannot enter the network of {network.rank} ({(error.strerror or '').lower()}): {_RIGHTS}."
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(libc: ctypes.CDLL, descriptor: int, network: Network) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno()).lower()
        raise SourceFailed(f"Cannot enter the network of {network.rank} ({reason}): {_RIGHTS}.")


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _processes(node: Node) -> Iterator[tuple[str, int]]:
    """Yield the ranks with a GPU of each run's newest attempt, and their pid; 0 when it cannot be looked up."""
    for rank in recorded_ranks(node):
        header = rank.header
        state = look_at(header.pid, header.pid_start_ticks, namespace=header.pid_namespace, proc=node.proc).state
        # A record may name any process.
        is_its_own = state == "unknown" or owner_of(header.pid, node.proc) == rank.owner
        if rank.identity.gpu and state not in ("gone", "zombie") and is_its_own:
            name = f"rank {rank.identity.rank} of run {rank.identity.run}"
            yield name, 0 if state == "unknown" else header.pid
