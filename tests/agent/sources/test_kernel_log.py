"""The kernel log as a growing file and as a FIFO in place of the device."""

import os

import pytest
from instep_agent.errors import Absent, SourceFailed
from instep_agent.sources.kernel_log import REPEAT_TTL_SECONDS, KernelLog
from made_nodes import Clock, node_at

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
        return list(self.source.collect(self.node))


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
    assert fact.fields == {"priority": "4", "sequence": "7"}


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
    ],
)
def test_lets_lines_pass_that_may_matter(running, text):
    running.write(text)
    assert [fact.text for fact in running.collect()] == [text]


@pytest.mark.parametrize("text", ["usb 1-1: new device", "EXT4-fs (sda1): mounted", "audit: type=1400", "Taxidermy"])
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


def test_numbers_that_begin_again_are_no_gap(running):
    running.write(record(90, 10_000, "harmless"), record(1, 10_000, "harmless"))
    assert running.collect() == []


def test_equal_lines_are_counted_and_sent_once_more_at_the_end(running):
    running.write(*[record(n, 10_000, XID) for n in range(1, 6)])
    assert len(running.collect()) == 1
    running.clock.seconds += REPEAT_TTL_SECONDS - 1
    assert running.collect() == []
    running.clock.seconds += 1
    (fact,) = running.collect()
    assert (fact.text, fact.fields["repeats"]) == (XID, "4")
    running.clock.seconds += 2 * REPEAT_TTL_SECONDS
    assert running.collect() == []


def test_the_same_line_after_the_time_is_new(running):
    running.write(XID)
    assert len(running.collect()) == 1
    running.clock.seconds += REPEAT_TTL_SECONDS + 1
    running.write(XID)
    running.collect()
    running.write(XID + " again")
    assert [fact.text for fact in running.collect()] == [XID + " again"]


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


def test_bytes_that_are_no_text_do_no_harm(running):
    running.path.write_bytes(b"\xff\xfe NVRM: Xid \x00\n")
    assert "NVRM: Xid" in running.collect()[0].text
