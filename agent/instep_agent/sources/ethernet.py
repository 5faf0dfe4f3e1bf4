"""The node's own Ethernet interfaces: traffic, errors, carrier, and PFC, pause and discards as drivers count them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from instep_agent.counters import CounterMemory, NoNumber, number
from instep_agent.errors import Absent
from instep_agent.held_files import HeldFiles, names_in, text_of
from instep_agent.host import pci
from instep_agent.metric import Metric, counter, gauge
from instep_agent.network.ethtool import Ethtool
from instep_agent.network.ethtool_table import LOSSLESS, METRICS, PAUSE, TRANSITIONS, Kept, kept
from instep_agent.network.rdma import Labels, sample
from instep_agent.node import Fact, Node, Reading
from instep_agent.sight import check_listable

CLASS = "sys/class/net"
INTERFACES_MAX = 64
ENTRIES_MAX = 4096
"""Interfaces of all kinds: a node has one or two for each pod."""
STATISTICS_MAX = 256
"""Kept of one interface."""
LIST_SECONDS = 60.0
NAMES_SECONDS = 600.0
"""So often a driver is asked for the names of its statistics again, although it says that it has as many."""
MEGABIT_BYTES = 125e3
_REPRESENTOR = re.compile(r"(?:c\d+)?pf\d+[vs]f\d+")


@dataclass(frozen=True, slots=True)
class _File:
    metric: Metric
    files: tuple[str, ...]
    """Their sum is the value: node_exporter's drops are what the card dropped and what it missed."""
    scale: float = 1.0


def _statistic(name: str, *files: str, help: str) -> _File:
    return _File(counter(f"node_network_{name}_total", help), tuple(f"statistics/{file}" for file in files))


FILES = (
    _File(gauge("node_network_carrier", "1 while the interface has a carrier."), ("carrier",)),
    _File(gauge("node_network_speed_bytes", "Speed of the link, bytes a second."), ("speed",), MEGABIT_BYTES),
    _File(counter("node_network_carrier_changes_total", "Times the carrier came or went."), ("carrier_changes",)),
    _File(counter("node_network_carrier_up_changes_total", "Times the carrier came."), ("carrier_up_count",)),
    _File(counter("node_network_carrier_down_changes_total", "Times the carrier went."), ("carrier_down_count",)),
    _statistic("receive_bytes", "rx_bytes", help="Bytes received."),
    _statistic("transmit_bytes", "tx_bytes", help="Bytes sent."),
    _statistic("receive_packets", "rx_packets", help="Packets received."),
    _statistic("transmit_packets", "tx_packets", help="Packets sent."),
    _statistic("receive_errs", "rx_errors", help="Receive errors."),
    _statistic("transmit_errs", "tx_errors", help="Send errors."),
    _statistic("receive_drop", "rx_dropped", "rx_missed_errors", help="Packets received and dropped, or missed."),
    _statistic("transmit_drop", "tx_dropped", help="Packets dropped instead of sent."),
    _statistic("receive_fifo", "rx_fifo_errors", help="Overruns at receiving."),
    _File(
        counter("instep_ethernet_receive_crc_errors_total", "Frames received with a wrong checksum."),
        ("statistics/rx_crc_errors",),
    ),
)


@dataclass(slots=True)
class _Watched:
    """What is remembered of one interface."""

    name: str
    path: str
    labels: Labels
    address: str
    """Of its PCI device; empty where it is none."""
    index: str
    memory: CounterMemory = field(default_factory=CounterMemory)
    statistics: int = -1
    kept: list[Kept] = field(default_factory=list)
    names_due_ns: int = 0
    resets_total: int = 0


