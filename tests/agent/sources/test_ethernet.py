"""Ethernet: files of every physical interface, and the driver's statistics over a kernel that answers as ours does."""

import ctypes
import errno
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from instep_agent.errors import Absent
from instep_agent.network.ethtool import STATISTICS_MAX, Ethtool
from instep_agent.network.ethtool_table import METRICS
from instep_agent.sources.ethernet import Ethernet
from made_nodes import Clock, node_at
from sysfs_trees import Tree, look, write

from tests import services

MLX5 = {"rx_packets": 9, "rx_discards_phy": 4, "rx_global_pause": 0, "tx_pause_storm_error_events": 1}
MLX5 |= {f"rx_prio{priority}_pause": 0 for priority in range(8)}
MLX5 |= {f"tx_prio{priority}_pause": 0 for priority in range(8)}
MLX5 |= {"rx_prio3_pause_duration": 0, "rx_prio3_discards": 0, "link_down_events_phy": 2, "rx_prio3_cong_discard": 6}


@dataclass
class Card:
    bus: str = "0000:19:00.0"
    statistics: dict[str, int] = field(default_factory=lambda: dict(MLX5))
    said: int | None = None
    """How many statistics it says it has, when that is not true."""


@dataclass
class Kernel:
    """The ethtool ioctl: it writes through the pointer that it is given, as much as the card has."""

    cards: dict[str, Card] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    error: int = 0

    def ioctl(self, _descriptor, request, argument):
        assert request == 0x8946
        assert len(argument) == 40, "struct ifreq"
        name, address = struct.unpack_from("16sP", argument)
        (command,) = struct.unpack("=I", ctypes.string_at(address, 4))
        self.asked.append(command)
        card = self.cards.get(name.rstrip(b"\0").decode())
        if card is None or self.error:
            raise OSError(self.error or errno.ENODEV, "as asked for")
        values = card.statistics
        if command == 0x03:
            answer = struct.pack("=I32s32s32s32s32s", command, b"mlx5_core", b"6", b"28.41", card.bus.encode(), b"")
            answer += struct.pack("=12sIIIII", b"", 0, len(values) if card.said is None else card.said, 0, 0, 0)
            assert len(answer) == 196, "struct ethtool_drvinfo"
        elif command == 0x1B:
            answer = struct.pack("=III", command, 1, len(values))
            answer += b"".join(each.encode().ljust(32, b"\0") for each in values)
        else:
            assert command == 0x1D
            answer = struct.pack(f"=II{len(values)}Q", command, len(values), *values.values())
        ctypes.memmove(address, answer, len(answer))


class Watch:
    """A source over a tree and a kernel, asked every ten seconds."""

    def __init__(self, root):
        self.tree, self.clock, self.kernel = Tree(root), Clock(), Kernel({"eth0": Card()})
        self.source = Ethernet(new_ethtool=lambda: Ethtool(self.kernel.ioctl))
        self.node = node_at(root, self.clock)
        self.card = self.kernel.cards["eth0"]

    def look(self, after_seconds=10.0):
        self.clock.seconds += after_seconds
        return look(self.source, self.node)


@pytest.fixture
def watch(tmp_path):
    watch = Watch(tmp_path)
    yield watch
    if watch.source._ethtool is not None:
        watch.source._ethtool.close()


def test_a_node_without_physical_interfaces_is_absent(watch):
    with pytest.raises(Absent, match="no interface"):
        watch.look()
    watch.tree.virtual_interface("lo")
    with pytest.raises(Absent, match="no interface"):
        watch.look()


def test_gives_carrier_traffic_and_errors(watch):
    watch.tree.interface()
    found = watch.look()
    assert found.facts == []
    assert found.value("node_network_up", device="eth0") == 1
    assert found.value("node_network_carrier", device="eth0") == 1
    assert found.value("node_network_speed_bytes", device="eth0") == 12.5e9
    assert found.value("node_network_receive_bytes_total", device="eth0") == 5
    assert found.value("node_network_receive_drop_total", device="eth0") == 5 + 2
    assert found.value("instep_ethernet_receive_crc_errors_total", device="eth0") == 2


def test_an_interface_that_is_down_has_no_speed(watch):
    interface = watch.tree.interface(operstate="down", speed=-1)
    (interface / "carrier").write_text("")
    found = watch.look()
    assert found.value("node_network_up") == 0
    assert not found.has("node_network_speed_bytes")
    assert not found.has("node_network_carrier")


