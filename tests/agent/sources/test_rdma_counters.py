"""RDMA counters: every one of them, those that count no more, those that begin anew, and files that give no number."""

import errno
import gc
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.counters import CounterMemory, NoNumber, number
from instep_agent.held_files import HeldFiles
from instep_agent.network.rdma import SENTENCES
from instep_agent.network.rdma_counter_table import COUNTERS
from instep_agent.sources.rdma_counters import RdmaCounters
from instep_agent.sources.rdma_ports import RdmaPorts
from made_nodes import Clock, node_at
from sysfs_trees import Tree, look

REAL = Path(__file__).parents[3] / "../shared/data/infiniband/sys-class-infiniband-h100.0"


class Kernel:
    """Reads files as the kernel does, but for those that it is told to fail at."""

    def __init__(self):
        self.errors = {}
        self.asked = []

    def pread(self, descriptor, count, offset):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.asked.append(path)
        for ending, error in self.errors.items():
            if path.endswith(ending):
                raise OSError(error, os.strerror(error))
        return os.pread(descriptor, count, offset)

    def count(self, ending):
        return sum(path.endswith(ending) for path in self.asked)


class Watch:
    """A source over a tree, asked every ten seconds."""

    def __init__(self, root):
        self.tree, self.clock, self.kernel = Tree(root), Clock(), Kernel()
        self.source = RdmaCounters(HeldFiles(pread=self.kernel.pread))
        self.node = node_at(root, self.clock)

    def look(self, after_seconds=10.0):
        self.clock.seconds += after_seconds
        return look(self.source, self.node)


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path)


def test_gives_every_counter_under_the_name_that_dashboards_know(watch):
    hca = watch.tree.hca()
    watch.tree.set(hca, "hw_counters/of_another_driver", 5)
    found = watch.look()
    assert found.facts == []
    port = {"device": "mlx5_0", "port": "1"}
    assert found.value("node_infiniband_port_data_received_bytes_total", **port) == 4000
    assert found.value("node_infiniband_port_transmit_wait_total", **port) == 12
    assert found.value("node_infiniband_np_cnp_packets_sent_total", **port) == 7
    assert found.value("instep_rdma_count_total", counter="of_another_driver", **port) == 5
    assert found.value("instep_rdma_count_lifespan_seconds", **port) == 0.012
    assert found.value("instep_rdma_counters_blind", **port) == 0
    assert found.value("instep_rdma_counters_unreadable", **port) == 0
    assert not found.has("instep_rdma_count_blind")