class Ethernet:
    """Carrier, traffic and errors of every physical interface, from `/sys/class/net`, and its driver's own statistics.

    Physical is what has a device and is no virtual function and no representor of one. The driver's statistics come by
    the ethtool ioctl, which asks the network that the agent lives in: an interface is asked only when its driver there
    names the same PCI device as `/sys` does, so that an interface of the pod is not taken for one of the node;
    `instep_ethernet_statistics_readable` says whether that was so. Asking costs a card a few dozen registers, hence
    every ten seconds and not every one. PFC of every priority is in frames; /metrics shows the priorities that ever
    paused.
    """

    name = "ethernet"
    interval_seconds = 10.0
    deadline_seconds = 5.0
    child = "sysfs"
    rights = "reads the node's /sys and asks its network drivers: everybody may, in a pod with hostNetwork"
    metrics = (
        *(one.metric for one in FILES),
        gauge("node_network_up", "1 while the kernel says that the interface is up."),
        *METRICS,
        gauge("instep_ethernet_statistics_readable", "1 when the driver's own statistics could be read."),
        counter("instep_ethernet_counter_resets_total", "Times that counters of the interface began anew."),
    )

    def __init__(self, files: HeldFiles | None = None, new_ethtool: Callable[[], Ethtool] = Ethtool) -> None:
        self._files = HeldFiles() if files is None else files
        self._new_ethtool = new_ethtool
        self._ethtool: Ethtool | None = None
        self._interfaces: dict[str, _Watched] = {}
        self._names: tuple[str, ...] | None = None
        self._list_due_ns = 0

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the interfaces' samples and what happened. Raise `Absent` on a node without physical interfaces."""
        folder = str(node.root / CLASS)
        names = names_in(folder, ENTRIES_MAX)
        if names != self._names or node.monotonic_ns() >= self._list_due_ns:
            self._list(folder, names)
            self._names, self._list_due_ns = names, node.monotonic_ns() + int(LIST_SECONDS * 1e9)
        if not self._interfaces:
            check_listable(folder)
            raise Absent(f"{folder} shows no interface with a device of its own.")
        for watched in self._interfaces.values():
            reset: list[str] = []
            yield from self._from_files(watched, node, reset)
            yield from self._from_driver(watched, node, reset)
            watched.resets_total += bool(reset)
            yield sample("instep_ethernet_counter_resets_total", watched.labels, watched.resets_total)

    def _list(self, folder: str, names: tuple[str, ...]) -> None:
        found = [name for name in names if _is_physical(f"{folder}/{name}")][:INTERFACES_MAX]
        for name in [name for name in self._interfaces if name not in found]:
            self._files.close(f"{self._interfaces.pop(name).path}/")
        for name in found:
            path = f"{folder}/{name}"
            index = text_of(f"{path}/ifindex")
            known = self._interfaces.get(name)
            if known is None or known.index != index:  # another one of that name
                self._files.close(f"{path}/")
                address = pci.address_in(pci.link_of(path)) or pci.address_in(pci.link_of(f"{path}/device"))
                self._interfaces[name] = _Watched(name, path, (("device", name),), address, index)

    def _text(self, path: str) -> str:
        """Give what stands in a file, empty where it cannot be read, as the carrier of what is down."""
        try:
            return self._files.text(path)
        except OSError:
            return ""

    def _from_files(self, watched: _Watched, node: Node, reset: list[str]) -> Iterator[Reading]:
        state = self._text(f"{watched.path}/operstate")
        if state:
            yield sample("node_network_up", watched.labels, state == "up")
        for file in FILES:
            values = [self._number(f"{watched.path}/{each}") for each in file.files]
            if values[0] is None:
                continue
            value = sum(each or 0 for each in values)
            yield sample(file.metric.name, watched.labels, value * file.scale)
            if file.metric.kind.value != "counter":
                continue
            step = watched.memory.observe(file.files[0], value)
            if step.is_reset:
                reset.append(file.files[0])
            elif step.rise and file.files[0] == "carrier_down_count":
                yield _carrier_fact(watched, step.rise, node)

    def _number(self, path: str) -> int | None:
        try:
            return number(self._text(path))
        except NoNumber:  # such as a speed of -1, which is none
            return None

    def _from_driver(self, watched: _Watched, node: Node, reset: list[str]) -> Iterator[Reading]:
        values = self._driver_values(watched, node.monotonic_ns())
        yield sample("instep_ethernet_statistics_readable", watched.labels, values is not None)
        if not values:
            return
        pausing = {
            one.priority
            for one, value in zip(watched.kept, values, strict=True)
            if value and one.metric in (PAUSE, TRANSITIONS)
        }
        for one, value in zip(watched.kept, values, strict=True):
            yield sample(one.metric.name, one.labels, value * one.scale)
            lossless = LOSSLESS.get(one.metric.name)
            if lossless is not None and one.priority in pausing:
                yield sample(lossless.name, one.labels, value * one.scale)
            if watched.memory.observe(f"{one.metric.name}{one.labels}", value).is_reset:
                reset.append(one.metric.name)

    def _driver_values(self, watched: _Watched, now_ns: int) -> list[int] | None:
        """Give the values of what is kept, None where the driver cannot be asked or is another interface's."""
        if not watched.address:
            return None
        try:
            if self._ethtool is None:
                self._ethtool = self._new_ethtool()
            driver = self._ethtool.driver(watched.name)
            if driver.bus != watched.address:
                return None
            if driver.statistics != watched.statistics or now_ns >= watched.names_due_ns:
                names = self._ethtool.names(watched.name, driver.statistics)
                watched.kept = kept(watched.name, names, STATISTICS_MAX)
                watched.statistics, watched.names_due_ns = driver.statistics, now_ns + int(NAMES_SECONDS * 1e9)
            return self._ethtool.values(watched.name, driver.statistics, [one.place for one in watched.kept])
        except OSError:  # no such interface in the agent's network, or a driver without statistics
            return None


def _is_physical(path: str) -> bool:
    """Whether an interface is a piece of hardware of this node, by what the kernel shows of it."""
    device = f"{path}/device"
    if not pci.link_of(device) or pci.is_virtual_function(device):
        return False
    return _REPRESENTOR.fullmatch(text_of(f"{path}/phys_port_name")) is None


def _carrier_fact(watched: _Watched, count: int, node: Node) -> Fact:
    times = "" if count == 1 else f" {count} times"
    fields = {"device": watched.name, "pci": watched.address, "count": str(count)}
    text = f"Interface {watched.name} lost its carrier{times} since the last look."
    return Fact("carrier_lost", text, node.monotonic_ns(), node.realtime_ns(), fields)
