"""RDMA ports: state and rate, losses seen and unseen, what each port is there for, adapters that come and go."""

import errno
import os
import time

import pytest
from instep_agent.errors import Absent, SourceFailed
from instep_agent.held_files import HeldFiles
from instep_agent.node import Node
from instep_agent.running.runner import Runner
from instep_agent.sources.rdma_ports import LISTING_SECONDS, RATE_SECONDS, RdmaPorts
from made_nodes import Clock, node_at
from sysfs_trees import Tree, look, write


def kernel_pread(descriptor, count, offset):
    """Read as the kernel does: a file of a device that was removed answers no more, whoever still holds it open."""
    if "/gone-" in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return os.pread(descriptor, count, offset)


class Watch:
    """A source over a tree, asked at times of its own."""

    def __init__(self, root):
        self.tree, self.clock, self.source = Tree(root), Clock(), RdmaPorts(HeldFiles(pread=kernel_pread))
        self.node = node_at(root, self.clock)

    def look(self, after_seconds=1.0):
        self.clock.seconds += after_seconds
        return look(self.source, self.node)

    def looks(self, count):
        """So many looks, a second apart; all their facts."""
        return [fact for _ in range(count) for fact in self.look().facts]


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path)


def test_a_node_without_adapters_is_absent(watch):
    with pytest.raises(Absent, match="no RDMA"):
        watch.look()
    (watch.tree.root / "sys/class/infiniband").mkdir(parents=True)
    with pytest.raises(Absent, match="no RDMA"):
        watch.look()


def test_a_folder_that_cannot_be_listed_is_a_failure(watch):
    folder = watch.tree.root / "sys/class/infiniband"
    folder.parent.mkdir(parents=True)
    folder.symlink_to("infiniband")
    with pytest.raises(SourceFailed, match=r"Cannot list .*too many levels.*: mount /sys read-only"):
        watch.look()


def test_gives_state_rate_and_description_of_every_port(watch):
    watch.tree.hca("mlx5_0", ports=(1, 2))
    other = watch.tree.hca("mlx5_1", "0000:29:00.0")
    watch.tree.set(other, "rate", "100 Gb/sec (2X HDR)")
    watch.tree.set(other, "state", "2: INIT")
    watch.tree.set(other, "link_layer", "Ethernet")
    found = watch.look()
    assert found.facts == []
    assert found.value("node_infiniband_state_id", device="mlx5_0", port="2") == 4
    assert found.value("node_infiniband_state_id", device="mlx5_1") == 2
    assert found.value("node_infiniband_physical_state_id", device="mlx5_1") == 5
    assert found.value("node_infiniband_rate_bytes_per_second", device="mlx5_0", port="1") == 50e9
    assert found.value("instep_rdma_port_lanes", device="mlx5_1") == 2
    assert found.value("node_infiniband_info", device="mlx5_0", board_id="MT_0838", firmware_version="28.41.1000") == 1
    assert found.value("instep_rdma_port_info", device="mlx5_1", pci="0000:29:00.0", link_layer="Ethernet") == 1


def test_an_outage_is_told_with_its_length_and_bounds(watch):
    hca = watch.tree.hca()
    watch.look()
    watch.tree.link_goes_down(hca)
    (down,) = watch.look().facts
    assert (down.kind, down.fields["phys_state"], down.fields["pci"]) == ("link_down", "Polling", "0000:18:00.0")
    assert down.monotonic_ns == watch.clock.monotonic_ns()
    assert watch.looks(26) == []
    watch.tree.link_comes_up(hca)
    found = watch.look()
    (up,) = found.facts
    assert up.kind == "link_up"
    assert "again after 27.0 s" in up.text
    assert [float(up.fields[name]) for name in ("seconds", "seconds_min", "seconds_max")] == [27.0, 26.0, 28.0]
    assert found.value("instep_rdma_port_downs_total") == 1
    assert watch.looks(30) == [], "nothing more is told, also when the counter of losses is read"