NODE_EXPORTER = {
    "counters": {
        "link_downed": "link_downed",
        "link_error_recovery": "link_error_recovery",
        "symbol_error": "symbol_error",
        "local_link_integrity_errors": "local_link_integrity_errors",
        "excessive_buffer_overrun_errors": "excessive_buffer_overrun_errors",
        "port_rcv_errors": "port_errors_received",
        "port_rcv_remote_physical_errors": "port_receive_remote_physical_errors",
        "port_rcv_switch_relay_errors": "port_receive_switch_relay_errors",
        "port_rcv_constraint_errors": "port_constraint_errors_received",
        "port_xmit_constraint_errors": "port_constraint_errors_transmitted",
        "port_rcv_discards": "port_discards_received",
        "port_xmit_discards": "port_discards_transmitted",
        "port_xmit_wait": "port_transmit_wait",
        "VL15_dropped": "vl15_dropped",
        "port_rcv_data": "port_data_received_bytes",
        "port_xmit_data": "port_data_transmitted_bytes",
        "port_rcv_packets": "port_packets_received",
        "port_xmit_packets": "port_packets_transmitted",
        "unicast_rcv_packets": "unicast_packets_received",
        "unicast_xmit_packets": "unicast_packets_transmitted",
        "multicast_rcv_packets": "multicast_packets_received",
        "multicast_xmit_packets": "multicast_packets_transmitted",
    },
    "hw_counters": {
        "duplicate_request": "duplicate_requests_packets",
        "implied_nak_seq_err": "implied_nak_seq_errors",
        "local_ack_timeout_err": "local_ack_timeout_errors",
        "np_cnp_sent": "np_cnp_packets_sent",
        "np_ecn_marked_roce_packets": "np_ecn_marked_roce_packets_received",
        "out_of_buffer": "out_of_buffer_drops",
        "out_of_sequence": "out_of_sequence_packets_received",
        "packet_seq_err": "packet_sequence_errors",
        "req_cqe_error": "req_cqes_errors",
        "req_cqe_flush_error": "req_cqes_flush_errors",
        "req_remote_access_errors": "req_remote_access_errors",
        "req_remote_invalid_request": "req_remote_invalid_request_errors",
        "resp_cqe_error": "resp_cqes_errors",
        "resp_cqe_flush_error": "resp_cqes_flush_errors",
        "resp_local_length_error": "resp_local_length_errors",
        "resp_remote_access_errors": "resp_remote_access_errors",
        "rnr_nak_retry_err": "rnr_nak_retry_packets_received",
        "roce_adp_retrans": "roce_adp_retransmits",
        "roce_adp_retrans_to": "roce_adp_retransmits_timeout",
        "roce_slow_restart": "roce_slow_restart_used",
        "roce_slow_restart_cnps": "roce_slow_restart_cnps",
        "roce_slow_restart_trans": "roce_slow_restart",
        "rp_cnp_handled": "rp_cnp_packets_handled",
        "rp_cnp_ignored": "rp_cnp_ignored_packets_received",
        "rx_atomic_requests": "rx_atomic_requests",
        "rx_dct_connect": "rx_dct_connect_requests",
        "rx_read_requests": "rx_read_requests",
        "rx_write_requests": "rx_write_requests",
        "rx_icrc_encapsulated": "rx_icrc_encapsulated_errors",
    },
}
"""File → the name that node_exporter's collector `infiniband` gives it, written down here a second time."""
STOPS_AT = {
    "link_downed": 255,
    "link_error_recovery": 255,
    "symbol_error": 65_535,
    "local_link_integrity_errors": 15,
    "excessive_buffer_overrun_errors": 15,
    "port_rcv_errors": 65_535,
    "port_rcv_remote_physical_errors": 65_535,
    "port_rcv_switch_relay_errors": 65_535,
    "port_rcv_constraint_errors": 255,
    "port_xmit_constraint_errors": 255,
    "port_xmit_discards": 65_535,
    "port_xmit_wait": 2**32 - 1,
    "VL15_dropped": 65_535,
    "port_rcv_data": 2**32 - 1,
    "port_xmit_data": 2**32 - 1,
    "port_rcv_packets": 2**32 - 1,
    "port_xmit_packets": 2**32 - 1,
}
"""File → the highest number that the InfiniBand specification's port counters hold; the others are 64 bits wide."""


def test_each_file_has_the_name_of_node_exporter_and_its_own_value(watch):
    hca = watch.tree.hca()
    named = [(folder, file, name) for folder, files in NODE_EXPORTER.items() for file, name in files.items()]
    for value, (folder, file, _) in enumerate(named, start=100):
        watch.tree.set(hca, f"{folder}/{file}", value)
    found = watch.look()
    for value, (_, file, name) in enumerate(named, start=100):
        scale = 4 if file in ("port_rcv_data", "port_xmit_data") else 1
        assert found.value(f"node_infiniband_{name}_total", device="mlx5_0") == scale * value, file
    assert {(one.folder, one.file) for one in COUNTERS} == {(folder, file) for folder, file, _ in named}


def test_each_counter_stops_where_the_specification_says():
    assert {one.file: one.maximum for one in COUNTERS if one.maximum} == STOPS_AT


def test_virtual_functions_are_not_read(watch):
    hca = watch.tree.hca()
    part = watch.tree.hca("mlx5_9", "0000:18:00.4")
    watch.tree.make_virtual_function(part.parents[1], hca.parents[1])
    found = watch.look()
    assert found.has("node_infiniband_link_downed_total", device="mlx5_0")
    assert not found.has("node_infiniband_link_downed_total", device="mlx5_9")
    assert watch.kernel.count("mlx5_9/ports/1/counters/link_downed") == 0


SATURATING = [one for one in COUNTERS if one.bits]


