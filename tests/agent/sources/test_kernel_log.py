"""The kernel log as a growing file, as a FIFO in place of the device, and as the real device."""

import contextlib
import json
import os
import re
import secrets
import select
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.errors import Absent, SourceFailed
from instep_agent.lines.folding import SENT_MAX, VARIANTS_MAX, WINDOW_SECONDS, Fold
from instep_agent.lines.kernel import is_interesting
from instep_agent.node import Fact, Node
from instep_agent.running import file_watch
from instep_agent.running.runner import Runner
from instep_agent.sources import kernel_log
from instep_agent.sources.kernel_log import KernelLog
from made_nodes import Clock, node_at

RECORDED_LINES = Path(__file__).parents[3] / "../shared/data/kernel-log/lines.jsonl"

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, name=python, GPU has fallen off the bus."


class Log:
    """A kernel log beneath a root, its reader, and its clock."""

    def __init__(self, root):
        self.clock = Clock(10_000.0)
        self.node = node_at(root, self.clock)
        self.path = root / "dev/kmsg"
        self.path.parent.mkdir()
        self.source = KernelLog()

    def write(self, *lines):
        with self.path.open("a") as file:
            file.writelines(line + "\n" for line in lines)

    def collect(self):
        """Give the facts, and keep what is counted in `totals`."""
        readings = list(self.source.collect(self.node))
        self.totals = {each.name: each.value for each in readings if not isinstance(each, Fact)}
        return [each for each in readings if isinstance(each, Fact)]

    def collect_all(self, lines):
        """Give the facts of so many turns as it takes to read `lines` lines."""
        facts = self.collect()
        while self.totals["instep_kernel_log_lines_total"] < lines:
            facts += self.collect()
        return facts


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path)
    yield log
    log.source.close()


@pytest.fixture
def running(log):
    """A log whose reader has begun."""
    log.path.touch()
    assert log.collect() == []
    return log


def record(sequence, seconds, text, priority=4):
    return f"{priority},{sequence},{int(seconds * 1e6)},-;{text}"


def test_is_absent_without_a_log(log):
    with pytest.raises(Absent, match="dev/kmsg does not exist"):
        log.collect()


def test_a_folder_in_its_place_is_a_failure_not_an_absence(log):
    log.path.mkdir()
    with pytest.raises(SourceFailed):
        log.collect()


def test_reports_a_record_as_it_stands_with_its_own_time(running):
    running.clock.seconds += 2
    running.write(record(7, 10_001.5, XID, priority=28))
    (fact,) = running.collect()
    assert (fact.kind, fact.text, fact.is_drill) == ("kernel_line", XID, False)
    assert fact.monotonic_ns == 10_001_500_000_000
    assert fact.realtime_ns == running.clock.realtime_ns() - 500_000_000
    assert fact.fields == {"priority": "4", "sequence": "7", "pid": "4242"}


