"""Finding, following and forgetting the rank records of a node."""

import errno
import os
import shutil
import time

import pytest
from instep_agent.errors import Absent, SourceFailed
from instep_agent.folders import newest_names
from instep_agent.node import Node
from instep_agent.rank_record import Phase, RankRecordWriter
from instep_agent.sources import rank_records
from instep_agent.sources.rank_records import (
    GONE_REPORTED_SECONDS,
    LIVELY_SECONDS,
    RELIST_SECONDS,
    UNCHANGED_SECONDS,
    RankRecords,
)
from instep_agent.wire import RankReport
from made_records import identity_of, new_writer


@pytest.fixture
def source():
    source = RankRecords(discovery_interval_seconds=0.0)
    yield source
    source.close()


def collect(source, root, *, later_seconds=0.0):
    node = Node("node-a", record_root=root, monotonic_ns=lambda: time.monotonic_ns() + int(later_seconds * 1e9))
    readings = list(source.collect(node))
    ranks = [reading for reading in readings if isinstance(reading, RankReport)]
    return ranks, {reading.name: reading.value for reading in readings if not isinstance(reading, RankReport)}


def test_is_absent_where_no_rank_ever_wrote(tmp_path, source):
    with pytest.raises(Absent):
        collect(source, tmp_path)


def test_reports_every_rank_and_its_new_steps_once(tmp_path, source):
    writers = [new_writer(tmp_path, rank) for rank in (0, 1)]
    writers[1].finish_step(1, 0.5)
    ranks, samples = collect(source, tmp_path)
    assert [(rank.rank, len(rank.steps)) for rank in ranks] == [(0, 0), (1, 1)]
    assert samples == {"instep_rank_records": 2.0, "instep_rank_records_invalid": 0.0, "instep_rank_records_late": 0.0}
    writers[0].heartbeat(3, 0, Phase.data)
    ranks, _ = collect(source, tmp_path)
    assert [(rank.step, len(rank.steps)) for rank in ranks] == [(3, 0), (0, 0)]


def test_ranks_that_all_live_are_looked_at_more_rarely_and_one_that_is_silent_is_not(tmp_path, source):
    for rank in (0, 1):
        new_writer(tmp_path, rank).heartbeat(1, 0, Phase.data)
    now_ns = time.monotonic_ns()
    node = Node("node-a", record_root=tmp_path, monotonic_ns=lambda: now_ns)
    list(source.collect(node))
    assert source.rest_seconds == source.calm_interval_seconds
    collect(source, tmp_path, later_seconds=LIVELY_SECONDS + 0.1)
    assert source.rest_seconds == 0.0


def test_a_rank_whose_process_is_gone_is_not_looked_at_more_rarely(tmp_path, source):
    new_writer(tmp_path).heartbeat(1, 0, Phase.data)
    proc = tmp_path / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text(Node("node-a").boot_id)
    now_ns = time.monotonic_ns()
    node = Node("node-a", record_root=tmp_path, proc_root=proc, monotonic_ns=lambda: now_ns)
    (report,) = (each for each in source.collect(node) if isinstance(each, RankReport))
    assert report.process_state != "running"
    assert source.rest_seconds == 0.0


def test_only_the_newest_attempt_of_a_run_is_reported(tmp_path, source):
    for attempt in (2, 10, 9):
        RankRecordWriter.create(tmp_path, identity_of(attempt=attempt))
    new_writer(tmp_path, run="other")
    assert [(rank.run, rank.attempt) for rank in collect(source, tmp_path)[0]] == [("other", 0), ("run", 10)]
    new_writer(tmp_path, attempt=11)
    assert [(rank.run, rank.attempt) for rank in collect(source, tmp_path)[0]] == [("other", 0), ("run", 11)]