def test_an_outage_that_began_before_the_agent_has_no_upper_bound(watch):
    hca = watch.tree.hca()
    watch.tree.link_goes_down(hca)
    assert watch.looks(5) == []
    watch.tree.link_comes_up(hca)
    (up,) = watch.look().facts
    assert "at least" in up.text
    assert up.fields["seconds_min"] == "4.000"
    assert "seconds_max" not in up.fields


def test_flaps_between_two_looks_are_told_from_the_counter(watch):
    hca = watch.tree.hca()
    watch.look()
    watch.tree.count(hca, "link_downed", by=2)
    (flap,) = watch.looks(12)
    assert (flap.kind, flap.fields["count"], flap.fields["seconds_max"]) == ("link_flap", "2", "1.000")
    assert watch.look().value("instep_rdma_port_downs_total") == 2
    assert watch.looks(25) == []


def test_a_loss_that_the_counter_has_before_the_look_is_told_once(watch):
    """The counter is read a moment after the state: a loss between the two is seen by the next look."""
    hca = watch.tree.hca()
    watch.look()
    watch.looks(9)
    watch.tree.count(hca, "link_downed")
    assert watch.looks(1) == []
    watch.tree.link_goes_down(hca, counted=False)
    assert [fact.kind for fact in watch.looks(15)] == ["link_down"]


def test_a_loss_that_the_counter_has_late_is_told_once(watch):
    hca = watch.tree.hca()
    watch.look()
    watch.tree.link_goes_down(hca, counted=False)
    assert [fact.kind for fact in watch.look().facts] == ["link_down"]
    watch.tree.count(hca, "link_downed")
    assert watch.looks(20) == []


def test_a_port_that_was_switched_off_hides_no_later_flap(watch):
    hca = watch.tree.hca()
    watch.look()
    watch.tree.link_goes_down(hca, counted=False)
    watch.looks(3)
    watch.tree.link_comes_up(hca)
    watch.looks(15)
    watch.tree.count(hca, "link_downed")
    assert [fact.kind for fact in watch.looks(15)] == ["link_flap"]


def test_a_cleared_counter_is_no_flap(watch):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/link_downed", 9)
    watch.look()
    watch.tree.set(hca, "counters/link_downed", 0)
    assert watch.looks(25) == []


@pytest.mark.parametrize("text", ["", "ACTIVE", "4", "x: y", "\x00\x00", "5: ACTIVE_DEFER"])
def test_a_state_that_says_nothing_is_no_loss(watch, text):
    hca = watch.tree.hca()
    watch.look()
    watch.tree.set(hca, "state", text)
    assert watch.looks(3) == []
    watch.tree.link_comes_up(hca)
    assert watch.looks(3) == []


def test_another_rate_is_told(watch):
    hca = watch.tree.hca()
    watch.look()
    watch.tree.set(hca, "rate", "200 Gb/sec (2X NDR)")
    found = watch.look(RATE_SECONDS)
    (fact,) = found.facts
    assert (fact.kind, fact.fields["rate_before"]) == ("link_rate_changed", "400 Gb/sec (4X NDR)")
    assert found.value("instep_rdma_port_lanes") == 2
    assert watch.look().facts == []


def test_the_rate_of_a_port_without_link_means_nothing(watch):
    hca = watch.tree.hca()
    watch.look()
    watch.tree.link_goes_down(hca)
    watch.tree.set(hca, "rate", "2.5 Gb/sec (1X SDR)")
    assert [fact.kind for fact in watch.looks(3)] == ["link_down"]
    watch.tree.link_comes_up(hca)
    watch.tree.set(hca, "rate", "400 Gb/sec (4X NDR)")
    assert [fact.kind for fact in watch.looks(3)] == ["link_up"]


def test_an_adapter_that_vanishes_and_returns_is_told(watch):
    watch.tree.hca("mlx5_0")
    watch.tree.hca("mlx5_1", "0000:29:00.0")
    assert watch.look().facts == []
    watch.tree.take_away("mlx5_1")
    found = watch.look()
    assert [(fact.kind, fact.fields["device"]) for fact in found.facts] == [("rdma_device_gone", "mlx5_1")]
    assert found.value("instep_rdma_device_present", device="mlx5_1") == 0
    assert found.value("instep_rdma_device_present", device="mlx5_0") == 1
    assert not found.has("node_infiniband_state_id", device="mlx5_1"), "nothing old is taken for new"
    assert watch.looks(8) == []
    hca = watch.tree.hca("mlx5_1", "0000:29:00.0")
    watch.tree.set(hca, "state", "2: INIT")
    found = watch.look()
    back, down = found.facts
    assert (back.kind, float(back.fields["seconds"])) == ("rdma_device_back", 9.0)
    assert down.kind == "link_down"
    assert found.value("node_infiniband_state_id", device="mlx5_1") == 2