@pytest.mark.parametrize(
    "text",
    [
        XID,
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
        "mlx5_core 0000:12:00.0: mlx5_cmd_out_err:803: ACCESS_REG(0x805) op_mod(0x1) failed",
        "pcieport 0000:3a:00.0: AER: Corrected error received: 0000:3b:00.0",
        "Out of memory: Killed process 4242 (python) total-vm:1kB",
        "INFO: task python:4242 blocked for more than 120 seconds.",
        "watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:4242]",
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 7",
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "NVRM: The NVIDIA GPU 0000:3b:00.0",
        "NVRM: (PCI ID: 10de:2330) installed in this system has",
        "NVRM: fallen off the bus and is not responding to commands.",
        "nvidia-nvlink: link 3 training failed",
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python,pid=4242,uid=0",
        "python[4242]: segfault at 10 ip 00007f12 sp 00007ffc error 4 in libnccl.so.2.21.5[7f1200000000+ff000]",
        "pt_main_thread[4242]: segfault at 0 ip 00007f12 sp 00007ffc error 4 in libcuda.so.550.54[7f12+ff]",
        "blk_update_request: I/O error, dev nvme0n1, sector 5 op 0x0:(READ)",
        "nvme nvme0: I/O 23 QID 4 timeout, aborting",
        "EXT4-fs error (device sda1): ext4_lookup:1603: inode #131: comm python: iget: checksum invalid",
        "EXT4-fs (sda1): Remounting filesystem read-only",
        'XFS (nvme1n1): metadata I/O error in "xfs_buf_ioend" at daddr 0x1 len 1 error 5',
        "XFS (nvme1n1): Filesystem has been shut down due to log error (0x2).",
        "mce: [Hardware Error]: Machine check events logged",
        "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0",
        "mlx5_core 0000:12:00.0 eth2: Link down",
        "bnxt_en 0000:81:00.0 eno1: NIC Link is Down",
        "e1000e: eth0 NIC Link is Up 1000 Mbps Full Duplex",
        "NETDEV WATCHDOG: eth0 (ixgbe): transmit queue 3 timed out",
        "pcieport 0000:3a:00.0: DPC: containment event, status:0x1f01 source:0x0000 error",
        "nfs: server storage1 not responding, still trying",
        "CPU3: Core temperature above threshold, cpu clock throttled (total events = 5)",
    ],
)
def test_lets_lines_pass_that_may_matter(running, text):
    running.write(text)
    assert [fact.text for fact in running.collect()] == [text]


@pytest.mark.parametrize(
    "text",
    [
        "usb 1-1: new device",
        "EXT4-fs (sda1): mounted filesystem with ordered data mode",
        "XFS (nvme1n1): Mounting V5 Filesystem",
        "audit: type=1400",
        "Taxidermy",
        "tool[12]: segfault at 0 ip 0 sp 0 error 4 in tool[400000+1000]",
        " SUBSYSTEM=nvidia",
    ],
)
def test_holds_other_lines_back(running, text):
    running.write(text, record(1, 10_000, text))
    assert running.collect() == []


def test_a_line_that_is_not_finished_waits_for_its_end(running):
    with running.path.open("a") as file:
        file.write(XID[:20])
    assert running.collect() == []
    running.write(XID[20:])
    assert [fact.text for fact in running.collect()] == [XID]


def test_a_drill_says_so(running):
    running.write(XID + " [instep-drill]")
    assert running.collect()[0].is_drill


def test_at_its_start_reports_the_last_five_minutes_only(log):
    log.write(record(1, 9_600, XID + "old"), record(2, 9_800, XID + "recent"), XID + "of unknown time")
    assert [fact.text for fact in log.collect()] == [XID + "recent"]


def test_a_log_that_appears_later_is_new_from_its_first_line(log):
    with pytest.raises(Absent):
        log.collect()
    log.write(XID)
    assert [fact.text for fact in log.collect()] == [XID]


def test_a_gap_in_the_numbers_is_a_fact(running):
    running.write(record(1, 10_000, "harmless"), record(5, 10_000, "harmless"), record(6, 10_000, "harmless"))
    (fact,) = running.collect()
    assert (fact.kind, fact.fields) == ("kernel_lines_lost", {"count": "3"})
    assert running.totals == {"instep_kernel_log_lines_total": 3, "instep_kernel_log_lines_lost_total": 3}


def test_numbers_that_begin_again_are_no_gap(running):
    running.write(record(90, 10_000, "harmless"), record(1, 10_000, "harmless"))
    assert running.collect() == []


def test_further_gaps_are_added_up_and_said_a_minute_later(running):
    running.write(*(record(number, 10_000, "harmless") for number in (1, 3, 10, 20)))
    assert [fact.fields["count"] for fact in running.collect()] == ["1"]
    running.clock.seconds += WINDOW_SECONDS
    assert [fact.fields["count"] for fact in running.collect()] == ["15"]
    running.clock.seconds += WINDOW_SECONDS
    assert running.collect() == []


def test_equal_lines_are_counted_and_told_at_the_end_of_the_window(running):
    running.write(*[record(n, 10_000, XID) for n in range(1, 6)])
    assert len(running.collect()) == 1
    running.clock.seconds += WINDOW_SECONDS - 1
    assert running.collect() == []
    running.clock.seconds += 1
    (fact,) = running.collect()
    assert fact.kind == "kernel_lines_repeated"
    assert fact.fields == {"count": "4", "further": "0", "1": f"4 times: {XID}"}
    running.clock.seconds += 2 * WINDOW_SECONDS
    assert running.collect() == []