def test_folders_that_have_not_changed_are_not_listed_again(tmp_path, source, monkeypatch):
    listed = []
    monkeypatch.setattr(
        rank_records, "newest_names", lambda folder, limit: listed.append(folder) or newest_names(folder, limit)
    )
    records = [new_writer(tmp_path, rank).path for rank in (0, 1)]
    collect(source, tmp_path)
    collect(source, tmp_path)
    assert len(listed) == 2, "what has just changed may change again within the same moment"
    for folder in (tmp_path / "node-a", *(tmp_path / "node-a").rglob("*/")):
        os.utime(folder, (1e9, 1e9))
    for _ in range(3):
        assert len(collect(source, tmp_path)[0]) == 2
    assert len(listed) == 3
    new_writer(tmp_path, 2)
    records[0].unlink()
    assert [rank.rank for rank in collect(source, tmp_path)[0]] == [1, 2]
    new_writer(tmp_path, run="other")
    assert len(collect(source, tmp_path)[0]) == 3
    before = len(listed)
    collect(source, tmp_path, later_seconds=RELIST_SECONDS)
    assert len(listed) == before + 1, "now and then they are listed all the same"


@pytest.fixture
def closed(monkeypatch):
    """Names of folders that cannot be opened."""
    names = set()
    opened = os.open

    def refuse(path, *arguments, **options):
        if os.path.basename(path) in names:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    return names


def collect_failing(source, root, *, later_seconds):
    """The runs whose ranks were reported before the source failed, and its sentence."""
    node = Node("node-a", record_root=root, monotonic_ns=lambda: time.monotonic_ns() + int(later_seconds * 1e9))
    runs = []
    with pytest.raises(SourceFailed) as failed:
        for reading in source.collect(node):
            if isinstance(reading, RankReport):
                runs.append(reading.run)
    return sorted(runs), str(failed.value)


@pytest.mark.parametrize(("name", "where"), [("run", "node-a/run"), ("0", "node-a/other/0"), ("node-a", "node-a")])
def test_a_folder_that_cannot_be_looked_into_is_a_failure_and_ends_no_rank(tmp_path, source, closed, name, where):
    for run in ("run", "other"):
        new_writer(tmp_path, run=run)
    assert len(collect(source, tmp_path)[0]) == 2
    closed.add(name)
    runs, said = collect_failing(source, tmp_path, later_seconds=2 * RELIST_SECONDS)
    assert runs == ["other", "run"], "what is open already is read"
    assert said.startswith(f"Cannot look into {tmp_path}/{where} (too many open files)")
    assert (", nor into 1 more: run the agent" in said) is (name == "0")
    closed.clear()
    assert len(collect(source, tmp_path, later_seconds=2 * RELIST_SECONDS)[0]) == 2


def test_a_folder_of_runs_that_went_away_is_absent_and_found_again_at_once(tmp_path, source, closed):
    new_writer(tmp_path)
    assert len(collect(source, tmp_path, later_seconds=2 * UNCHANGED_SECONDS)[0]) == 1, (
        "settled: not listed for a while"
    )
    shutil.rmtree(tmp_path / "node-a")
    for _ in range(2):
        with pytest.raises(Absent):
            collect(source, tmp_path, later_seconds=2 * UNCHANGED_SECONDS)
    closed.add("node-a")
    collect_failing(source, tmp_path, later_seconds=2 * UNCHANGED_SECONDS)
    closed.clear()
    with pytest.raises(Absent):
        collect(source, tmp_path, later_seconds=2 * UNCHANGED_SECONDS)
    new_writer(tmp_path)
    assert len(collect(source, tmp_path, later_seconds=2 * UNCHANGED_SECONDS)[0]) == 1


def test_an_older_attempt_does_not_stand_in_for_one_that_cannot_be_looked_into(tmp_path, source, closed):
    for attempt in (0, 1):
        new_writer(tmp_path, attempt=attempt)
    closed.add("1")
    assert collect_failing(source, tmp_path, later_seconds=0.0)[0] == []


def test_ranks_of_another_node_are_not_ours(tmp_path, source):
    new_writer(tmp_path)
    new_writer(tmp_path, node="node-b")
    assert {rank.node for rank in collect(source, tmp_path)[0]} == {"node-a"}


def test_what_is_no_record_is_counted_and_the_others_are_read(tmp_path, source):
    writer = new_writer(tmp_path)
    folder = writer.path.parent
    (folder / "1").write_text("nonsense")
    (folder / "2").symlink_to(writer.path)
    os.mkfifo(folder / "3")
    (folder / "4").mkdir()
    (folder / "notes.txt").write_text("not a rank")
    (tmp_path / "node-a/elsewhere").symlink_to("/")
    ranks, samples = collect(source, tmp_path)
    assert [rank.rank for rank in ranks] == [0]
    assert samples["instep_rank_records_invalid"] == 4.0