def test_the_last_adapter_that_vanishes_is_no_absence(watch):
    watch.tree.hca()
    watch.look()
    watch.tree.take_away("mlx5_0")
    found = watch.look()
    assert found.kinds() == ["rdma_device_gone"]
    assert found.value("instep_rdma_device_present") == 0
    watch.tree.remove("sys/class/infiniband")
    assert watch.look().value("instep_rdma_device_present") == 0


def test_a_driver_that_was_reloaded_is_told_and_its_counters_begin_anew(watch):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/link_downed", 3)
    watch.looks(11)
    watch.tree.take_away("mlx5_0")
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/link_downed", 5)
    assert [fact.kind for fact in watch.looks(25)] == ["rdma_device_reloaded"]
    watch.tree.set(hca, "counters/link_downed", 6)
    assert [fact.kind for fact in watch.looks(15)] == ["link_flap"]


def test_a_reload_explains_a_loss_that_the_counter_had_just_before(watch):
    hca = watch.tree.hca()
    watch.look()
    watch.looks(9)
    watch.tree.count(hca, "link_downed")
    assert watch.looks(1) == []
    watch.tree.take_away("mlx5_0")
    watch.tree.hca()
    assert [fact.kind for fact in watch.looks(15)] == ["rdma_device_reloaded"]


def test_an_adapter_that_appears_later_is_told(watch):
    watch.tree.hca()
    watch.look()
    watch.tree.hca("mlx5_1", "0000:29:00.0")
    assert watch.looks(1) == []
    assert watch.look(LISTING_SECONDS).kinds() == ["rdma_device_added"]


def roles(found):
    return {labels["device"]: labels["role"] for labels in found.labels("instep_rdma_port_info")}


def never_up(tree, hca, phys_state="2: Polling"):
    tree.link_goes_down(hca, counted=False)
    tree.set(hca, "phys_state", phys_state)
    tree.set(hca, "counters/port_rcv_packets", 0)


def test_the_role_of_a_port_comes_from_evidence(watch):
    tree = watch.tree
    used = tree.hca("a")
    tree.interface("tun0", device=used.parents[1])
    tree.interface("net-m", device=tree.hca("m", "0000:20:00.0").parents[1])
    tree.virtual_interface("bond7", lower=("net-m",))
    tree.virtual_interface("bond7.12", lower=("bond7",))
    tree.default_route("bond7.12")
    tree.make_virtual_function(tree.hca("v", "0000:18:00.4").parents[1], used.parents[1])
    never_up(tree, tree.hca("idle", "0000:21:00.0"))
    never_up(tree, tree.hca("off", "0000:22:00.0"), "3: Disabled")
    broken = tree.hca("broken", "0000:23:00.0")
    tree.link_goes_down(broken)
    went_silent = tree.hca("went-silent", "0000:24:00.0")
    tree.link_goes_down(went_silent, counted=False)
    assert roles(watch.look()) == {
        "a": "fabric",
        "m": "management",
        "v": "virtual_function",
        "idle": "unprovisioned",
        "off": "unprovisioned",
        "broken": "fabric",
        "went-silent": "fabric",
    }


def test_a_carrier_that_came_once_shows_that_a_port_is_used(watch):
    hca = watch.tree.hca()
    never_up(watch.tree, hca)
    interface = watch.tree.interface("roce0", device=hca.parents[1], carrier_up_count=0)
    assert roles(watch.look()) == {"mlx5_0": "unprovisioned"}
    write(interface / "carrier_up_count", 1)
    assert roles(watch.look(after_seconds=61)) == {"mlx5_0": "fabric"}