def test_the_same_line_after_the_window_is_new(running):
    running.write(XID)
    assert len(running.collect()) == 1
    running.clock.seconds += WINDOW_SECONDS
    assert running.collect() == []
    running.write(XID)
    assert [fact.text for fact in running.collect()] == [XID]


def test_what_was_counted_is_told_when_the_agent_stops(running):
    running.write(XID, XID, record(1, 1, "x"), record(3, 1, "x"), record(5, 1, "x"))
    running.collect()
    told = list(running.source.last_words(running.node))
    assert [(fact.kind, fact.fields["count"]) for fact in told] == [
        ("kernel_lines_repeated", "1"),
        ("kernel_lines_lost", "1"),
    ]
    assert list(running.source.last_words(running.node)) == []


def fault(code, rest, pci="0000:3b:00"):
    return f"NVRM: Xid (PCI:{pci}): {code}, {rest}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (fault(31, "pid=1, name=a, Fault at 0x7f01"), fault(31, "pid=2, name=b, Fault at 0x7f02")),
        (fault(95, "Uncontained, address 1234567"), fault(95, "Uncontained, address 7654321")),
        (fault(145, "RLW Link 12 (0x040988e2 0x1)"), fault(145, "RLW Link 12 (0x040988e2 0x2)")),
    ],
)
def test_a_numbered_fault_is_told_once_whatever_its_process_and_addresses(running, first, second):
    running.write(first, second)
    assert [fact.text for fact in running.collect()] == [first]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (fault(31, "Fault"), fault(13, "Fault")),
        (fault(31, "Fault"), fault(31, "Fault", pci="0000:86:00")),
        (fault(13, "Exception on (GPC 9, TPC 5, SM 0)"), fault(13, "Exception on (GPC 9, TPC 4, SM 0)")),
        (fault(74, "Link 3 error 0x1"), fault(74, "Link 4 error 0x1")),
        (fault(149, "NETIR Link 01 (0x021425c6 0x0)"), fault(149, "NETIR Link 01 (0x02500011 0x0)")),
        ("Out of memory: Killed process 7 (python)", "Out of memory: Killed process 8 (python)"),
    ],
)
def test_lines_that_mean_different_things_are_both_sent(running, first, second):
    running.write(first, second)
    assert [fact.text for fact in running.collect()] == [first, second]


def test_processes_of_lines_that_were_only_counted_are_told(running):
    running.write(*(fault(94, f"pid={pid}, name=python, Contained") for pid in (5, 6, 7, 6)))
    running.collect()
    (fact,) = running.source.last_words(running.node)
    assert fact.fields["1"].startswith("3 times (also pid 6, 7): NVRM")


def test_a_device_that_floods_the_log_hides_no_other_line(running):
    flood = [f"I/O error, dev sda, sector {number}" for number in range(2 * SENT_MAX)]
    running.write(*flood, XID, "I/O error, dev sdb, sector 1")
    texts = [fact.text for fact in running.collect()]
    assert texts == [*flood[:VARIANTS_MAX], XID, "I/O error, dev sdb, sector 1"]
    (fact,) = running.source.last_words(running.node)
    assert fact.fields == {"count": str(2 * SENT_MAX - VARIANTS_MAX), "further": str(2 * SENT_MAX - VARIANTS_MAX)}


def test_more_different_lines_than_anybody_reads_are_counted_but_a_numbered_fault_is_sent(running):
    words = ["mlx5_core " + chr(97 + one) * (1 + other) for one in range(26) for other in range(26)]
    running.write(*words, XID)
    facts = running.collect()
    assert len(facts) == SENT_MAX + 1
    assert facts[-1].text == XID
    (fact,) = running.source.last_words(running.node)
    assert int(fact.fields["count"]) == len(words) - SENT_MAX