def test_only_hardware_of_this_node_is_looked_at(watch):
    tree = watch.tree
    device = tree.interface().parents[1]
    tree.virtual_interface("cali123")
    part = tree.interface("eth0v0", "0000:19:00.4")
    tree.make_virtual_function(part.parents[1], device)
    tree.interface("eth0_rep", device=device, index=9, phys_port_name="pf0vf3")
    tree.interface("eth1", device=device, index=8, phys_port_name="p1")
    assert {one["device"] for one in watch.look().labels("node_network_up")} == {"eth0", "eth1"}


def test_a_carrier_that_went_is_told(watch):
    interface = watch.tree.interface()
    watch.look()
    write(interface / "carrier_down_count", 2)
    (fact,) = watch.look().facts
    assert (fact.kind, fact.fields) == ("carrier_lost", {"device": "eth0", "pci": "0000:19:00.0", "count": "2"})
    assert watch.look().facts == []


def test_gives_the_statistics_of_the_driver(watch):
    watch.tree.interface()
    watch.card.statistics |= {"rx_prio3_pause": 11, "rx_prio3_pause_duration": 2_500_000, "rx_prio3_discards": 1}
    found = watch.look()
    assert found.value("instep_ethernet_statistics_readable") == 1
    assert found.value("instep_ethernet_discards_total", direction="receive") == 4
    assert found.value("instep_ethernet_pause_frames_total", direction="receive") == 0
    assert found.value("instep_ethernet_pause_storms_total", severity="error") == 1
    assert found.value("instep_ethernet_physical_events_total", event="link_down_events_phy") == 2
    assert found.value("instep_ethernet_statistic_total", statistic="rx_prio3_cong_discard") == 6
    lossless = {"direction": "receive", "priority": "3"}
    assert found.value("instep_ethernet_lossless_pause_frames_total", **lossless) == 11
    assert found.value("instep_ethernet_lossless_pause_seconds_total", **lossless) == 2.5
    assert found.value("instep_ethernet_lossless_discards_total", **lossless) == 1
    assert not found.has("instep_ethernet_lossless_pause_frames_total", priority="0")
    assert len(found.labels("instep_ethernet_priority_pause_frames_total")) == 16


def test_a_network_that_never_paused_shows_no_lossless_priority(watch):
    watch.tree.interface()
    found = watch.look()
    assert found.value("instep_ethernet_priority_pause_frames_total", direction="transmit", priority="3") == 0
    assert not found.labels("instep_ethernet_lossless_pause_frames_total")


def test_the_page_shows_lossless_priorities_alone():
    shown = {metric.name for metric in METRICS if metric.is_on_page}
    assert "instep_ethernet_lossless_pause_frames_total" in shown
    assert not any("priority" in name for name in shown)


@pytest.mark.parametrize(
    ("statistic", "metric", "labels"),
    [
        ("rx_pfc_ena_frames_pri3", "instep_ethernet_lossless_pause_frames_total", {"priority": "3"}),
        ("tx_priority_5_xoff.nic", "instep_ethernet_lossless_pause_frames_total", {"direction": "transmit"}),
        ("pfc_pri3_tx_transitions", "instep_ethernet_priority_pause_transitions_total", {"direction": "transmit"}),
        ("link_xoff_rx.nic", "instep_ethernet_pause_frames_total", {"direction": "receive"}),
    ],
)
def test_other_drivers_names_are_known_too(watch, statistic, metric, labels):
    watch.tree.interface()
    watch.card.statistics = {"something_else": 1, statistic: 8}
    assert watch.look().value(metric, **labels) == 8


def test_an_interface_of_the_pod_is_not_taken_for_the_nodes(watch):
    watch.tree.interface()
    watch.card.bus = "0000:99:00.0"
    found = watch.look()
    assert found.value("instep_ethernet_statistics_readable") == 0
    assert not found.has("instep_ethernet_discards_total")
    assert found.has("node_network_carrier")


@pytest.mark.parametrize("error", [errno.ENODEV, errno.EOPNOTSUPP, errno.EPERM, errno.EIO])
def test_a_driver_that_does_not_answer_loses_no_file(watch, error):
    watch.tree.interface()
    watch.kernel.error = error
    found = watch.look()
    assert found.value("instep_ethernet_statistics_readable") == 0
    assert found.value("node_network_up") == 1
    watch.kernel.error = 0
    assert watch.look().value("instep_ethernet_statistics_readable") == 1


