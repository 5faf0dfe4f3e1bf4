"""What a dead run left is removed when nobody adopted it; whatever may live, or is not plainly a run, stays."""

import fcntl
import os
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
from instep_agent.node import Node
from instep_agent.ranks.keeping import DOOMED, RunLook, may_remove, sweep
from instep_agent.running.repeating import Repeating
from made_records import new_writer
from ranks_at_work import Ranks

KEEP_SECONDS = 3600.0
LATER_NS = int(2 * KEEP_SECONDS * 1e9)


@pytest.fixture
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture
def now(tmp_path):
    return Node("node-a", record_root=tmp_path)


@pytest.fixture
def later(now):
    """The same node two hours later, by both of its clocks."""
    return replace(
        now,
        monotonic_ns=lambda: time.monotonic_ns() + LATER_NS,
        realtime_ns=lambda: time.time_ns() + LATER_NS,
    )


@pytest.fixture
def dead(ranks, tmp_path):
    """Leaves the folder of a run whose rank is gone."""

    def leave(run="run", **options):
        ranks.end(ranks.start(tmp_path, run=run, **options))
        folder = tmp_path / "node-a" / run
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "checkpoint/0-0.slot").write_bytes(b"state")
        return folder

    return leave


def lock_of(folder, job="job", *, run="run", pid=None):
    """Hold a job's lock as its supervisor does (`instep run`)."""
    lock = (folder.parent / f".{job}.lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.truncate(0)
    lock.write(f"run {run} (supervisor pid {pid or os.getpid()})\n")
    lock.flush()
    return lock


def test_a_run_that_nobody_adopted_is_removed_and_only_after_its_time(dead, now, later):
    folder = dead()
    assert sweep(now, keep_seconds=KEEP_SECONDS) == []
    assert folder.exists()
    assert sweep(later, keep_seconds=KEEP_SECONDS) == ["run"]
    assert list(folder.parent.iterdir()) == []


def test_a_living_run_is_kept_however_long_it_says_nothing(ranks, later, tmp_path):
    ranks.start(tmp_path)
    assert sweep(later, keep_seconds=KEEP_SECONDS) == []


def test_a_rank_of_an_older_attempt_that_lives_keeps_the_run(ranks, dead, later, tmp_path):
    ranks.start(tmp_path, attempt=0)
    dead(attempt=1)
    assert sweep(later, keep_seconds=KEEP_SECONDS) == []


def test_a_run_that_was_adopted_in_time_is_kept(dead, later):
    folder = dead()
    opened_ns = later.realtime_ns() - 1_000_000_000
    (folder / "1").mkdir()  # its next attempt
    os.utime(folder / "1", ns=(opened_ns, opened_ns))
    assert sweep(later, keep_seconds=KEEP_SECONDS) == []


def test_a_run_whose_supervisor_lives_is_kept_and_removed_after_it(dead, later):
    folder = dead()
    with lock_of(folder, job="any-name"):
        assert sweep(later, keep_seconds=KEEP_SECONDS) == []
    assert sweep(later, keep_seconds=KEEP_SECONDS) == ["run"]


def test_another_living_run_of_the_same_job_keeps_no_old_one(dead, later):
    folder = dead()
    with lock_of(folder, run="newer"):
        assert sweep(later, keep_seconds=KEEP_SECONDS) == ["run"]


def test_a_lock_that_still_names_the_dead_forerunner_keeps_the_run(dead, later):
    """Between locking and writing its name, a supervisor that adopts the run is seen under the name before it."""
    folder = dead()
    with lock_of(folder, run="forerunner", pid=2**22 + 1):
        assert sweep(later, keep_seconds=KEEP_SECONDS) == []


def test_the_wall_clock_alone_makes_no_run_old(dead, now, later):
    dead()
    stepped = replace(later, monotonic_ns=now.monotonic_ns)
    assert sweep(stepped, keep_seconds=KEEP_SECONDS) == []


def test_links_are_not_followed(dead, later, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("kept")
    folder = dead()
    (folder / "inside").symlink_to(precious)
    (folder.parent / "linked").symlink_to(precious)
    assert sweep(later, keep_seconds=KEEP_SECONDS) == ["run"]
    assert (precious / "data").read_text() == "kept"
    assert [entry.name for entry in folder.parent.iterdir()] == ["linked"]


def test_a_linked_node_folder_is_not_entered(dead, later, tmp_path):
    folder = dead()
    (tmp_path / "node-b").symlink_to(folder.parent)
    assert sweep(replace(later, name="node-b"), keep_seconds=KEEP_SECONDS) == []
    assert folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_folder_with_something_of_another_user_in_it_is_kept(dead, later):
    folder = dead()
    os.chown(folder / "checkpoint/0-0.slot", 4321, 4321)
    assert sweep(later, keep_seconds=KEEP_SECONDS) == []


def test_a_folder_of_another_user_is_kept_by_one_who_is_not_root(dead, later, monkeypatch):
    dead()
    monkeypatch.setattr("instep_agent.ranks.keeping.os.geteuid", lambda: os.getuid() + 1)
    assert sweep(later, keep_seconds=KEEP_SECONDS) == []


def test_ranks_that_cannot_be_looked_at_keep_the_run(later, tmp_path):
    writer = new_writer(tmp_path)
    foreign = (tmp_path / "proc/sys/kernel/random/boot_id", tmp_path / "proc/self/ns/pid")
    for path in foreign:  # a process table of another pid namespace, on the same machine
        path.parent.mkdir(parents=True, exist_ok=True)
    foreign[0].write_text(later.boot_id)
    foreign[1].touch()
    writer.close()
    assert sweep(replace(later, proc_root=tmp_path / "proc"), keep_seconds=KEEP_SECONDS) == []


def test_a_removal_that_was_interrupted_is_finished(dead, now):
    folder = dead()
    folder.rename(folder.with_name(f"{DOOMED}0123"))
    sweep(now, keep_seconds=KEEP_SECONDS)
    assert list(folder.parent.iterdir()) == []


def test_what_is_no_run_is_left_alone(dead, later, tmp_path):
    folder = dead()
    (folder.parent / "notes.txt").write_text("mine")
    (folder.parent / ".hidden").mkdir()
    sweep(later, keep_seconds=KEEP_SECONDS)
    assert sorted(entry.name for entry in folder.parent.iterdir()) == [".hidden", "notes.txt"]


def test_a_node_without_records_is_nothing_to_sweep(later):
    assert sweep(later, keep_seconds=KEEP_SECONDS) == []


def test_the_sweeper_sweeps_beside_the_collecting_and_ends_when_told(dead, later):
    folder = dead()
    sweeper = Repeating("sweeper", partial(sweep, later, keep_seconds=KEEP_SECONDS), interval_seconds=0.01)
    sweeper.start()
    deadline = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < deadline
        os.sched_yield()
    sweeper.close(timeout_seconds=20)
    assert "sweeper" not in [thread.name for thread in threading.enumerate()]


ABANDONED = RunLook(is_ours=True, is_held=False, ranks_alive=0, ranks_unknown=0, idle_seconds=7200.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"is_ours": False}, "one owner"),
        ({"is_held": True}, "a supervisor holds it"),
        ({"ranks_alive": 2}, "2 of its ranks live"),
        ({"ranks_unknown": 1}, "cannot be looked at"),
        ({"idle_seconds": 3599.0}, "written 3599 s ago"),
        ({"idle_seconds": -5.0}, "written 0 s ago"),
    ],
)
def test_one_reason_is_enough_to_keep_a_run(change, why):
    is_removed, said = may_remove(replace(ABANDONED, **change), KEEP_SECONDS)
    assert not is_removed
    assert why in said


def test_without_a_reason_to_keep_it_a_run_may_go():
    assert may_remove(ABANDONED, KEEP_SECONDS) == (True, "nobody adopted it within 3600 s")