def test_a_removed_record_is_forgotten_and_a_new_one_in_its_place_is_read(tmp_path, source):
    writer = new_writer(tmp_path)
    writer.heartbeat(5, 0, Phase.data)
    assert collect(source, tmp_path)[0][0].step == 5
    keep = writer.path.with_name("kept")  # so that the file system cannot use the same inode again
    writer.path.rename(keep)
    assert collect(source, tmp_path)[0] == []
    new_writer(tmp_path)
    assert collect(source, tmp_path)[0][0].step == 0


def test_a_silent_rank_comes_with_its_last_collectives(tmp_path, source):
    writer = new_writer(tmp_path)
    writer.enter(writer.declare_group([0, 1]), 1, 1, 64)
    assert collect(source, tmp_path)[0][0].collectives == ()
    collect(source, tmp_path, later_seconds=1.5)
    assert [entry.seq for entry in collect(source, tmp_path, later_seconds=2.0)[0][0].collectives] == [1]


def test_a_rank_long_gone_is_no_longer_reported(tmp_path, source):
    pid = os.fork()
    if pid == 0:
        new_writer(tmp_path)
        os._exit(0)
    os.waitpid(pid, 0)
    assert collect(source, tmp_path)[0][0].process_state == "gone"
    later = GONE_REPORTED_SECONDS + 1
    assert len(collect(source, tmp_path, later_seconds=later)[0]) == 1
    assert collect(source, tmp_path, later_seconds=later)[0] == []


def test_records_are_looked_for_no_more_often_than_asked(tmp_path):
    source = RankRecords(discovery_interval_seconds=60.0)
    new_writer(tmp_path)
    assert len(collect(source, tmp_path)[0]) == 1
    new_writer(tmp_path, 1)
    assert len(collect(source, tmp_path)[0]) == 1
    assert len(collect(source, tmp_path, later_seconds=61.0)[0]) == 2
    source.close()


def test_records_that_a_turn_has_no_time_for_come_with_the_next_ones(tmp_path):
    source = RankRecords(turn_seconds_max=0.0)
    for rank in range(3):
        new_writer(tmp_path, rank)
    turns = [collect(source, tmp_path) for _ in range(4)]
    assert [[rank.rank for rank in ranks] for ranks, _ in turns] == [[0], [1], [2], [0]]
    assert [samples["instep_rank_records_late"] for _, samples in turns] == [2.0] * 4
    source.close()


def test_a_newest_attempt_without_records_hides_no_rank(tmp_path, source):
    writer = new_writer(tmp_path, attempt=3)
    run = writer.path.parents[1]
    (run / "4").mkdir()
    (run / "99999999").touch()
    (run / "007").mkdir()
    assert [rank.attempt for rank in collect(source, tmp_path)[0]] == [3]
    new_writer(tmp_path, attempt=4)
    assert [rank.attempt for rank in collect(source, tmp_path)[0]] == [4]


def test_junk_in_a_folder_hides_no_rank(tmp_path, source):
    folder = new_writer(tmp_path, 2).path.parent
    for number in range(1000):
        (folder / f"junk-{number}").touch()
    assert [rank.rank for rank in collect(source, tmp_path)[0]] == [2]


@pytest.mark.parametrize("claim", [{"run": "other"}, {"rank": 1}, {"attempt": 7}, {"node": "node-b"}])
def test_a_record_that_says_it_is_another_rank_is_not_believed(tmp_path, source, claim):
    own = new_writer(tmp_path).path
    false = RankRecordWriter.create(tmp_path / "elsewhere", identity_of(**{"rank": 3, **claim}))
    own.with_name("3").write_bytes(false.path.read_bytes())
    ranks, samples = collect(source, tmp_path)
    assert [rank.rank for rank in ranks] == [0]
    assert samples["instep_rank_records_invalid"] == 1.0


def test_what_was_no_record_yet_is_read_when_it_is_one(tmp_path, source):
    path = new_writer(tmp_path).path
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(8))
    assert collect(source, tmp_path)[1]["instep_rank_records_invalid"] == 1.0
    path.write_bytes(whole)
    ranks, samples = collect(source, tmp_path, later_seconds=0.01)
    assert [rank.rank for rank in ranks] == [0]
    assert samples["instep_rank_records_invalid"] == 0.0