@pytest.mark.parametrize("counter", SATURATING, ids=[one.file for one in SATURATING])
def test_a_counter_at_its_highest_number_is_blind(watch, counter):
    hca = watch.tree.hca()
    file = f"{counter.folder}/{counter.file}"
    watch.tree.set(hca, file, counter.maximum - 1)
    assert watch.look().facts == [], "one less is a number like any other"
    watch.tree.set(hca, file, counter.maximum)
    found = watch.look()
    (fact,) = found.facts
    assert (fact.kind, fact.fields["counter"]) == ("rdma_counter_blind", counter.file)
    assert fact.fields["maximum"] == str(2**counter.bits - 1)
    assert found.value("instep_rdma_count_blind", counter=counter.file) == 1
    assert found.value("instep_rdma_counters_blind") == 1
    assert found.value(counter.metric.name) == counter.maximum * counter.scale
    again = watch.look()
    assert again.facts == [], "it is said once"
    assert again.value("instep_rdma_count_blind", counter=counter.file) == 1


def test_a_blind_counter_that_is_cleared_sees_again(watch):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/link_downed", 255)
    (first,) = watch.look().facts
    watch.tree.set(hca, "counters/link_downed", 0)
    found = watch.look()
    assert [(fact.kind, fact.fields["reason"]) for fact in found.facts] == [("rdma_counters_reset", "cleared")]
    assert found.facts[0].fields["counters"] == "link_downed"
    assert found.value("instep_rdma_count_blind", counter="link_downed") == 0
    assert found.value("instep_rdma_count_resets_total") == 1
    watch.tree.set(hca, "counters/link_downed", 255)
    (second,) = watch.look().facts
    assert first.identity != second.identity, "it happened twice"


def test_an_agent_that_starts_again_tells_a_blind_counter_under_the_same_identity(watch):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/link_downed", 255)
    (first,) = watch.look().facts
    (second,) = look(RdmaCounters(), watch.node).facts
    assert first.identity == second.identity != ""


def test_a_driver_that_counts_further_than_the_specification_is_not_blind(watch):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/link_downed", 256)
    assert watch.look().facts == []
    watch.tree.set(hca, "counters/link_downed", 300)
    found = watch.look()
    assert found.facts == []
    assert found.value("instep_rdma_counters_blind") == 0
    watch.tree.set(hca, "counters/link_downed", 255)
    assert watch.look().kinds() == ["rdma_counters_reset"], "it is known to go further"


def test_a_device_that_began_anew_with_higher_counters_is_a_new_baseline(watch):
    watch.tree.hca()
    watch.look()
    watch.tree.take_away("mlx5_0")
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/port_rcv_packets", 10**9)
    found = watch.look()
    assert [(fact.kind, fact.fields["reason"]) for fact in found.facts] == [("rdma_counters_reset", "reload")]
    assert found.value("node_infiniband_port_packets_received_total") == 10**9
    assert watch.look().facts == []


def test_an_adapter_that_returns_is_a_new_baseline(watch):
    watch.tree.hca()
    watch.look()
    watch.tree.take_away("mlx5_0")
    found = watch.look()
    assert (found.facts, found.samples) == ([], {}), "nothing old is taken for new"
    watch.tree.hca()
    found = watch.look()
    assert [fact.fields["reason"] for fact in found.facts] == ["reload"]
    assert found.has("node_infiniband_link_downed_total")


def test_an_adapter_that_returns_in_the_same_folder_is_a_new_baseline(watch):
    hca = watch.tree.hca()
    watch.look()
    link = watch.tree.root / "sys/class/infiniband/mlx5_0"
    target = link.readlink()
    link.unlink()
    watch.look()
    link.symlink_to(target)
    watch.tree.set(hca, "counters/symbol_error", 40)
    assert [fact.fields["reason"] for fact in watch.look().facts] == ["reload"]


def test_another_boot_is_a_new_baseline(watch, tmp_path):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/symbol_error", 9)
    watch.look()
    other = Tree(tmp_path / "other boot")
    other.set_boot("boot-2")
    watch.node = node_at(watch.tree.root, watch.clock, proc_root=other.root / "proc")
    watch.tree.set(hca, "counters/symbol_error", 2)
    (fact,) = watch.look().facts
    assert (fact.kind, fact.fields["reason"]) == ("rdma_counters_reset", "reboot")


