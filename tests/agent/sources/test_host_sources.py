"""Disks, clock, processes, GPUs and the processor time of ranks, from written trees and from this very machine."""

import contextlib
import os
import re
import threading
from pathlib import Path

import pytest
from instep_agent.errors import Absent, SourceFailed
from instep_agent.host.processes import start_ticks
from instep_agent.node import Fact, Node, rights_of
from instep_agent.ranks.places import RankProcess
from instep_agent.sources import HOST_SOURCES, clock
from instep_agent.sources.clock import Clock, TimeKeeping, read_timekeeping
from instep_agent.sources.disk_io import DiskIo
from instep_agent.sources.gpu_count import GpuCount
from instep_agent.sources.node_processes import NodeProcesses
from instep_agent.sources.rank_cpu import RankCpu
from made_nodes import Clock as Time
from made_nodes import node_at


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def samples_of(source, node):
    return {
        (each.name, *(value for _, value in each.labels)): each.value
        for each in source.collect(node)
        if not isinstance(each, Fact)
    }


DISKSTATS = """\
 259 0 nvme0n1 100 0 800 2500 50 0 400 1500 3 900 4000 0 0 0 0
 259 1 nvme0n1p1 100 0 800 2500 50 0 400 1500 3 900 4000 0 0 0 0
   7 0 loop0 1 0 1 1 0 0 0 0 0 0 0
   8 0 sda 1 2
"""


def test_disks_have_their_requests_and_times(tmp_path):
    write(tmp_path, "proc/diskstats", DISKSTATS)
    (tmp_path / "sys/block/nvme0n1").mkdir(parents=True)
    assert samples_of(DiskIo(), node_at(tmp_path)) == {
        ("instep_disk_reads_total", "nvme0n1"): 100.0,
        ("instep_disk_read_seconds_total", "nvme0n1"): 2.5,
        ("instep_disk_writes_total", "nvme0n1"): 50.0,
        ("instep_disk_write_seconds_total", "nvme0n1"): 1.5,
        ("instep_disk_requests_in_flight", "nvme0n1"): 3.0,
        ("instep_disk_busy_seconds_total", "nvme0n1"): 0.9,
    }


def test_without_disks_they_are_absent_and_without_proc_a_failure(tmp_path):
    with pytest.raises(SourceFailed, match="diskstats"):
        samples_of(DiskIo(), node_at(tmp_path))
    write(tmp_path, "proc/diskstats", "")
    with pytest.raises(Absent):
        samples_of(DiskIo(), node_at(tmp_path))


class Wall(Time):
    """Two clocks of which the wall clock can be set."""

    ahead_ns = 0

    def realtime_ns(self):
        return super().realtime_ns() + self.ahead_ns


def test_the_clock_says_what_the_kernel_says(tmp_path):
    source = Clock(lambda: TimeKeeping(-0.002, 0.1, is_synchronised=True))
    assert samples_of(source, node_at(tmp_path)) == {
        ("instep_clock_steps_total",): 0.0,
        ("instep_clock_offset_seconds",): -0.002,
        ("instep_clock_error_seconds_max",): 0.1,
        ("instep_clock_is_synchronised",): 1.0,
    }


@pytest.mark.parametrize(("step_seconds", "words"), [(-90.0, "back by 90.000 s"), (0.5, "forward by 0.500 s")])
def test_a_wall_clock_that_is_set_is_a_fact(tmp_path, step_seconds, words):
    time = Wall()
    node, source = node_at(tmp_path, time), Clock(lambda: TimeKeeping(0.0, 0.0, is_synchronised=False))
    samples_of(source, node)
    time.seconds += 5
    assert not [each for each in source.collect(node) if isinstance(each, Fact)]
    time.ahead_ns = int(step_seconds * 1e9)
    facts = [each for each in source.collect(node) if isinstance(each, Fact)]
    assert [(fact.kind, float(fact.fields["seconds"])) for fact in facts] == [("clock_stepped", step_seconds)]
    assert words in facts[0].text
    assert samples_of(source, node)["instep_clock_steps_total",] == 1.0


