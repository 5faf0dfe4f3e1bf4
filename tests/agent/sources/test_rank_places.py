"""Which process, GPU, RDMA device and container a rank is: told when it is new, when it changes, and every minute."""

import os
import time

import pytest
from instep_agent.host.pci import nearest_rdma
from instep_agent.host.processes import is_known_as, pid_namespace, start_ticks
from instep_agent.node import Node
from instep_agent.ranks.places import LOOK_SECONDS, RankTable
from instep_agent.sources.kernel_log import KernelLog
from instep_agent.sources.rank_records import RankRecords
from instep_agent.uplink.frames import Tick
from instep_agent.wire import RankReport
from made_records import new_writer, report_of

POD = "0123abcd-0000-4000-8000-00000000beef"
CONTAINER = "c0ffee" + 58 * "0"
CGROUP = f"0::/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope\n"
HOST_PID = 31_337


class Observed:
    """A node with two GPUs and two RDMA devices; its process table is written by hand, this process is the rank."""

    def __init__(self, root):
        self.root = root
        self.records = root / "records"
        self.table = RankTable()
        self.source = RankRecords(discovery_interval_seconds=0.0, table=self.table)
        self.later_seconds = 0.0
        for complex_, bridge, gpu, rdma, numa in (("3a", "3b", "3c", "3d", 0), ("85", "86", "87", "88", 1)):
            for leaf in (gpu, rdma):
                path = f"sys/devices/pci0000:{complex_}/0000:{bridge}:00.0/0000:{leaf}:00.0"
                self.write(f"{path}/numa_node", f"{numa}\n")
                self.write(f"{path}/class", "0x030200\n" if leaf == gpu else "0x020700\n")
                (root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
                (root / f"sys/bus/pci/devices/0000:{leaf}:00.0").symlink_to(root / path)
            (root / path / f"infiniband/mlx5_{numa}").mkdir(parents=True)
            text = f"GPU UUID: GPU-{numa}\nBus Location: 0000:{gpu}:00.0\nDevice Minor: {numa}\n"
            self.write(f"proc/driver/nvidia/gpus/0000:{gpu}:00.0/information", text)

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, pid, *, number=None, uid=None, environment="", cgroup=CGROUP):
        """Write the entry of this very process under the number that it has on the node."""
        fields = ["S"] + ["0"] * 10 + ["250", "50"] + ["0"] * 6 + [str(start_ticks(os.getpid()))] + ["0"] * 5
        self.write(f"proc/{pid}/stat", f"{pid} (python (x)) {' '.join(fields)}\n")
        uid = os.getuid() if uid is None else uid
        number = os.getpid() if number is None else number
        self.write(f"proc/{pid}/status", f"Name: python\nUid:\t{uid}\t{uid}\nNSpid:\t{pid}\t{number}\n")
        self.write(f"proc/{pid}/environ", environment)
        self.write(f"proc/{pid}/cgroup", cgroup)

    def collect(self):
        now = lambda: time.monotonic_ns() + int(self.later_seconds * 1e9)  # noqa: E731
        node = Node("node-a", self.root, self.records, monotonic_ns=now)
        boot = self.root / "proc/sys/kernel/random/boot_id"
        if not boot.exists():
            with open("/proc/sys/kernel/random/boot_id") as real:
                self.write("proc/sys/kernel/random/boot_id", real.read())
        return [each for each in self.source.collect(node) if isinstance(each, RankReport)]


@pytest.fixture
def observed(tmp_path):
    observed = Observed(tmp_path)
    yield observed
    observed.source.close()


def test_a_rank_in_a_container_is_found_on_the_node(observed):
    observed.process(HOST_PID, environment="A=1\0CUDA_VISIBLE_DEVICES=0,1\0")
    new_writer(observed.records, 2, gpu="GPU-1", namespace="team", pod_uid="what the rank says")
    (report,) = observed.collect()
    place = report.place
    assert (place.pid, place.gpus_visible, place.gpu_pci, place.hcas) == (HOST_PID, "0,1", "0000:87:00", ("mlx5_1",))
    assert (place.namespace, place.pod_uid, place.container, place.missing) == ("team", POD, CONTAINER, ())
    assert (report.process_state, report.cpu_seconds) == ("sleeping", 3.0)
    assert report.pid == os.getpid()


def test_a_place_is_told_once_and_then_every_minute(observed):
    observed.process(HOST_PID)
    new_writer(observed.records)
    assert [report.place is not None for _ in range(3) for report in observed.collect()] == [True, False, False]
    observed.later_seconds = LOOK_SECONDS + 1
    assert [report.place is not None for _ in range(2) for report in observed.collect()] == [True, False]


def test_several_jobs_on_a_node_are_told_apart(observed):
    observed.process(HOST_PID)
    new_writer(observed.records, 0, run="a", job="job-a")
    new_writer(observed.records, 0, run="b", job="job-b")
    assert [(report.job, report.place.pid) for report in observed.collect()] == [
        ("job-a", HOST_PID),
        ("job-b", HOST_PID),
    ]
    assert [(each.job, each.run, each.rank) for each in observed.table.processes()] == [
        ("job-a", "a", 0),
        ("job-b", "b", 0),
    ]


