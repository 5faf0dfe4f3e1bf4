"""Which PCI devices a node has, and where, from `/sys/bus/pci/devices`: what is nearest to a GPU, and how many GPUs."""

from __future__ import annotations

import os
from pathlib import Path

DEVICES_MAX = 4096


def devices(sys: Path) -> list[Path]:
    """Give the folders of the node's PCI devices in the order of their addresses, none where there is no PCI."""
    try:
        return sorted((sys / "bus/pci/devices").iterdir())[:DEVICES_MAX]
    except OSError:
        return []


def nearest_rdma(sys: Path, pci: str) -> tuple[str, ...]:
    """Give the RDMA devices that share most bridges with the device at `pci` (`0000:3b:00`), all that are equally near.

    Beneath different root complexes those of the same NUMA node are near; none is when it is not known.
    """
    own = sys / "bus/pci/devices" / (pci if "." in pci else f"{pci}.0")
    if not pci or not own.exists():
        return ()
    own_path, own_numa = _path(own), numa_node(own)
    near: dict[tuple[int, int], list[str]] = {}
    for device in devices(sys):
        if names := _rdma_names(device):
            shared = _shared(own_path, _path(device))
            is_same_numa = own_numa >= 0 and numa_node(device) == own_numa
            near.setdefault((shared, int(is_same_numa)), []).extend(names)
    best = max(near, default=(0, 0))
    return tuple(sorted(near[best])) if best > (0, 0) else ()


def nvidia_gpus(sys: Path) -> list[str]:
    """Give the addresses of NVIDIA's GPUs on the bus, whether or not a driver has them."""
    return [device.name for device in devices(sys) if _is_nvidia(device, ("0x0300", "0x0302"))]


def has_nvswitch(sys: Path, driver: Path) -> bool:
    """Whether the node has NVSwitches: then its GPUs reach one another only while the fabric manager runs."""
    try:
        if any((driver / "nvidia-nvswitch/devices").iterdir()):
            return True
    except OSError:  # no such driver, or it shows nothing
        pass
    return any(_is_nvidia(device, ("0x0680",)) for device in devices(sys))


def _is_nvidia(device: Path, classes: tuple[str, ...]) -> bool:
    try:
        is_vendor = (device / "vendor").read_text().strip() == "0x10de"
        return is_vendor and (device / "class").read_text().startswith(classes)
    except OSError:
        return False


def numa_node(device: Path) -> int:
    """Give the NUMA node of a device, -1 when it is not known."""
    try:
        return int((device / "numa_node").read_text())
    except (OSError, ValueError):
        return -1


def _rdma_names(device: Path) -> list[str]:
    try:
        return [each.name for each in (device / "infiniband").iterdir()]
    except OSError:
        return []


def _path(device: Path) -> list[str]:
    """Give the root complex, the bridges, and the device: `["pci0000:3a", "0000:3a:00.0", "0000:3b:00.0"]`."""
    parts = os.path.realpath(device).split("/")
    first = next((at for at, part in enumerate(parts) if part.startswith("pci")), len(parts))
    return parts[first:]


def _shared(one: list[str], other: list[str]) -> int:
    """Give how many steps from the root two devices have in common."""
    count = 0
    for mine, its in zip(one, other, strict=False):
        if mine != its:
            break
        count += 1
    return count
