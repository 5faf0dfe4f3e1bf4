"""The PCIe links of GPUs, HCAs and network cards: width, speed, errors, and which HCA is near which GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from instep_agent.counters import CounterMemory, NoNumber, number
from instep_agent.errors import Absent
from instep_agent.held_files import HeldFiles, names_in
from instep_agent.host import pci
from instep_agent.host.pci import Kind, PciDevice
from instep_agent.metric import counter, gauge
from instep_agent.network.rdma import Labels, sample
from instep_agent.node import Fact, Node, Reading
from instep_agent.sight import check_listable, check_readable

DEVICES_MAX = 256
LIST_SECONDS = 60.0
SEVERITIES = ("correctable", "nonfatal", "fatal")
ERROR_TYPES_MAX = 40
"""Of one severity; the kernel knows 27."""
LANES = {0, 1, 2, 4, 8, 12, 16, 32}
"""What a link can have; a device that does not answer reads as 63."""
GIGA = 1e9
_SPEED = re.compile(r"(\d{1,3}(?:\.\d)?) GT/s.*")


@dataclass(slots=True)
class _Watched:
    """What is remembered of one device."""

    device: PciDevice
    labels: Labels
    memory: CounterMemory
    upstream_path: str
    """The port above it; empty where there is none."""
    link: tuple[int, float] | None = None
    """Width and speed, as they were last."""


class Pcie:
    """PCIe of every GPU, HCA and network card, and of the bridges on their way, from `/sys/bus/pci/devices`.

    Widths and speeds are as they are and as they could be, of the device and of the port above it: whether a difference
    means anything is not said here, for a card may sit in a smaller slot on purpose, and an idle GPU slows its link
    down. Errors are those of the kernel's AER counters. Virtual functions are left out. Which HCA is near which GPU
    follows from the bridges that their ways share. The GPU's address without function is the one in GPU reports.
    """

    name = "pcie"
    interval_seconds = 10.0
    deadline_seconds = 3.0
    child = "sysfs"
    rights = "reads the node's /sys: everybody may, in a container the node's /sys mounted read-only"
    metrics = (
        gauge("instep_pcie_link_lanes", "Lanes in use."),
        gauge("instep_pcie_link_lanes_max", "Lanes that the device has."),
        gauge("instep_pcie_link_transfers_per_second", "Transfers a second on each lane now; 32e9 is generation 5."),
        gauge("instep_pcie_link_transfers_per_second_max", "Transfers a second on each lane that the device can do."),
        gauge("instep_pcie_link_readable", "0 while the device does not answer: off the bus, or its link is down."),
        gauge("instep_pcie_upstream_lanes_max", "Lanes that the port above the device has.", is_on_page=False),
        gauge(
            "instep_pcie_upstream_transfers_per_second_max",
            "Transfers a second that the port above it can do.",
            is_on_page=False,
        ),
        gauge("instep_pcie_numa_node", "NUMA node of the device, where there are several.", is_on_page=False),
        counter("instep_pcie_errors_total", "PCIe errors by severity (AER), since the device was found."),
        counter(
            "instep_pcie_error_types_total",
            "PCIe errors by severity and type (AER); types that never happened are left out.",
            is_on_page=False,
        ),
        counter(
            "instep_pcie_counter_resets_total",
            "Times that the device's error counters began anew.",
            is_on_page=False,
        ),
        gauge("instep_pcie_device_info", "1, with what the device is: a GPU, an HCA, a network card or a bridge."),
        gauge(
            "instep_gpu_nearest_hca_info",
            "1, for the HCAs nearest to each GPU: switch, root, numa or system is what they share.",
        ),
    )

    def __init__(self, files: HeldFiles | None = None) -> None:
        self._files = HeldFiles() if files is None else files
        self._watched: dict[str, _Watched] = {}
        self._resets: dict[str, int] = {}
        self._names: tuple[str, ...] | None = None
        self._list_due_ns = 0

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the devices' samples and what changed. Raise `Absent` on a node without such devices."""
        names = names_in(str(node.root / pci.DEVICES), pci.ENTRIES_MAX)
        if names != self._names or node.monotonic_ns() >= self._list_due_ns:
            yield from self._list(node)
            self._names, self._list_due_ns = names, node.monotonic_ns() + int(LIST_SECONDS * 1e9)
        if not self._watched:
            check_listable(node.root / pci.DEVICES)
            check_readable(node.root / pci.DEVICES / name / "class" for name in names)
            raise Absent(f"{node.root / pci.DEVICES} shows no GPU, HCA or network card.")
        for address, watched in self._watched.items():
            yield sample("instep_pcie_device_info", (*watched.labels, ("kind", watched.device.kind.value)), 1)
            if watched.device.numa_node is not None:
                yield sample("instep_pcie_numa_node", watched.labels, watched.device.numa_node)
            if watched.device.kind is not Kind.bridge:
                yield from self._link(watched, node)
            yield from self._errors(watched, node)
            if address in self._resets:
                yield sample("instep_pcie_counter_resets_total", watched.labels, self._resets[address])
        yield from _near(tuple(each.device for each in self._watched.values()))

    def _list(self, node: Node) -> Iterator[Fact]:
        """Find the devices again; tell which came and went."""
        is_first = self._names is None
        found = {each.address: each for each in pci.devices(str(node.root))[:DEVICES_MAX]}
        for address in [address for address in self._watched if address not in found]:
            watched = self._watched.pop(address)
            self._files.close(f"{watched.device.path}/")
            yield _fact("pcie_device_gone", "is gone from the bus", watched.device, node)
        for address, device in found.items():
            known = self._watched.get(address)
            if known is None:
                self._watched[address] = _Watched(device, _labels(device), CounterMemory(), _upstream(device))
                if not is_first:
                    yield _fact("pcie_device_added", "appeared on the bus", device, node)
            elif known.device != device:
                known.device, known.labels = device, _labels(device)

    def _text(self, path: str) -> str:
        try:
            return self._files.text(path)
        except OSError:
            return ""

    def _link(self, watched: _Watched, node: Node) -> Iterator[Reading]:
        path, above = watched.device.path, watched.upstream_path
        lanes, speed = self._lanes(f"{path}/current_link_width"), self._speed(f"{path}/current_link_speed")
        if self._text(f"{path}/current_link_width"):
            yield sample("instep_pcie_link_readable", watched.labels, lanes is not None)
        values = {
            "instep_pcie_link_lanes": lanes,
            "instep_pcie_link_lanes_max": self._lanes(f"{path}/max_link_width"),
            "instep_pcie_link_transfers_per_second": speed,
            "instep_pcie_link_transfers_per_second_max": self._speed(f"{path}/max_link_speed"),
            "instep_pcie_upstream_lanes_max": self._lanes(f"{above}/max_link_width") if above else None,
            "instep_pcie_upstream_transfers_per_second_max": self._speed(f"{above}/max_link_speed") if above else None,
        }
        for name, value in values.items():
            if value is not None:
                yield sample(name, watched.labels, value)
        if lanes is not None and speed is not None:
            yield from _link_change(watched, (lanes, speed), node)

    def _lanes(self, path: str) -> int | None:
        text = self._text(path)
        return int(text) if text.isdecimal() and len(text) <= 3 and int(text) in LANES else None

    def _speed(self, path: str) -> float | None:
        found = _SPEED.fullmatch(self._text(path))
        return float(found[1]) * GIGA if found else None

    def _errors(self, watched: _Watched, node: Node) -> Iterator[Reading]:
        reset = []
        for severity in SEVERITIES:
            counts = error_counts(self._text(f"{watched.device.path}/aer_dev_{severity}"))
            for kind, count in counts.items():
                labels = (*watched.labels, ("severity", severity))
                if kind == "total":
                    yield sample("instep_pcie_errors_total", labels, count)
                elif count:
                    yield sample("instep_pcie_error_types_total", (*labels, ("error", kind)), count)
                if watched.memory.observe(f"{severity}/{kind}", count).is_reset:
                    reset.append(f"{severity}/{kind}")
        if reset:
            address = watched.device.address
            self._resets[address] = self._resets.get(address, 0) + 1
            yield _fact("pcie_counters_reset", "has begun to count its errors anew", watched.device, node)


