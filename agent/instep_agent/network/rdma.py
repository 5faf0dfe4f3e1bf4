"""The node's RDMA adapters and ports, from `/sys/class/infiniband`: found again, and noticed when they change."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from instep_agent.errors import Absent, SourceFailed
from instep_agent.held_files import names_in, number_of, text_of
from instep_agent.host import pci
from instep_agent.node import Fact, Node
from instep_agent.wire import Sample

CLASS = "sys/class/infiniband"
HCAS_MAX = 64
PORTS_MAX = 8
"""Of one adapter; no adapter has more than 2."""
REMEMBERED_MAX = 256
"""Adapters that were here once; the oldest is forgotten first."""
DETAILS_SECONDS = 60.0
"""So often an adapter's own description is read again: a new firmware, an interface with another name."""
_NAME = re.compile(r"[\w.:-]{1,64}")

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Port:
    """One port: its number, its folder and the interface that belongs to it."""

    number: str
    path: str
    labels: Labels
    netdev: str


@dataclass(frozen=True, slots=True)
class Hca:
    """One adapter. `identity` is another one after its driver or device was taken away and came back."""

    name: str
    path: str
    identity: int
    pci: str
    """Its address with function; empty where the tree does not tell."""
    is_virtual_function: bool
    board: str
    firmware: str
    model: str
    ports: tuple[Port, ...]

    def info(self) -> Labels:
        """Give what node_exporter tells of it."""
        return (
            ("board_id", self.board),
            ("device", self.name),
            ("firmware_version", self.firmware),
            ("hca_type", self.model),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to an adapter between two looks: `added`, `gone`, `back` or `reloaded`."""

    kind: str
    name: str
    pci: str
    seconds: float = 0.0
    """How long it was away, for `back`."""


@dataclass(slots=True)
class _Known:
    hca: Hca
    read_ns: int
    gone_ns: int | None = None


@dataclass(slots=True)
class Hcas:
    """Remembers the adapters between looks."""

    changes: list[Change] = field(default_factory=list)
    """What happened at the last look."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _has_looked: bool = False

    def look(self, node: Node) -> list[Hca]:
        """Give the adapters that are here now, and put what happened into `changes`.

        Raise `Absent` on a node that has none and had none, `SourceFailed` where they cannot be seen.
        """
        self.changes = []
        folder = class_folder(node)
        seen = _seen(folder)
        if not seen and not self._known:
            raise Absent(f"{folder} shows no adapter: this node has no RDMA.")
        now_ns = node.monotonic_ns()
        here = [self._see(folder, name, identity, now_ns) for name, identity in seen.items()]
        self._notice_gone({hca.name for hca in here}, now_ns)
        self._has_looked = True
        return here

    def gone(self) -> list[Hca]:
        """Give the adapters that were here and are not now."""
        return [known.hca for known in self._known.values() if known.gone_ns is not None]

    def _see(self, folder: str, name: str, identity: int, now_ns: int) -> Hca:
        path = f"{folder}/{name}"
        known = self._known.get(name)
        if known is None:
            if self._has_looked:
                self.changes.append(Change("added", name, _address(path)))
            return self._read(path, name, identity, now_ns)
        if known.gone_ns is not None:
            away_seconds = (now_ns - known.gone_ns) / 1e9
            self.changes.append(Change("back", name, _address(path), away_seconds))
        elif known.hca.identity != identity:
            self.changes.append(Change("reloaded", name, _address(path)))
        elif now_ns - known.read_ns < DETAILS_SECONDS * 1e9:
            return known.hca
        return self._read(path, name, identity, now_ns)

    def _read(self, path: str, name: str, identity: int, now_ns: int) -> Hca:
        hca = read_hca(path, name, identity)
        self._known.pop(name, None)
        self._known[name] = _Known(hca, now_ns)
        while len(self._known) > REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        return hca

    def _notice_gone(self, here: set[str], now_ns: int) -> None:
        for name, known in self._known.items():
            if name not in here and known.gone_ns is None:
                known.gone_ns = now_ns
                self.changes.append(Change("gone", name, known.hca.pci))


def class_folder(node: Node) -> str:
    """Give the folder that shows the node's adapters."""
    return str(node.root / CLASS)


def _seen(folder: str) -> dict[str, int]:
    """Give the adapters that are there, by name, with the number of the folder that each name leads to."""
    found: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(HCAS_MAX), strict=False):
                with contextlib.suppress(OSError):  # it leads nowhere or in a circle, or goes away at this moment
                    if _NAME.fullmatch(entry.name) and entry.is_dir():
                        found[entry.name] = entry.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SourceFailed(
            f"Cannot list {folder} ({(error.strerror or '').lower()}): mount /sys read-only into the agent's pod."
        ) from error
    return dict(sorted(found.items()))


def _address(path: str) -> str:
    return pci.address_in(pci.link_of(path)) or pci.address_in(pci.link_of(f"{path}/device"))


def read_hca(path: str, name: str, identity: int) -> Hca:
    """Read what an adapter says of itself."""
    return Hca(
        name,
        path,
        identity,
        _address(path),
        pci.is_virtual_function(f"{path}/device"),
        text_of(f"{path}/board_id")[:64],
        text_of(f"{path}/fw_ver")[:64],
        text_of(f"{path}/hca_type")[:64],
        tuple(_ports(path, name)),
    )


def _ports(path: str, name: str) -> Iterator[Port]:
    numbers = [each for each in names_in(f"{path}/ports") if each.isdecimal() and len(each) <= 3]
    for number in sorted(numbers, key=int)[:PORTS_MAX]:
        labels = (("device", name), ("port", number))
        yield Port(number, f"{path}/ports/{number}", labels, _netdev(path, number))


def _netdev(path: str, number: str) -> str:
    """Give a port's interface: by its first address entry, or by the device's only interface or port number."""
    name = text_of(f"{path}/ports/{number}/gid_attrs/ndevs/0")
    if name:
        return name
    names = names_in(f"{path}/device/net")
    if len(names) == 1:
        return names[0]
    ports = {number_of(f"{path}/device/net/{each}/dev_port"): each for each in reversed(names)}
    return ports.get(int(number) - 1, "")


SENTENCES = {
    "added": "RDMA adapter {name} appeared.",
    "gone": "RDMA adapter {name} is gone from the node.",
    "back": "RDMA adapter {name} is back after {seconds:.1f} s.",
    "reloaded": "RDMA adapter {name} was taken away and came back between two looks, as when its driver is reloaded.",
}


def facts_of(changes: list[Change], node: Node) -> Iterator[Fact]:
    """Yield what happened to adapters, as facts of this moment."""
    for one in changes:
        fields = {"device": one.name, "pci": one.pci}
        if one.kind == "back":
            fields["seconds"] = f"{one.seconds:.3f}"
        yield Fact(
            f"rdma_device_{one.kind}",
            SENTENCES[one.kind].format(name=one.name, seconds=one.seconds),
            node.monotonic_ns(),
            node.realtime_ns(),
            fields,
        )


def sample(name: str, labels: Labels, value: float) -> Sample:
    """Give a sample, shortly."""
    return Sample(name=name, labels=labels, value=float(value))