@given(st.lists(st.tuples(st.sampled_from([13, 31, 79, 149]), st.integers(0, 3), st.integers(0, 10**9)), max_size=300))
def test_every_line_is_sent_or_counted(lines):
    fold = Fold()
    texts = [fault(code, f"pid={pid}, GPC {part}").encode() for code, part, pid in lines]
    sent = [text for text in texts if fold.is_sent(text, 1)]
    assert len(sent) + int(fold.fields_at_end().get("count", "0")) == len(texts)
    assert {re.sub(rb"pid=\d+", b"", text) for text in sent} == {re.sub(rb"pid=\d+", b"", text) for text in texts}


def test_a_storm_of_800000_lines_becomes_thirty_facts_with_its_exact_number(running):
    number, gpus = 800_000, 29
    with running.path.open("w") as file:
        for line in range(number):
            pci = f"0000:{line % gpus:02x}:00"
            file.write(record(line, 10_000, fault(95, f"pid={line % 97}, name=python, at 0x{line:x}", pci)) + "\n")
    facts = running.collect_all(number)
    facts += running.source.last_words(running.node)
    assert [fact.kind for fact in facts] == ["kernel_line"] * gpus + ["kernel_lines_repeated"]
    assert facts[-1].fields["count"] == str(number - gpus)
    assert running.totals["instep_kernel_log_lines_lost_total"] == 0


def test_lines_that_all_differ_take_no_more_memory_than_the_bounds_allow(running):
    with running.path.open("w") as file:
        for line in range(20_000):
            file.write(f"mlx5_core {'x' * (line % 700)} {'y' * (line % 31)}\n")
    tracemalloc.start()
    try:
        running.collect_all(20_000)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_healthy_log_is_read_and_nothing_is_sent(running):
    with running.path.open("w") as file:
        file.writelines(record(line, 10_000, f"systemd[1]: Started session {line}.") + "\n" for line in range(50_000))
    assert running.collect_all(50_000) == []
    assert list(running.source.last_words(running.node)) == []


def test_a_line_names_its_process_and_the_rank_that_it_is(log):
    ranks = {4242: {"job": "llm", "rank": "3"}}
    log.source = KernelLog(lambda pid: ranks.get(pid, {}))
    log.path.touch()
    log.collect()
    log.write(
        "Memory cgroup out of memory: Killed process 4242 (python) total-vm:1kB",
        "INFO: task python:4242 blocked for more than 120 seconds.",
        "python[4243]: segfault at 10 ip 1 sp 2 error 4 in libnccl.so.2[7f+ff]",
        "NVRM: GPU 0000:3b:00.0: RmInitAdapter failed!",
    )
    assert [fact.fields for fact in log.collect()] == [
        {"pid": "4242", "job": "llm", "rank": "3"},
        {"pid": "4242", "job": "llm", "rank": "3"},
        {"pid": "4243"},
        {},
    ]


def test_a_record_over_several_lines_stays_together(running):
    running.write(record(1, 10_000, r"NVRM: The NVIDIA GPU 0000:3b:00.0\x0aNVRM: fallen off the bus"))
    assert [fact.text for fact in running.collect()] == ["NVRM: The NVIDIA GPU 0000:3b:00.0\nNVRM: fallen off the bus"]


def test_recorded_lines_of_real_drivers_pass():
    if not RECORDED_LINES.exists():
        pytest.skip("Reads recorded kernel lines, which are not beside this checkout.")
    rows = [json.loads(line) for line in RECORDED_LINES.read_text().splitlines()]
    faults = [row["line"] for row in rows if row["kind"] != "none"]
    assert len(faults) > 20
    assert [line for line in faults if not is_interesting(line.encode())] == []