def test_a_process_that_cannot_be_seen_is_missing_and_its_state_unknown(observed):
    (observed.root / "proc/1").mkdir()
    new_writer(observed.records)
    (report,) = observed.collect()
    assert (report.place.pid, report.place.missing, report.process_state) == (0, ("process",), "unknown")


def test_a_process_with_the_number_in_another_namespace_is_not_taken(observed):
    observed.process(HOST_PID, number=os.getpid() + 1)
    new_writer(observed.records)
    assert observed.collect()[0].place.missing == ("process",)


def test_a_process_of_another_user_is_not_taken_for_the_rank(observed):
    observed.process(HOST_PID, uid=os.getuid() + 1)
    new_writer(observed.records)
    (report,) = observed.collect()
    assert (report.place.pid, report.place.missing) == (0, ("owner",))
    assert list(observed.table.processes()) == []


def test_what_the_agent_may_not_read_is_missing(observed):
    observed.process(HOST_PID)
    for name in ("environ", "cgroup"):
        (observed.root / f"proc/{HOST_PID}/{name}").unlink()
    new_writer(observed.records)
    assert observed.collect()[0].place.missing == ("cgroup", "environment")


def test_a_rank_whose_process_has_ended_is_still_known_by_its_number(observed):
    observed.process(HOST_PID)
    new_writer(observed.records, 3, job="llm")
    observed.collect()
    for file in (observed.root / f"proc/{HOST_PID}").iterdir():
        file.unlink()
    observed.later_seconds = LOOK_SECONDS + 1
    assert observed.collect()[0].place is None
    assert observed.table.rank_of(HOST_PID) == {"job": "llm", "run": "run", "attempt": "0", "rank": "3"}
    assert observed.table.rank_of(HOST_PID + 1) == {}


def test_a_rank_whose_record_is_gone_is_forgotten(observed):
    observed.process(HOST_PID)
    writer = new_writer(observed.records)
    observed.collect()
    writer.path.unlink()
    observed.collect()
    assert observed.table.rank_of(HOST_PID) == {}


def test_an_out_of_memory_kill_names_the_rank(observed):
    observed.process(HOST_PID)
    new_writer(observed.records, 5, job="llm")
    observed.collect()
    observed.write("dev/kmsg", "")
    log, node = KernelLog(observed.table.rank_of), Node("node-a", observed.root)
    list(log.collect(node))
    observed.write("dev/kmsg", f"Out of memory: Killed process {HOST_PID} (python) total-vm:1kB\n")
    fact = next(iter(log.collect(node)))
    assert fact.fields == {"pid": str(HOST_PID), "job": "llm", "run": "run", "attempt": "0", "rank": "5"}
    log.close()


def test_the_nearest_device_is_behind_the_same_bridge(observed):
    root = str(observed.root)
    assert nearest_rdma(root, "0000:3c:00") == ("mlx5_0",)
    assert nearest_rdma(root, "0000:87:00.0") == ("mlx5_1",)
    assert nearest_rdma(root, "0000:ff:00") == ()
    assert nearest_rdma(f"{root}/none", "0000:3c:00") == ()


def test_beneath_other_root_complexes_those_of_the_same_numa_node_are_near(observed):
    observed.write("sys/devices/pci0000:20/0000:21:00.0/numa_node", "1\n")
    (observed.root / "sys/bus/pci/devices/0000:21:00.0").symlink_to(
        observed.root / "sys/devices/pci0000:20/0000:21:00.0"
    )
    assert nearest_rdma(str(observed.root), "0000:21:00") == ("mlx5_1",)
    observed.write("sys/devices/pci0000:20/0000:21:00.0/numa_node", "-1\n")
    assert nearest_rdma(str(observed.root), "0000:21:00") == ()


def test_a_report_that_replaces_another_one_before_the_frame_keeps_its_place(observed):
    observed.process(HOST_PID)
    new_writer(observed.records)
    tick = Tick()
    for report in (*observed.collect(), *observed.collect()):
        tick.add_rank(report)
    (kept,) = tick.ranks.values()
    assert kept.place.pid == HOST_PID


def test_a_rank_of_this_very_process_table_is_found(tmp_path):
    source, node = RankRecords(), Node("node-a", record_root=tmp_path)
    writer = new_writer(tmp_path)
    (report,) = (each for each in source.collect(node) if isinstance(each, RankReport))
    assert report.place.pid == os.getpid()
    assert report.place.pid_namespace == os.stat("/proc/self/ns/pid").st_ino
    assert report_of(writer).place is None
    source.close()


def test_a_number_counts_in_its_own_pid_namespace_only():
    me, namespace = os.getpid(), pid_namespace()
    assert is_known_as(me, me, namespace)
    assert not is_known_as(me, me, namespace + 1)
    assert not is_known_as(me, me + 1, namespace)