def test_names_are_asked_for_once_and_again_when_there_are_more(watch):
    watch.tree.interface()
    for _ in range(3):
        watch.look()
    assert watch.kernel.asked.count(0x1B) == 1
    watch.card.statistics = {"new_in_front": 0} | watch.card.statistics
    found = watch.look()
    assert watch.kernel.asked.count(0x1B) == 2
    assert found.value("instep_ethernet_discards_total", direction="receive") == 4


def test_a_driver_that_gets_more_statistics_between_two_calls_is_not_believed(watch):
    watch.tree.interface()
    watch.look()
    before = len(watch.card.statistics)
    watch.card.statistics = {f"queue_{n}": n for n in range(4000)} | watch.card.statistics
    watch.card.said = before
    found = watch.look()
    assert found.value("instep_ethernet_statistics_readable") == 0
    watch.card.said = None
    assert watch.look().value("instep_ethernet_discards_total", direction="receive") == 4


def test_a_driver_with_too_many_statistics_is_not_asked(watch):
    watch.tree.interface()
    watch.card.said = STATISTICS_MAX + 1
    assert watch.look().value("instep_ethernet_statistics_readable") == 0
    assert set(watch.kernel.asked) == {0x03}


def test_counters_that_begin_anew_are_counted(watch):
    interface = watch.tree.interface()
    assert watch.look().value("instep_ethernet_counter_resets_total") == 0
    watch.card.statistics["rx_discards_phy"] = 0
    assert watch.look().value("instep_ethernet_counter_resets_total") == 1
    write(interface / "statistics/rx_bytes", 0)
    assert watch.look().value("instep_ethernet_counter_resets_total") == 2
    assert watch.look().value("instep_ethernet_counter_resets_total") == 2


def test_another_interface_of_the_same_name_is_a_new_baseline(watch):
    interface = watch.tree.interface()
    watch.look()
    write(interface / "ifindex", 77)
    write(interface / "statistics/rx_bytes", 0)
    assert watch.look(after_seconds=61).value("instep_ethernet_counter_resets_total") == 0


def test_an_interface_that_goes_has_no_samples_more(watch):
    watch.tree.interface()
    watch.tree.interface("eth1", "0000:20:00.0", index=3)
    watch.look()
    (watch.tree.root / "sys/class/net/eth1").unlink()
    assert {one["device"] for one in watch.look().labels("node_network_up")} == {"eth0"}


def test_a_hostile_tree_neither_hangs_nor_kills(watch):
    interface = watch.tree.interface()
    (interface / "carrier").unlink()
    os.mkfifo(interface / "carrier")
    folder = watch.tree.root / "sys/class/net"
    (folder / "loop").symlink_to("loop")
    (folder / "bonding_masters").write_text("bond0\n")
    (folder / ("long" * 20)).symlink_to(interface)
    found = watch.look()
    assert found.value("node_network_up", device="eth0") == 1
    assert not found.has("node_network_carrier", device="eth0")


def test_this_machines_kernel_answers_as_the_ethtool_program_says():
    program = shutil.which("ethtool", path="/usr/sbin:/usr/bin:/sbin")
    if program is None:
        services.cannot("ethtool is missing: apt-get install ethtool.")
    ethtool = Ethtool()
    try:
        for interface in sorted(path.name for path in Path("/sys/class/net").iterdir() if (path / "device").exists()):
            try:
                driver = ethtool.driver(interface)
            except OSError:
                continue
            names = ethtool.names(interface, driver.statistics)
            said = subprocess.run([program, "-S", interface], capture_output=True, text=True, timeout=20).stdout
            assert [line.partition(":")[0].strip() for line in said.splitlines()[1:]] == names
            values = ethtool.values(interface, driver.statistics, list(range(len(names))))
            assert values is not None
            assert len(values) == driver.statistics
            about = subprocess.run([program, "-i", interface], capture_output=True, text=True, timeout=20).stdout
            assert f"driver: {driver.name}\n" in about
            assert f"bus-info: {driver.bus}\n" in about
            return
    finally:
        ethtool.close()
    pytest.skip("Needs a network interface whose driver keeps statistics.")
