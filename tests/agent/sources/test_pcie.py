"""PCIe: links as they are and could be, AER counters, and which HCA is near which GPU."""

import os

import pytest
from instep_agent.errors import Absent
from instep_agent.sources.pcie import Pcie, error_counts
from made_nodes import Clock, node_at
from sysfs_trees import Tree, look, write

GPU = "0x030200"
WAY = ("pci0000:15", "0000:15:01.0", "0000:16:00.0", "0000:17:00.0")
BESIDE = ("pci0000:15", "0000:15:01.0", "0000:16:00.0", "0000:17:01.0")


class Watch:
    """A source over a tree, asked every ten seconds."""

    def __init__(self, root):
        self.tree, self.clock, self.source = Tree(root), Clock(), Pcie()
        self.node = node_at(root, self.clock)

    def look(self, after_seconds=10.0):
        self.clock.seconds += after_seconds
        return look(self.source, self.node)


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path)


def test_a_node_without_such_devices_is_absent(watch):
    with pytest.raises(Absent, match="no GPU, HCA or network card"):
        watch.look()
    watch.tree.pci("0000:00:1f.0", way=("pci0000:00",), kind="0x060100")
    with pytest.raises(Absent, match="no GPU, HCA or network card"):
        watch.look()


def test_gives_the_link_as_it_is_and_as_it_could_be(watch):
    watch.tree.pci("0000:18:00.0", WAY, GPU, current_link_width=8, current_link_speed="16.0 GT/s PCIe")
    found = watch.look()
    assert found.facts == []
    device = {"device": "0000:18:00", "pci": "0000:18:00.0"}
    assert found.value("instep_pcie_link_lanes", **device) == 8
    assert found.value("instep_pcie_link_lanes_max", **device) == 16
    assert found.value("instep_pcie_link_transfers_per_second", **device) == 16e9
    assert found.value("instep_pcie_link_transfers_per_second_max", **device) == 32e9
    assert found.value("instep_pcie_upstream_lanes_max", **device) == 16
    assert found.value("instep_pcie_link_readable", **device) == 1
    assert found.value("instep_pcie_numa_node", **device) == 0
    assert found.value("instep_pcie_device_info", kind="gpu") == 1
    bridges = {one["pci"] for one in found.labels("instep_pcie_device_info") if one["kind"] == "bridge"}
    assert bridges == set(WAY[1:])


def test_the_port_above_tells_what_a_slot_can_do(watch):
    watch.tree.pci("0000:17:00.0", WAY[:3], "0x060400", max_link_width=8, max_link_speed="16.0 GT/s PCIe")
    watch.tree.pci("0000:18:00.0", WAY, GPU)
    found = watch.look()
    assert found.value("instep_pcie_upstream_lanes_max", pci="0000:18:00.0") == 8
    assert found.value("instep_pcie_upstream_transfers_per_second_max", pci="0000:18:00.0") == 16e9


def test_a_device_off_the_bus_shows_no_width(watch):
    device = watch.tree.pci("0000:18:00.0", WAY, GPU)
    watch.look()
    write(device / "current_link_width", 63)
    write(device / "current_link_speed", "Unknown")
    found = watch.look()
    assert found.value("instep_pcie_link_readable", pci="0000:18:00.0") == 0
    assert not found.has("instep_pcie_link_lanes", pci="0000:18:00.0")
    assert not found.has("instep_pcie_link_transfers_per_second", pci="0000:18:00.0")
    assert found.facts == []


def test_another_width_is_told_and_an_idle_gpu_is_not(watch):
    gpu = watch.tree.pci("0000:18:00.0", WAY, GPU)
    hca = watch.tree.hca("mlx5_0", "0000:19:00.0", way=BESIDE).parents[1]
    watch.look()
    write(gpu / "current_link_speed", "2.5 GT/s PCIe")
    assert watch.look().facts == [], "a GPU slows its link down whenever it is idle"
    write(hca / "current_link_speed", "16.0 GT/s PCIe")
    (slower,) = watch.look().facts
    assert (slower.kind, slower.fields["device"]) == ("pcie_link_changed", "mlx5_0")
    write(gpu / "current_link_width", 4)
    (narrower,) = watch.look().facts
    assert (narrower.fields["lanes"], narrower.fields["lanes_before"]) == ("4", "16")
    assert watch.look().facts == []


def test_gives_errors_by_severity_and_type(watch):
    device = watch.tree.pci("0000:18:00.0", WAY, GPU)
    write(device / "aer_dev_correctable", "RxErr 2\nBadTLP 0\nReplay Timer Timeout 1\nTOTAL_ERR_COR 3")
    found = watch.look()
    assert found.value("instep_pcie_errors_total", pci="0000:18:00.0", severity="correctable") == 3
    assert found.value("instep_pcie_errors_total", pci="0000:18:00.0", severity="fatal") == 0
    types = {(one["error"], one["severity"]) for one in found.labels("instep_pcie_error_types_total")}
    assert types == {("RxErr", "correctable"), ("Replay Timer Timeout", "correctable")}


def test_errors_of_the_bridges_on_the_way_are_given_too(watch):
    watch.tree.pci("0000:17:00.0", WAY[:3], "0x060400", aer_dev_fatal="DLP 1\nTOTAL_ERR_FATAL 1")
    watch.tree.pci("0000:18:00.0", WAY, GPU)
    assert watch.look().value("instep_pcie_errors_total", pci="0000:17:00.0", severity="fatal") == 1