def error_counts(text: str) -> dict[str, int]:
    """Give the counts of one AER file by type, the sum of them under `total`; a torn line is left out.

    Where the kernel gives no sum it is made from the types.

    >>> error_counts("RxErr 2\\nBadTLP 1\\nTOTAL_ERR_COR 3\\n")
    {'RxErr': 2, 'BadTLP': 1, 'total': 3}
    """
    counts: dict[str, int] = {}
    for line in text.splitlines()[:ERROR_TYPES_MAX]:
        name, _, count = line.rpartition(" ")
        try:
            value = number(count)
        except NoNumber:
            continue
        if re.fullmatch(r"[\w -]{1,32}", name):
            counts["total" if name.startswith("TOTAL_ERR") else name.strip()] = value
    if counts and "total" not in counts:
        counts["total"] = sum(counts.values())
    return counts


def _labels(device: PciDevice) -> Labels:
    return (("device", device.name), ("pci", device.address))


def _upstream(device: PciDevice) -> str:
    bridges = device.way[1:]
    return device.path.removesuffix(device.address) + bridges[-1] if bridges else ""


def _fact(kind: str, what: str, device: PciDevice, node: Node, **fields: str) -> Fact:
    name = f" {device.name}" if device.name != device.address else ""
    text = f"PCIe device {device.address} ({device.kind.value}{name}) {what}."
    about = {"pci": device.address, "device": device.name, "device_kind": device.kind.value}
    return Fact(kind, text, node.monotonic_ns(), node.realtime_ns(), about | fields)


def _link_change(watched: _Watched, link: tuple[int, float], node: Node) -> Iterator[Fact]:
    """Tell another width, and another speed but of a GPU: that changes its speed whenever it falls idle."""
    before, watched.link = watched.link, link
    if before is None or (before[0] == link[0] and (before[1] == link[1] or watched.device.kind is Kind.gpu)):
        return
    (lanes_before, speed_before), (lanes, speed) = before, link
    what = f"runs with {lanes} lanes at {speed / GIGA:g} GT/s instead of {lanes_before} at {speed_before / GIGA:g} GT/s"
    fields = {"lanes": str(lanes), "lanes_before": str(lanes_before)}
    fields |= {"transfers_per_second": f"{speed:g}", "transfers_per_second_before": f"{speed_before:g}"}
    yield _fact("pcie_link_changed", what, watched.device, node, **fields)


def _near(devices: tuple[PciDevice, ...]) -> Iterator[Reading]:
    """Yield which HCAs are nearest to each GPU."""
    hcas = tuple(each for each in devices if each.kind is Kind.hca)
    for gpu in devices:
        if gpu.kind is Kind.gpu:
            for hca, near in pci.nearest(gpu, hcas):
                labels = (("gpu_pci", gpu.name), ("hca", hca.name), ("nearness", near.value), ("pci", hca.address))
                yield sample("instep_gpu_nearest_hca_info", labels, 1)