def test_a_port_that_nothing_is_known_of_is_not_called_idle(watch):
    hca = watch.tree.hca()
    never_up(watch.tree, hca)
    watch.tree.set(hca, "counters/link_downed", "N/A (no PMA)")
    watch.tree.set(hca, "counters/port_rcv_packets", "N/A (no PMA)")
    assert roles(watch.look()) == {"mlx5_0": "unknown"}


def test_an_idle_port_that_is_plugged_in_becomes_a_port_of_the_fabric_for_good(watch):
    hca = watch.tree.hca()
    never_up(watch.tree, hca)
    assert roles(watch.look()) == {"mlx5_0": "unprovisioned"}
    watch.tree.link_comes_up(hca)
    found = watch.look()
    assert roles(found) == {"mlx5_0": "fabric"}
    assert found.kinds() == ["link_up"]
    never_up(watch.tree, hca)
    (down,) = watch.look(after_seconds=61).facts
    assert (down.kind, down.fields["role"]) == ("link_down", "fabric")


def test_the_interface_of_a_port_is_found(watch):
    hca = watch.tree.hca(ports=(1, 2))
    watch.tree.interface("one", device=hca.parents[1], dev_port=0)
    watch.tree.interface("two", device=hca.parents[1], dev_port=1, index=3)
    by_port = {one["port"]: one["netdev"] for one in watch.look().labels("instep_rdma_port_info")}
    assert by_port == {"1": "one", "2": "two"}
    write(hca / "ports/1/gid_attrs/ndevs/0", "bond0")
    by_port = {one["port"]: one["netdev"] for one in watch.look(after_seconds=61).labels("instep_rdma_port_info")}
    assert by_port == {"1": "bond0", "2": "two"}


def test_a_hostile_tree_neither_hangs_nor_kills(watch):
    hca = watch.tree.hca()
    watch.tree.hca("mlx5_1", "0000:29:00.0")
    for file in ("state", "counters/link_downed"):
        (hca / "ports/1" / file).unlink()
        os.mkfifo(hca / "ports/1" / file)
    (hca / "ports/1/phys_state").unlink()
    (hca / "ports/1/phys_state").symlink_to("phys_state")
    write(hca / "ports/1/rate", "400 Gb/sec " * 1_000_000)
    write(hca / "ports/not a number/state", "4: ACTIVE")
    folder = watch.tree.root / "sys/class/infiniband"
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("../nothing")
    (folder / "dots").symlink_to(".")
    write(folder / "a file", "x")
    os.mkfifo(folder / "fifo")
    found = watch.look()
    assert found.facts == []
    assert found.value("node_infiniband_state_id", device="mlx5_1") == 4
    assert not found.has("node_infiniband_state_id", device="mlx5_0")


def test_files_are_opened_once(watch):
    watch.tree.hca()
    watch.looks(3)
    before = len(os.listdir("/proc/self/fd"))
    watch.looks(30)
    assert len(os.listdir("/proc/self/fd")) == before
    watch.tree.take_away("mlx5_0")
    watch.look()
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_lost_link_reaches_the_server_as_an_event(tmp_path):
    """Through the real runner and child process, with the node's real clocks."""
    tree, frames, source = Tree(tmp_path), [], RdmaPorts()
    hca = tree.hca()
    source.interval_seconds = 0.02
    runner = Runner(Node("node-a", tmp_path), [source], lambda frame, _: frames.append(frame), interval_seconds=0.02)
    deadline_seconds = time.monotonic() + 20

    def wait_for(found):
        while not found() and time.monotonic() < deadline_seconds:
            runner.wait(min(runner.run_due(), 0.5))
        assert found()

    def kinds():
        return [event.kind for frame in frames for event in frame.events or ()]

    try:
        wait_for(lambda: any(sample.name == "node_infiniband_state_id" for sample in runner.snapshot.samples))
        assert kinds() == [], "a healthy port is no event"
        tree.link_goes_down(hca)
        wait_for(lambda: "link_down" in kinds())
        tree.link_comes_up(hca)
        wait_for(lambda: "link_up" in kinds())
    finally:
        runner.close()
    assert kinds() == ["link_down", "link_up"]
