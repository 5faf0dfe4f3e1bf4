"""Builds the parts of /sys and /proc that the network sources read: written here, and changed by a test."""

import itertools
import os
import shutil
from pathlib import Path

from instep_agent.node import Fact

_serial = itertools.count()

COUNTERS = {
    "link_downed": 0,
    "link_error_recovery": 0,
    "symbol_error": 0,
    "local_link_integrity_errors": 0,
    "excessive_buffer_overrun_errors": 0,
    "port_rcv_errors": 0,
    "port_xmit_discards": 0,
    "port_xmit_wait": 12,
    "port_rcv_data": 1000,
    "port_xmit_data": 2000,
    "port_rcv_packets": 50,
    "port_xmit_packets": 60,
}
HW_COUNTERS = {"out_of_buffer": 0, "local_ack_timeout_err": 0, "np_cnp_sent": 7, "lifespan": 12}


def write(path, text):
    """Put a text into a file as the kernel gives it. A file that is there keeps its inode, as in sysfs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


class Tree:
    """A node's root with adapters, PCI devices and interfaces."""

    def __init__(self, root):
        self.root = Path(root)
        self.set_boot("boot-1")

    def set_boot(self, boot):
        write(self.root / "proc/sys/kernel/random/boot_id", boot)

    def pci(self, address, way=("pci0000:15", "0000:15:01.0"), kind="0x020700", numa=0, **files):
        """A device and the bridges above it, reached by a link as in the real tree; give its folder."""
        folder = self.root / "sys/devices"
        for part in way:
            folder /= part
            if ":" in part and not part.startswith("pci"):
                self._pci_files(folder, part, "0x060400", numa, {})
        self._pci_files(folder / address, address, kind, numa, files)
        return folder / address

    def _pci_files(self, folder, address, kind, numa, files):
        standard = {
            "class": kind,
            "numa_node": numa,
            "current_link_width": 16,
            "max_link_width": 16,
            "current_link_speed": "32.0 GT/s PCIe",
            "max_link_speed": "32.0 GT/s PCIe",
            "aer_dev_correctable": "RxErr 0\nBadTLP 0\nTOTAL_ERR_COR 0",
            "aer_dev_nonfatal": "Undefined 0\nTOTAL_ERR_NONFATAL 0",
            "aer_dev_fatal": "Undefined 0\nTOTAL_ERR_FATAL 0",
        }
        for name, text in (standard | files).items():
            if name in files or not (folder / name).exists():
                write(folder / name, text)
        self._link(self.root / "sys/bus/pci/devices" / address, folder)

    def hca(self, name="mlx5_0", address="0000:18:00.0", ports=(1,), **options):
        """An adapter with healthy ports, on a PCI device of its own; give its folder."""
        device = self.pci(address, **options)
        folder = device / "infiniband" / name
        for file, text in (("board_id", "MT_0838"), ("fw_ver", "28.41.1000"), ("hca_type", "MT4129")):
            write(folder / file, text)
        self._link(folder / "device", device)
        for port in ports:
            self.port(folder, port)
        self._link(self.root / "sys/class/infiniband" / name, folder)
        return folder

    def port(self, hca, number=1):
        folder = hca / f"ports/{number}"
        texts = {
            "state": "4: ACTIVE",
            "phys_state": "5: LinkUp",
            "rate": "400 Gb/sec (4X NDR)",
            "link_layer": "InfiniBand",
        }
        texts |= {f"counters/{file}": value for file, value in COUNTERS.items()}
        texts |= {f"hw_counters/{file}": value for file, value in HW_COUNTERS.items()}
        for file, text in texts.items():
            write(folder / file, text)

    def set(self, hca, file, text, port=1):
        """Change one file of a port."""
        write(hca / f"ports/{port}" / file, text)

    def link_goes_down(self, hca, port=1, *, counted=True):
        self.set(hca, "state", "1: DOWN", port)
        self.set(hca, "phys_state", "2: Polling", port)
        if counted:
            self.count(hca, "link_downed", port=port)

    def link_comes_up(self, hca, port=1):
        self.set(hca, "phys_state", "5: LinkUp", port)
        self.set(hca, "state", "4: ACTIVE", port)

    def count(self, hca, counter, by=1, port=1):
        path = hca / f"ports/{port}/counters/{counter}"
        write(path, int(path.read_text()) + by)

    def take_away(self, name):
        """The adapter vanishes. What was its folder stays somewhere, so that its inode is not given to another one."""
        link = self.root / "sys/class/infiniband" / name
        target = link.resolve()
        link.unlink()
        target.rename(self.root / f"gone-{next(_serial)}")

    def interface(self, name="eth0", address="0000:19:00.0", device=None, index=2, **files):
        """A physical interface; give its folder."""
        device = device or self.pci(address, kind="0x020000")
        folder = device / "net" / name
        standard = {
            "operstate": "up",
            "carrier": 1,
            "carrier_changes": 1,
            "carrier_up_count": 1,
            "carrier_down_count": 0,
            "speed": 100000,
            "ifindex": index,
            "dev_port": 0,
        }
        statistics = dict.fromkeys(
            ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_errors", "tx_errors", "rx_dropped"), 5
        )
        statistics |= dict.fromkeys(("tx_dropped", "rx_missed_errors", "rx_fifo_errors", "rx_crc_errors"), 2)
        texts = standard | {f"statistics/{file}": value for file, value in statistics.items()} | files
        for file, text in texts.items():
            write(folder / file, text)
        self._link(folder / "device", device)
        self._link(self.root / "sys/class/net" / name, folder)
        return folder

    def virtual_interface(self, name, lower=()):
        folder = self.root / "sys/devices/virtual/net" / name
        write(folder / "operstate", "up")
        for each in lower:
            self._link(folder / f"lower_{each}", self.root / "sys/class/net" / each)
        self._link(self.root / "sys/class/net" / name, folder)

    def default_route(self, interface):
        head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"
        routes = [f"{interface}\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0"]
        routes += ["tun0\t00000000\t010200C0\t0003\t0\t0\t0\t00000080\t0\t0\t0"]
        write(self.root / "proc/1/net/route", "\n".join([head, *routes]))

    def make_virtual_function(self, device, of):
        """Say that a device is a part of another function."""
        self._link(device / "physfn", of)

    def _link(self, path, target):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))

    def remove(self, *parts):
        shutil.rmtree(self.root.joinpath(*parts))


class Readings:
    """What one turn of a source said, by kind."""

    def __init__(self, found):
        self.facts = [each for each in found if isinstance(each, Fact)]
        self.samples = {
            (each.name, tuple(sorted(each.labels))): each.value for each in found if not isinstance(each, Fact)
        }
        assert len(self.samples) + len(self.facts) == len(found), "each series once"

    def kinds(self):
        return [fact.kind for fact in self.facts]

    def value(self, name, **labels):
        """The one value of a metric with these labels among its own."""
        wanted = set(labels.items())
        (found,) = [value for (each, has), value in self.samples.items() if each == name and wanted <= set(has)]
        return found

    def labels(self, name):
        return [dict(has) for each, has in self.samples if each == name]

    def has(self, name, **labels):
        wanted = set(labels.items())
        return any(each == name and wanted <= set(has) for each, has in self.samples)


def look(source, node):
    """Let a source take one turn; every sample is one that it states."""
    found = Readings(list(source.collect(node)))
    assert {name for name, _ in found.samples} <= {metric.name for metric in source.metrics}
    return found