def errors(found):
    return {
        one["error"]: found.value("instep_rdma_count_read_errors_total", **one)
        for one in found.labels("instep_rdma_count_read_errors_total")
    }


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("N/A (no PMA)", "not_available"),
        ("", "torn"),
        ("12x", "torn"),
        ("-1", "torn"),
        ("1 2", "torn"),
        ("\u0664", "torn"),
        ("9" * 5000, "torn"),
        (2**64 - 1, "blank"),
    ],
)
def test_a_file_without_a_number_loses_no_other_one(watch, text, what):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/symbol_error", text)
    found = watch.look()
    assert not found.has("node_infiniband_symbol_error_total")
    assert found.value("node_infiniband_link_downed_total") == 0
    assert found.value("instep_rdma_counters_unreadable") == 1
    assert errors(found) == {what: 1}
    assert found.facts == []


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES])
def test_what_a_device_does_not_have_is_asked_for_rarely(watch, error):
    watch.tree.hca()
    watch.kernel.errors["/symbol_error"] = error
    for _ in range(5):
        found = watch.look()
    assert watch.kernel.count("/symbol_error") == 1
    assert errors(found) == {errno.errorcode[error].lower(): 1}
    assert found.value("instep_rdma_counters_unreadable") == 1
    watch.kernel.errors.clear()
    found = watch.look(after_seconds=600)
    assert found.value("node_infiniband_symbol_error_total") == 0
    assert found.value("instep_rdma_counters_unreadable") == 0


def test_an_input_error_is_counted_at_every_reading(watch):
    watch.tree.hca()
    watch.kernel.errors["/symbol_error"] = errno.EIO
    for _ in range(3):
        found = watch.look()
    assert errors(found) == {"eio": 3}
    assert found.value("node_infiniband_link_downed_total") == 0
    watch.kernel.errors.clear()
    assert watch.look().value("node_infiniband_symbol_error_total") == 0


def test_a_descriptor_of_a_device_that_is_gone_is_opened_again(watch):
    """What the kernel says when the device behind an open file was removed; by then another one may have its name."""
    watch.tree.hca()
    watch.look()
    failing = {"/symbol_error": 1}

    def pread(descriptor, count, offset):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        for ending, left in failing.items():
            if path.endswith(ending) and left:
                failing[ending] = 0
                raise OSError(errno.ENODEV, "No such device")
        return os.pread(descriptor, count, offset)

    watch.source._files._pread = pread
    found = watch.look()
    assert failing == {"/symbol_error": 0}
    assert found.has("node_infiniband_symbol_error_total")
    assert errors(found) == {}


def test_a_reading_that_failed_once_is_no_reset(watch):
    hca = watch.tree.hca()
    watch.tree.set(hca, "counters/symbol_error", 9)
    watch.look()
    watch.tree.set(hca, "counters/symbol_error", "")
    watch.look()
    watch.tree.set(hca, "counters/symbol_error", 11)
    assert watch.look().facts == []


def test_a_hostile_tree_neither_hangs_nor_kills(watch):
    hca = watch.tree.hca()
    folder = hca / "ports/1/counters"
    os.mkfifo(folder / "a_fifo")
    (folder / "a_loop").symlink_to("a_loop")
    (folder / "a_link").symlink_to("link_downed")
    (folder / "a_device").symlink_to("/dev/zero")
    (folder / "a_folder").mkdir()
    (folder / ("x" * 200)).write_text("1\n")
    for number_ in range(400):
        (folder / f"many_{number_:03}").write_text("1\n")
    with (folder / "a_huge_file").open("wb") as file:
        file.truncate(1 << 40)
    found = watch.look()
    assert found.value("node_infiniband_link_downed_total") == 0
    assert len(found.labels("instep_rdma_count_total")) < 300
    counted = {labels["counter"] for labels in found.labels("instep_rdma_count_total")}
    assert not counted & {"a_fifo", "a_loop", "a_link", "a_device", "a_folder", "a_huge_file", "x" * 200}
    assert errors(found)[errno.errorcode[errno.ENOTSUP].lower()] == 2, "the FIFO and the folder are refused, not read"