def test_a_kernel_that_does_not_tell_is_a_failure_and_steps_are_still_seen(tmp_path):
    def refuse():
        raise PermissionError(1, "Operation not permitted")

    readings = []
    with pytest.raises(SourceFailed, match="seccomp"):
        readings.extend(Clock(refuse).collect(node_at(tmp_path)))
    source = Clock(refuse).collect(node_at(tmp_path))
    assert next(source).name == "instep_clock_steps_total"


def test_the_real_clock_is_read_and_stands_for_itself():
    try:
        now = read_timekeeping()
    except OSError as error:
        pytest.skip(f"Calls adjtimex, which is not allowed here ({error.strerror}).")
    assert abs(now.offset_seconds) < 1.0
    assert now.maxerror_seconds >= 0.0
    source = Clock()
    assert not [each for _ in range(20) for each in source.collect(Node("node-a")) if isinstance(each, Fact)]


def process(root, pid, name, state="S"):
    write(root, f"proc/{pid}/stat", f"{pid} ({name}) {state} 1 1\n")


def test_processes_are_counted_by_state(tmp_path):
    for pid, state in enumerate("RSSIDDZTt", start=1):
        process(tmp_path, pid, "a (strange) name", state)
    write(tmp_path, "proc/99/other", "it has just ended")
    assert samples_of(NodeProcesses(), node_at(tmp_path)) == {
        ("instep_node_processes", "running"): 1.0,
        ("instep_node_processes", "sleeping"): 3.0,
        ("instep_node_processes", "uninterruptible"): 2.0,
        ("instep_node_processes", "stopped"): 2.0,
        ("instep_node_processes", "zombie"): 1.0,
    }


def services(root):
    found = samples_of(NodeProcesses(), node_at(root))
    return {key[1]: value for key, value in found.items() if key[0] == "instep_node_service_is_running"}


def test_services_are_looked_for_where_their_hardware_is(tmp_path):
    process(tmp_path, 2, "kthreadd")
    assert services(tmp_path) == {}
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    assert services(tmp_path) == {"nvidia-persistenced": 0.0}
    write(tmp_path, "sys/bus/pci/devices/0000:c1:00.0/vendor", "0x10de\n")
    write(tmp_path, "sys/bus/pci/devices/0000:c1:00.0/class", "0x068000\n")
    process(tmp_path, 700, "nvidia-persiste")
    assert services(tmp_path) == {"nvidia-persistenced": 1.0, "nv-fabricmanager": 0.0}
    process(tmp_path, 701, "nv-fabricmanage")
    assert services(tmp_path) == {"nvidia-persistenced": 1.0, "nv-fabricmanager": 1.0}


def test_in_a_container_services_of_the_node_are_unknown_not_missing(tmp_path):
    process(tmp_path, 1, "instep")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    with pytest.raises(SourceFailed, match="hostPID"):
        services(tmp_path)


def gpu(root, pci, kind="0x030200", vendor="0x10de", *, has_driver=True):
    write(root, f"sys/bus/pci/devices/{pci}/vendor", vendor + "\n")
    write(root, f"sys/bus/pci/devices/{pci}/class", kind + "\n")
    if has_driver:
        text = f"GPU UUID: GPU-{pci}\nBus Location: {pci}\nDevice Minor: 0\n"
        write(root, f"proc/driver/nvidia/gpus/{pci}/information", text)


def test_gpus_are_counted_by_who_sees_them(tmp_path):
    gpu(tmp_path, "0000:3b:00.0")
    gpu(tmp_path, "0000:86:00.0", has_driver=False)
    gpu(tmp_path, "0000:c1:00.0", "0x068000", has_driver=False)
    gpu(tmp_path, "0000:01:00.0", "0x030000", "0x1a03", has_driver=False)
    assert samples_of(GpuCount(), node_at(tmp_path)) == {
        ("instep_gpus", "driver"): 1.0,
        ("instep_gpus", "pci"): 2.0,
    }
    assert samples_of(GpuCount(8), node_at(tmp_path))["instep_gpus", "expected"] == 8.0


def test_gpus_that_are_expected_and_nowhere_to_be_seen_are_not_absent(tmp_path):
    with pytest.raises(Absent):
        samples_of(GpuCount(), node_at(tmp_path))
    assert samples_of(GpuCount(8), node_at(tmp_path))["instep_gpus", "pci"] == 0.0


