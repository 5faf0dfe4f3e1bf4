"""Which devices a node has on PCIe, and where, from `/sys/bus/pci/devices`: what a GPU, an HCA and an interface are
joined by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from instep_agent.held_files import names_in, number_of, text_of

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
DEVICES = "sys/bus/pci/devices"
ENTRIES_MAX = 16_384
"""Of the folder of all devices: a node with virtual functions has thousands."""
_DISPLAY, _NETWORK = "0x03", "0x02"
_NVIDIA = "0x10de"
_NVIDIA_GPUS, _NVSWITCHES = ("0x0300", "0x0302"), ("0x0680",)
"""Classes of NVIDIA's devices."""


class Kind(StrEnum):
    """What a PCI device is to a training job."""

    gpu = "gpu"
    hca = "hca"
    nic = "nic"
    bridge = "bridge"


class Nearness(StrEnum):
    """What two devices share, the nearest first."""

    switch = "switch"
    root = "root"
    numa = "numa"
    system = "system"


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One device: its address with function, what it is, and the way to it."""

    address: str
    kind: Kind
    path: str
    """Its folder."""
    way: tuple[str, ...]
    """The host bridge and every bridge down to it, without itself: empty where the tree does not tell."""
    numa_node: int | None
    name: str
    """As others call it: an HCA `mlx5_0`, an interface `eth0`, a GPU or bridge by its address."""


def address_in(link: str) -> str:
    """Give the last PCI address in a path, empty when there is none.

    >>> address_in("../../devices/pci0000:15/0000:15:01.0/0000:18:00.0/infiniband/mlx5_0")
    '0000:18:00.0'
    """
    found = [part for part in link.split("/") if ADDRESS.fullmatch(part)]
    return found[-1] if found else ""


def link_of(path: str) -> str:
    """Give where a link leads as it is written, empty for what is none."""
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def short_address(address: str) -> str:
    """Give an address without its function, as GPU reports have it.

    >>> short_address("0000:3b:00.0")
    '0000:3b:00'
    """
    return address.rpartition(".")[0]


def is_virtual_function(device: str) -> bool:
    """Whether a device's folder says that it is a part of another function, which the kernel shows by a link."""
    return bool(link_of(f"{device}/physfn"))


def devices(root: str) -> tuple[PciDevice, ...]:
    """Give the GPUs, HCAs and network cards, and the bridges on the way to them; no virtual functions."""
    folder = f"{root}/{DEVICES}"
    found: dict[str, PciDevice] = {}
    for address in names_in(folder, ENTRIES_MAX):
        if not ADDRESS.fullmatch(address):
            continue
        path = f"{folder}/{address}"
        kind, name = _kind_and_name(address, path)
        if kind is not None and not is_virtual_function(path):
            found[address] = PciDevice(address, kind, path, way_to(path), numa_node(path), name)
    for one in tuple(found.values()):
        for address in one.way[1:]:
            path = f"{folder}/{address}"
            found.setdefault(address, PciDevice(address, Kind.bridge, path, way_to(path), numa_node(path), address))
    return tuple(sorted(found.values(), key=lambda one: one.address))


def _kind_and_name(address: str, path: str) -> tuple[Kind | None, str]:
    """What a device is by its class and by what its driver made of it, never by its name."""
    code = text_of(f"{path}/class")
    if code.startswith(_DISPLAY):
        return (Kind.gpu, short_address(address)) if not code.startswith("0x0300") or _is_driven(path) else (None, "")
    if code.startswith(_NETWORK):
        if rdma := names_in(f"{path}/infiniband"):
            return Kind.hca, rdma[0]
        interfaces = names_in(f"{path}/net")
        return Kind.nic, interfaces[0] if interfaces else address
    return None, ""


def _is_driven(path: str) -> bool:
    """Whether a display controller has a driver for computing: a board's own screen adapter has none of these."""
    driver = link_of(f"{path}/driver").rpartition("/")[2]
    return driver in ("nvidia", "amdgpu", "vfio-pci")


def way_to(path: str) -> tuple[str, ...]:
    """Give the host bridge and bridges that stand in the link of a device's folder, without itself."""
    parts = [part for part in link_of(path).split("/") if ADDRESS.fullmatch(part) or HOST_BRIDGE.fullmatch(part)]
    return tuple(parts[:-1])


def numa_node(path: str) -> int | None:
    """Give the NUMA node, None where there is only one or the firmware does not tell (the kernel then says -1)."""
    node = number_of(f"{path}/numa_node")
    return node if node is not None and node >= 0 else None


def nearness(one: PciDevice, other: PciDevice) -> tuple[Nearness, int]:
    """Give what two devices share, and how many steps of the way.

    >>> def at(*way, node=0): return PciDevice("x", Kind.gpu, "", way, node, "")
    >>> nearness(at("pci0000:15", "0000:15:01.0", "0000:16:00.0"), at("pci0000:15", "0000:15:01.0", "0000:16:00.0"))
    (<Nearness.switch: 'switch'>, 3)
    >>> nearness(at("pci0000:15", "0000:15:01.0"), at("pci0000:26", "0000:26:01.0"))[0].value
    'numa'
    """
    shared = 0
    for left, right in zip(one.way, other.way, strict=False):
        if left != right:
            break
        shared += 1
    if shared > 1:
        return Nearness.switch, shared
    if shared == 1:
        return Nearness.root, shared
    is_one_node = one.numa_node is not None and one.numa_node == other.numa_node
    return (Nearness.numa if is_one_node else Nearness.system), 0


def nearest(one: PciDevice, others: tuple[PciDevice, ...]) -> tuple[tuple[PciDevice, Nearness], ...]:
    """Give the nearest of the others, several when they are equally near."""
    order = list(Nearness)
    rated = [(order.index(near), -shared, other, near) for other in others for near, shared in [nearness(one, other)]]
    best = min(((rank, shared) for rank, shared, _, _ in rated), default=(0, 0))
    return tuple((other, near) for rank, shared, other, near in rated if (rank, shared) == best)


def nearest_rdma(root: str, address: str) -> tuple[str, ...]:
    """Give the RDMA devices nearest to the device at `address` (`0000:3b:00`, or with its function), equally near ones.

    None where they share neither a bridge nor a NUMA node that is known.
    """
    path = f"{root}/{DEVICES}/{address if '.' in address else f'{address}.0'}"
    if not address or not Path(path).exists():
        return ()
    own = PciDevice(address, Kind.gpu, path, way_to(path), numa_node(path), address)
    adapters = tuple(one for one in devices(root) if one.kind is Kind.hca)
    near = [other for other, shared in nearest(own, adapters) if shared is not Nearness.system]
    return tuple(sorted(name for other in near for name in names_in(f"{other.path}/infiniband")))


def nvidia_gpus(root: str) -> list[str]:
    """Give the addresses of NVIDIA's GPUs on the bus, whether or not a driver has them."""
    return _nvidia(root, _NVIDIA_GPUS)


def has_nvswitch(root: str, driver: Path) -> bool:
    """Whether the node has NVSwitches: then its GPUs reach one another only while the fabric manager runs."""
    return bool(names_in(f"{driver}/nvidia-nvswitch/devices") or _nvidia(root, _NVSWITCHES))


def _nvidia(root: str, classes: tuple[str, ...]) -> list[str]:
    folder = f"{root}/{DEVICES}"
    found = (address for address in names_in(folder, ENTRIES_MAX) if text_of(f"{folder}/{address}/vendor") == _NVIDIA)
    return [address for address in found if text_of(f"{folder}/{address}/class").startswith(classes)]