def test_the_real_device_gives_a_line_that_was_just_written():
    try:
        device = os.open("/dev/kmsg", os.O_WRONLY)
    except OSError as error:
        pytest.skip(f"Writes to /dev/kmsg, which cannot be opened here ({error.strerror}).")
    source, node = KernelLog(), Node("node-a")
    mark = f"instep-drill test {secrets.token_hex(8)}"
    try:
        list(source.collect(node))
        os.write(device, f"<4>{mark}\n".encode())  # without its end the kernel holds a line back until the next one
        until = time.monotonic() + 5
        found = []
        while not found and time.monotonic() < until:
            found = [each for each in source.collect(node) if isinstance(each, Fact) and mark in each.text]
    except SourceFailed as error:
        pytest.skip(f"Reads /dev/kmsg: {error}")
    finally:
        os.close(device)
        source.close()
    (fact,) = found
    assert fact.is_drill
    assert fact.identity == f"kmsg-{fact.fields['sequence']}"


def test_a_file_cut_short_is_read_from_its_beginning(running):
    running.write(XID + " first, and long enough")
    assert len(running.collect()) == 1
    os.truncate(running.path, 0)
    running.collect()
    running.write(XID)
    assert [fact.text for fact in running.collect()] == [XID]


def test_a_fifo_is_read_as_it_fills_and_never_blocks(log):
    os.mkfifo(log.path)
    assert log.collect() == []
    writer = os.open(log.path, os.O_WRONLY)
    assert log.collect() == []
    os.write(writer, (XID + "\n").encode())
    assert [fact.text for fact in log.collect()] == [XID]
    os.close(writer)
    assert log.collect() == []


def is_ready(source, seconds=0.0):
    return bool(select.select([source.wake_descriptor()], [], [], seconds)[0])


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_is_written_wakes_the_agent_until_it_was_read(log, make):
    make(log.path)
    log.collect()
    assert not is_ready(log.source)
    writer = os.open(log.path, os.O_WRONLY | os.O_APPEND)
    os.write(writer, (XID + "\n").encode())
    assert is_ready(log.source, 20.0)
    assert [fact.text for fact in log.collect()] == [XID]
    assert not is_ready(log.source)
    os.close(writer)


def test_a_file_that_a_turn_did_not_get_through_keeps_the_agent_awake(running, monkeypatch):
    running.collect()
    running.write(*["a line"] * 20_000)
    monkeypatch.setattr(kernel_log, "TURN_SECONDS_MAX", 1e-9)
    running.collect()
    assert is_ready(running.source)
    monkeypatch.undo()
    running.collect_all(20_000)
    running.collect()
    assert not is_ready(running.source)


def test_a_node_without_watches_to_spare_still_reads_its_log(running, monkeypatch):
    running.source.close()
    monkeypatch.setattr(file_watch.ctypes, "CDLL", lambda _name: SimpleNamespace(inotify_init1=lambda _flags: -1))
    running.collect()
    assert running.source.wake_descriptor() == -1
    running.write(XID)
    assert [fact.text for fact in running.collect()] == [XID]


def test_bytes_that_are_no_text_do_no_harm(running):
    running.path.write_bytes(b"\xff\xfe NVRM: Xid \x00\n")
    assert "NVRM: Xid" in running.collect()[0].text


def test_a_file_that_took_the_place_of_another_is_read(running):
    running.write(XID)
    assert len(running.collect()) == 1
    running.path.rename(running.path.with_name("kmsg.1"))
    running.write(XID + " rotated")
    running.collect()
    assert [fact.text for fact in running.collect()] == [XID + " rotated"]


def test_a_line_without_end_takes_no_more_memory_than_a_record(running):
    running.path.write_bytes(b"NVRM " * 1_000_000)
    running.collect()
    with running.path.open("ab") as file:
        file.write(b"\n" + XID.encode() + b"\n")
    facts = running.collect()
    assert facts[-1].text == XID
    assert all(len(fact.text) <= 8192 for fact in facts)


def test_the_agent_sends_what_was_counted_when_it_stops(log):
    frames = []
    log.path.touch()
    with contextlib.closing(Runner(log.node, [log.source], lambda frame, _: frames.append(frame))) as runner:
        runner.run_due()
        log.write(XID, XID)
        log.clock.seconds += 1
        log.source.interval_seconds = 0.0
        while not any(frame.events for frame in frames):
            runner.wait(runner.run_due())
        runner.say_last_words()
    kinds = [event.kind for frame in frames for event in frame.events]
    assert kinds == ["kernel_line", "kernel_lines_repeated"]
