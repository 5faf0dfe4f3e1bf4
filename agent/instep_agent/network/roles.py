"""What a port is there for, told from what the node shows and never from a name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from instep_agent.held_files import names_in, text_of
from instep_agent.node import Node

ROUTE_BYTES_MAX = 1 << 16
"""Of a routing table, whose default routes stand first; 500 lines."""
_LOWER_DEPTH_MAX = 4
_IDLE_PHYSICAL = (1, 2, 3)
"""Sleep, Polling, Disabled: nothing answers at the other end, or nobody asks."""


class Role(StrEnum):
    """What a port is there for."""

    fabric = "fabric"
    """It is, or was, up: what goes wrong there matters to jobs."""
    management = "management"
    """The node's default route goes over it."""
    virtual_function = "virtual_function"
    """A part of another function, given to a container or virtual machine; its counters are not read."""
    unprovisioned = "unprovisioned"
    """There is evidence that it was never up since the driver's start: nothing is plugged in, or nobody uses it."""
    unknown = "unknown"
    """It is down, and nothing tells whether it was ever up."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the node shows of a port; None is *not to be had*."""

    is_virtual_function: bool
    has_default_route: bool
    was_active: bool
    """It is, or was at any look of this agent."""
    physical_state: int | None
    link_downed: int | None
    packets: int | None
    """Received since the driver's start."""
    carrier_ups: int | None
    """Of its interface, since that exists."""


def role_of(port: Evidence) -> Role:
    """Give the role that the evidence shows.

    >>> role_of(Evidence(False, False, False, 2, 0, 0, None)).value
    'unprovisioned'
    >>> role_of(Evidence(False, False, False, 2, 1, 0, None)).value
    'fabric'
    """
    if port.is_virtual_function:
        return Role.virtual_function
    if port.has_default_route:
        return Role.management
    counted = (port.link_downed, port.packets, port.carrier_ups)
    if port.was_active or any(counted):
        return Role.fabric
    if any(each is not None for each in counted) and port.physical_state in _IDLE_PHYSICAL:
        return Role.unprovisioned
    return Role.unknown


def default_route_interfaces(node: Node) -> frozenset[str]:
    """Give the interfaces that carry a default route, with all that a bond, bridge or VLAN among them is made of.

    The routes are those of process 1, which lives in the node's own network, and not of the agent's pod.
    """
    found = set(_routed(f"{node.proc}/1/net/route", interface=0, everywhere={1: "00000000", 7: "00000000"}))
    found |= set(_routed(f"{node.proc}/1/net/ipv6_route", interface=9, everywhere={0: "0" * 32, 1: "00"})) - {"lo"}
    for _ in range(_LOWER_DEPTH_MAX):
        for name in tuple(found):
            lower = names_in(f"{node.root}/sys/class/net/{name}")
            found |= {each.removeprefix("lower_") for each in lower if each.startswith("lower_")}
    return frozenset(found)


def _routed(path: str, *, interface: int, everywhere: dict[int, str]) -> Iterator[str]:
    """Yield the interface of every line whose columns say that it leads everywhere."""
    for line in text_of(path, ROUTE_BYTES_MAX).splitlines():
        columns = line.split()
        if len(columns) > max(interface, *everywhere) and all(columns[at] == text for at, text in everywhere.items()):
            yield columns[interface]