def test_counters_that_begin_anew_are_told(watch):
    device = watch.tree.pci("0000:18:00.0", WAY, GPU, aer_dev_fatal="DLP 5\nTOTAL_ERR_FATAL 5")
    watch.look()
    write(device / "aer_dev_fatal", "DLP 0\nTOTAL_ERR_FATAL 0")
    found = watch.look()
    assert found.kinds() == ["pcie_counters_reset"]
    assert found.value("instep_pcie_counter_resets_total") == 1
    assert watch.look().facts == []


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", {}),
        ("TOTAL_ERR_COR", {}),
        ("RxErr 2\nBadT", {"RxErr": 2, "total": 2}),
        ("RxErr 2\nBadTLP x\nTOTAL_ERR_COR 9", {"RxErr": 2, "total": 9}),
        ("Rx\x00 2", {}),
        ("RxErr 1\n" * 10_000, {"RxErr": 1, "total": 1}),
    ],
)
def test_a_torn_file_of_errors_gives_what_is_whole(text, counts):
    assert error_counts(text) == counts


def test_a_node_without_aer_has_no_errors_to_show(watch):
    device = watch.tree.pci("0000:18:00.0", ("pci0000:15",), GPU)
    for severity in ("correctable", "nonfatal", "fatal"):
        (device / f"aer_dev_{severity}").unlink()
    found = watch.look()
    assert found.value("instep_pcie_link_lanes") == 16
    assert not found.has("instep_pcie_errors_total")


def test_the_nearest_hca_shares_most_of_the_way(watch):
    tree = watch.tree
    tree.pci("0000:18:00.0", WAY, GPU)
    tree.hca("mlx5_0", "0000:19:00.0", way=BESIDE)
    tree.hca("mlx5_1", "0000:1a:00.0", way=("pci0000:15", "0000:15:02.0"))
    tree.pci("0000:48:00.0", ("pci0000:45", "0000:45:01.0"), GPU, numa=1)
    tree.hca("mlx5_2", "0000:58:00.0", way=("pci0000:55", "0000:55:01.0"), numa=1)
    tree.pci("0000:88:00.0", ("pci0000:85", "0000:85:01.0"), GPU, numa=-1)
    near = {}
    for one in watch.look().labels("instep_gpu_nearest_hca_info"):
        near.setdefault(one["gpu_pci"], set()).add((one["hca"], one["nearness"]))
    assert near == {
        "0000:18:00": {("mlx5_0", "switch")},
        "0000:48:00": {("mlx5_2", "numa")},
        "0000:88:00": {(name, "system") for name in ("mlx5_0", "mlx5_1", "mlx5_2")},
    }


def test_what_a_device_is_comes_from_its_class_and_driver(watch):
    tree = watch.tree
    screen = tree.pci("0000:02:00.0", ("pci0000:00",), "0x030000")
    (screen / "driver").symlink_to("../../../bus/pci/drivers/ast")
    vga = tree.pci("0000:03:00.0", ("pci0000:00",), "0x030000")
    (vga / "driver").symlink_to("../../../bus/pci/drivers/nvidia")
    tree.interface("eth7", "0000:04:00.0")
    part = tree.pci("0000:18:00.4", WAY, "0x020700")
    tree.make_virtual_function(part, tree.pci("0000:18:00.0", WAY, "0x020700"))
    kinds = {one["pci"]: (one["kind"], one["device"]) for one in watch.look().labels("instep_pcie_device_info")}
    assert kinds["0000:03:00.0"] == ("gpu", "0000:03:00")
    assert kinds["0000:04:00.0"] == ("nic", "eth7")
    assert "0000:02:00.0" not in kinds
    assert "0000:18:00.4" not in kinds


def test_a_device_that_leaves_the_bus_and_comes_back_is_told(watch):
    tree = watch.tree
    tree.pci("0000:18:00.0", WAY, GPU)
    tree.pci("0000:48:00.0", ("pci0000:45", "0000:45:01.0"), GPU)
    assert watch.look().facts == []
    link = tree.root / "sys/bus/pci/devices/0000:48:00.0"
    target = link.resolve()
    link.unlink()
    found = watch.look()
    assert ("pcie_device_gone", "0000:48:00.0") in [(fact.kind, fact.fields["pci"]) for fact in found.facts]
    assert not found.has("instep_pcie_link_lanes", pci="0000:48:00.0")
    link.symlink_to(os.path.relpath(target, link.parent))
    found = watch.look()
    assert ("pcie_device_added", "0000:48:00.0") in [(fact.kind, fact.fields["pci"]) for fact in found.facts]
    assert found.value("instep_pcie_link_lanes", pci="0000:48:00.0") == 16


def test_a_hostile_tree_neither_hangs_nor_kills(watch):
    device = watch.tree.pci("0000:18:00.0", WAY, GPU)
    for file in ("current_link_width", "aer_dev_fatal"):
        (device / file).unlink()
        os.mkfifo(device / file)
    (device / "numa_node").unlink()
    (device / "numa_node").symlink_to("numa_node")
    folder = watch.tree.root / "sys/bus/pci/devices"
    (folder / "0000:99:00.0").symlink_to("0000:99:00.0")
    (folder / "not an address").symlink_to(".")
    with (device / "aer_dev_nonfatal").open("wb") as file:
        file.truncate(1 << 40)
    found = watch.look()
    assert found.value("instep_pcie_link_lanes_max", pci="0000:18:00.0") == 16
    assert not found.has("instep_pcie_numa_node", pci="0000:18:00.0")
    assert found.value("instep_pcie_errors_total", pci="0000:18:00.0", severity="correctable") == 0
