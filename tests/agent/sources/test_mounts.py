"""File systems: how full, read-only, and one that never answers."""

import os
import threading

import pytest
from instep_agent.errors import Absent, SourceFailed
from instep_agent.host.mounts import MOUNTS_MAX, parse_mounts
from instep_agent.node import Fact, Node
from instep_agent.running.runner import Runner
from instep_agent.sources.mounts import Mounts
from made_nodes import node_at

ROOT = "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw,errors=remount-ro"
DATA = r"36 22 0:41 / /data/set\040one rw,relatime shared:9 - nfs4 storage:/export rw,vers=4.2"
SHM = "25 22 0:22 / /dev/shm rw,nosuid shared:4 - tmpfs tmpfs rw"
OTHERS = "24 22 0:21 / /sys rw - sysfs sysfs rw\n26 22 0:23 / /run rw - tmpfs tmpfs rw\nno mount at all"
BOUND = "99 22 259:1 /var/lib /var/lib/kubelet/pods/1/volume rw - ext4 /dev/nvme0n1p1 rw"
STATVFS = os.statvfs_result((4096, 4096, 1000, 400, 300, 100, 90, 90, 0, 255))


class Observed:
    """A node with these mounts, whose file systems answer as `statvfs` does."""

    def __init__(self, root, *lines):
        self.root = root
        self.blocked, self.asked, self.error = set(), [], None
        self.release = threading.Event()
        self.source = Mounts(self.statvfs, answer_seconds_max=0.2)
        self.write(*lines)

    def write(self, *lines):
        path = self.root / "proc/1/mountinfo"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def statvfs(self, path):
        path = path.removeprefix(str(self.root))
        self.asked.append(path)
        if path in self.blocked:
            self.release.wait(30)
        if self.error:
            raise self.error
        return STATVFS

    def collect(self):
        readings = list(self.source.collect(node_at(self.root)))
        facts = [each for each in readings if isinstance(each, Fact)]
        return facts, {
            (each.name.removeprefix("instep_mount_"), dict(each.labels)["path"]): each.value
            for each in readings
            if not isinstance(each, Fact)
        }


@pytest.fixture
def observed(tmp_path):
    observed = Observed(tmp_path, ROOT, DATA, SHM, OTHERS, BOUND)
    yield observed
    observed.release.set()


def test_says_how_full_each_file_system_is_once(observed):
    facts, samples = observed.collect()
    assert facts == []
    assert {path for _, path in samples} == {"/", "/data/set one", "/dev/shm"}
    assert samples["size_bytes", "/"] == 1000 * 4096
    assert samples["available_bytes", "/"] == 300 * 4096
    assert samples["used_ratio", "/"] == 600 / 900
    assert samples["inodes_used_ratio", "/"] == 0.1
    assert samples["is_read_only", "/"] == samples["is_stuck", "/"] == 0.0


def test_a_file_system_that_does_not_answer_is_named_and_the_others_are_measured(observed):
    observed.blocked = {"/data/set one"}
    facts, samples = observed.collect()
    (fact,) = facts
    assert (fact.kind, fact.fields) == ("mount_stuck", {"path": "/data/set one", "fstype": "nfs4"})
    assert samples["is_stuck", "/data/set one"] == 1.0
    assert ("used_ratio", "/data/set one") not in samples
    assert samples["used_ratio", "/"] == 600 / 900


def test_a_stuck_one_is_told_once_not_asked_again_and_told_when_it_answers(observed):
    observed.blocked = {"/data/set one"}
    observed.collect()
    assert observed.collect()[0] == []
    assert observed.asked.count("/data/set one") == 1
    observed.blocked = set()
    observed.release.set()
    facts, samples = observed.collect()
    assert [fact.kind for fact in facts] == ["mount_answers"]
    assert samples["is_stuck", "/data/set one"] == 0.0


def test_what_was_told_is_handed_on_unless_a_file_system_has_not_answered(observed):
    observed.blocked = {"/data/set one"}
    observed.collect()
    assert observed.source.memory() is None, "the thread that waits is this process's"
    observed.blocked = set()
    observed.release.set()
    observed.collect()
    other = Mounts(observed.statvfs, answer_seconds_max=0.2)
    other.recall(observed.source.memory())
    assert other.memory() == observed.source.memory()
    observed.write(ROOT.replace(" rw,errors", " ro,errors"), DATA)
    facts = [one for one in other.collect(node_at(observed.root)) if isinstance(one, Fact)]
    assert ("mount_read_only", "/") in [(one.kind, one.fields["path"]) for one in facts]


def test_one_that_becomes_read_only_is_a_fact_once(observed):
    observed.collect()
    observed.write(ROOT.replace(" rw,errors", " ro,errors"), DATA)
    facts, samples = observed.collect()
    assert [(fact.kind, fact.fields["path"]) for fact in facts] == [("mount_read_only", "/")]
    assert samples["is_read_only", "/"] == 1.0
    assert observed.collect()[0] == []


def test_one_that_is_read_only_from_the_beginning_is_no_fact(observed):
    observed.write(ROOT.replace(" rw,errors", " ro,errors"))
    facts, samples = observed.collect()
    assert facts == []
    assert samples["is_read_only", "/"] == 1.0


def test_what_may_not_be_looked_at_is_a_failure_that_names_it(observed):
    observed.error = PermissionError(13, "Permission denied")
    with pytest.raises(SourceFailed, match=r"/data/set one \(permission denied\)"):
        observed.collect()


def test_a_root_without_any_of_the_mounts_is_absent(observed):
    observed.error = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(Absent, match="None of the node's file systems"):
        observed.collect()


def test_a_node_without_mounts_that_hold_data_is_absent_and_without_proc_a_failure(tmp_path):
    with pytest.raises(Absent):
        Observed(tmp_path, OTHERS).collect()
    with pytest.raises(SourceFailed, match="mount the node's /proc"):
        list(Mounts().collect(node_at(tmp_path / "none")))


def test_thousands_of_mounts_are_bounded():
    lines = "\n".join(f"1 1 8:{number} / /m{number} rw - ext4 /dev/x rw" for number in range(5000))
    assert len(parse_mounts(lines)) == MOUNTS_MAX


def test_the_real_file_systems_of_this_machine_answer():
    readings = [each for each in Mounts().collect(Node("node-a")) if not isinstance(each, Fact)]
    ratios = [each.value for each in readings if each.name == "instep_mount_used_ratio"]
    assert ratios
    assert all(0.0 <= ratio <= 1.0 for ratio in ratios)


def test_a_call_that_holds_the_whole_process_up_costs_the_child_only(tmp_path):
    """A thread that is stuck takes nothing from the others; a process that is, is killed and named with the mount."""

    class Held(Mounts):
        deadline_seconds = 0.3

        def _answer(self, path, question):
            os.kill(os.getpid(), 19)

    Observed(tmp_path, DATA)
    frames = []
    runner = Runner(node_at(tmp_path), [Held()], lambda frame, _: frames.append(frame))
    runner._clock_seconds = clock = Waiting()
    try:
        while not (events := [event for frame in frames for event in frame.events]):
            runner.run_due()
            runner.wait(0.05)
            clock.seconds += 0.5
    finally:
        runner.close()
    assert (events[0].kind, events[0].fields["child"]) == ("source_stuck", "slow")
    assert events[0].fields["call"] in ("", "statvfs /data/set one")


class Waiting:
    """A clock that goes on only when it is told to."""

    seconds = 0.0

    def __call__(self):
        return self.seconds