def test_counters_beyond_the_descriptors_are_read_all_the_same(tmp_path):
    tree = Tree(tmp_path)
    tree.hca()
    source = RdmaCounters(HeldFiles(3))
    before = len(os.listdir("/proc/self/fd"))
    found = look(source, node_at(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before + 3
    assert found.value("instep_rdma_counters_unreadable") == 0
    del source
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before, "who lets go of a source lets go of its files"


def test_descriptors_are_held_and_let_go_with_their_adapter(watch):
    watch.tree.hca()
    before = len(os.listdir("/proc/self/fd"))
    watch.look()
    held = len(os.listdir("/proc/self/fd"))
    assert held > before
    for _ in range(12):
        watch.look()
    assert len(os.listdir("/proc/self/fd")) == held
    watch.tree.take_away("mlx5_0")
    watch.look()
    assert len(os.listdir("/proc/self/fd")) == before


@given(st.lists(st.integers(0, 300), max_size=20))
def test_rises_add_up_to_what_was_counted(values):
    memory = CounterMemory()
    steps = [memory.observe("x", value) for value in values]
    total = sum(step.rise for step in steps)
    falls = [(before, after) for before, after in pairwise(values) if after < before]
    expected = (values[-1] - values[0] + sum(before for before, _ in falls)) if values else 0
    assert total == expected
    assert sum(step.is_reset for step in steps) == len(falls)
    assert all(step.rise >= 0 for step in steps)


@given(st.text(max_size=30))
def test_whatever_stands_in_a_file_is_a_number_or_none(text):
    try:
        value = number(text)
    except NoNumber:
        return
    assert 0 <= value < 2**64 - 1
    assert int(text) == value


@pytest.fixture
def real(tmp_path):
    """The folder of adapters of a node with 8 H100, as it was recorded."""
    if not REAL.is_dir():
        pytest.skip("Needs the recorded /sys/class/infiniband of an H100 node in ../shared/data/infiniband.")
    (tmp_path / "sys/class").mkdir(parents=True)
    (tmp_path / "sys/class/infiniband").symlink_to(REAL.resolve())
    return tmp_path


def test_a_recorded_node_shows_what_it_has_and_what_it_cannot_tell(real):
    node = node_at(real)
    found = look(RdmaCounters(), node)
    assert len({labels["device"] for labels in found.labels("node_infiniband_link_downed_total")}) == 9
    assert found.value("node_infiniband_port_data_received_bytes_total", device="mlx5_0") == 230539874932483 * 4
    assert found.value("instep_rdma_counters_unreadable", device="mlx5_0") == 0
    assert not found.has("instep_rdma_count_total"), "every counter of mlx5 has its name"
    blind = {(fact.fields["device"], fact.fields["counter"]) for fact in found.facts}
    assert ("mlx5_1", "link_downed") in blind
    assert ("mlx5_0", "link_downed") not in blind
    overruns = {device for device, counter in blind if counter == "excessive_buffer_overrun_errors"}
    assert len(overruns) == 9
    assert len(blind) == 10
    ports = look(RdmaPorts(), node)
    assert ports.value("node_infiniband_rate_bytes_per_second", device="mlx5_bond_0") == 25e9
    assert {labels["role"] for labels in ports.labels("instep_rdma_port_info")} == {"fabric"}


def test_every_event_of_these_sources_is_on_the_page():
    root = Path(__file__).parents[3]
    page = (root / "docs/reference/network-sources.md").read_text(encoding="utf-8")
    modules = ("network/link_watch.py", "sources/rdma_ports.py", "sources/rdma_counters.py", "sources/pcie.py")
    text = "".join((root / "agent/instep_agent" / name).read_text() for name in (*modules, "sources/ethernet.py"))
    kinds = set(re.findall(r'(?:Fact\(|_fact\(|(?:down|up|flap) = )"([a-z]+_[a-z_]+)"', text))
    kinds |= {f"rdma_device_{kind}" for kind in SENTENCES}
    assert len(kinds) == 15
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in page] == []