class Table:
    """A table of ranks as a test wants it."""

    def __init__(self, *pids, proc):
        self.ranks = [RankProcess("job", "run", 0, at, pid, start_ticks(pid, proc)) for at, pid in enumerate(pids)]

    def processes(self):
        return iter(self.ranks)


class Tasks:
    """The threads of one process of a written tree."""

    def __init__(self, root, pid=7):
        self.root, self.pid = root, pid
        write(root, f"proc/{pid}/stat", f"{pid} (python) S {' '.join(['0'] * 18)} 500\n")
        self.table = Table(pid, proc=root / "proc")
        self.source = RankCpu(self.table)

    def thread(self, number, run_seconds, wait_seconds):
        counters = f"{int(run_seconds * 1e9)} {int(wait_seconds * 1e9)} 5\n"
        write(self.root, f"proc/{self.pid}/task/{number}/schedstat", counters)

    def totals(self):
        found = samples_of(self.source, node_at(self.root))
        return tuple(
            found[f"instep_rank_{name}", "job", "0", "run"]
            for name in ("cpu_seconds_total", "cpu_wait_seconds_total", "threads")
        )


def test_threads_of_a_rank_are_added_up_from_its_first_sight(tmp_path):
    tasks = Tasks(tmp_path)
    tasks.thread(7, 10, 1)
    assert tasks.totals() == (0.0, 0.0, 1.0)
    tasks.thread(7, 12, 1.5)
    tasks.thread(8, 3, 2)
    assert tasks.totals() == (5.0, 2.5, 2.0)


def test_a_thread_that_ends_takes_nothing_away(tmp_path):
    tasks = Tasks(tmp_path)
    tasks.thread(7, 0, 0)
    tasks.totals()
    tasks.thread(8, 3, 2)
    assert tasks.totals() == (3.0, 2.0, 2.0)
    (tmp_path / "proc/7/task/8/schedstat").unlink()
    (tmp_path / "proc/7/task/8").rmdir()
    tasks.thread(7, 1, 0)
    assert tasks.totals() == (4.0, 2.0, 1.0)


def test_a_number_that_is_another_process_by_now_has_no_samples(tmp_path):
    tasks = Tasks(tmp_path)
    tasks.thread(7, 1, 1)
    tasks.totals()
    write(tmp_path, "proc/7/stat", f"7 (other) S {' '.join(['0'] * 18)} 900\n")
    assert samples_of(tasks.source, node_at(tmp_path)) == {}


def test_a_kernel_without_the_counters_is_a_failure_and_no_rank_is_absent(tmp_path):
    tasks = Tasks(tmp_path)
    (tmp_path / "proc/7/task/7").mkdir(parents=True)
    with pytest.raises(SourceFailed, match="CONFIG_SCHED_INFO"):
        tasks.totals()
    tasks.table.ranks = []
    with pytest.raises(Absent):
        tasks.totals()


def test_the_waiting_of_this_very_process_is_counted():
    source, node = RankCpu(Table(os.getpid(), proc=Node("node-a").proc)), Node("node-a")
    samples_of(source, node)
    stop = threading.Event()
    threads = [threading.Thread(target=_spin, args=(stop,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with contextlib.suppress(StopIteration):
            key = ("instep_rank_cpu_seconds_total", "job", "0", "run")
            next(None for _ in range(10_000) if samples_of(source, node)[key] > 0.01)
        found = samples_of(source, node)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert found[key] > 0.01
    assert found["instep_rank_cpu_wait_seconds_total", "job", "0", "run"] >= 0.0
    assert found["instep_rank_threads", "job", "0", "run"] >= 5.0


def _spin(stop):
    while not stop.is_set():
        sum(range(1000))


def test_every_event_of_these_sources_is_on_the_pages():
    docs = Path(__file__).parents[3] / "docs/reference"
    folder = Path(clock.__file__).parent
    for source in ("mounts", "clock"):
        kinds = re.findall(r'act\("([a-z_]+)"', (folder / f"{source}.py").read_text())
        assert kinds
        for page in ("wire.md", "host-sources.md"):
            assert [kind for kind in kinds if f"`{kind}`" not in (docs / page).read_text()] == []


def test_every_source_of_the_host_says_what_it_needs():
    for source in (*HOST_SOURCES, GpuCount, RankCpu):
        assert rights_of(source), source.name
