"""Hostile rank records in front of the whole source and the runner: nobody is hidden, held up or read elsewhere."""

import contextlib
import os
import random
import struct
import threading
import tracemalloc
from zlib import crc32

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instep_agent.node import Node
from instep_agent.rank_record import Phase, layout, reader
from instep_agent.ranks import walk
from instep_agent.running.runner import Runner
from instep_agent.sources import rank_records
from instep_agent.sources.rank_records import RankRecords
from instep_agent.wire import RankReport, Sample
from made_records import new_writer


class Beating:
    """Another source of the same agent: it must go on whatever the records are."""

    name, interval_seconds, deadline_seconds, child, metrics = "beating", 0.0, 1.0, "", ()

    def __init__(self):
        self.turns = 0

    def collect(self, node):
        self.turns += 1
        yield from ()


class Agent:
    """A runner over the records of a folder and another source; `go_on` gives the ranks that it sent."""

    def __init__(self, root):
        self.records, self.beating, self.frames = RankRecords(0.0, 0.0, calm_interval_seconds=0.0), Beating(), []
        self.runner = Runner(
            Node("node-a", record_root=root),
            [self.records, self.beating],
            lambda frame, _: self.frames.append(frame),
            interval_seconds=0.0,
        )

    def go_on(self, turns=5):
        self.frames.clear()
        before = self.beating.turns
        for _ in range(turns):
            self.runner.run_due()
        assert self.beating.turns >= before + turns
        assert self.runner.states[0].outcome == "ok", self.runner.states[0].detail
        return {(report.run, report.rank) for frame in self.frames for report in frame.ranks}

    def samples(self):
        return {sample.name: sample.value for sample in self.runner.states[0].samples}

    def close(self):
        self.records.close()
        self.runner.close()


@pytest.fixture
def agent(tmp_path):
    with contextlib.closing(Agent(tmp_path)) as agent:
        yield agent


@pytest.fixture
def healthy(tmp_path):
    writer = new_writer(tmp_path)
    writer.heartbeat(1, 0, Phase.data)
    return writer


def _fifo(folder, _path):
    os.mkfifo(folder / "9")


def _folder(folder, _path):
    (folder / "9").mkdir()


def _sparse_terabyte(folder, _path):
    (folder / "9").touch()
    os.truncate(folder / "9", 1 << 40)


def _link_outside(folder, _path):
    (folder / "9").symlink_to("/etc/passwd")


def _link_to_a_record(folder, path):
    (folder / "9").symlink_to(path)


def _copy_of_a_record(folder, path):
    (folder / "9").write_bytes(path.read_bytes())


def _half_a_record(folder, path):
    (folder / "9").write_bytes(path.read_bytes()[:9000])


def _noise(folder, _path):
    (folder / "9").write_bytes(layout.MAGIC + random.Random(7).randbytes(100_000))


@pytest.mark.parametrize(
    "put",
    [
        _fifo,
        _folder,
        _sparse_terabyte,
        _link_outside,
        _link_to_a_record,
        _copy_of_a_record,
        _half_a_record,
        _noise,
    ],
)
def test_what_is_no_record_is_counted_and_the_healthy_rank_is_sent(agent, healthy, put):
    put(healthy.path.parent, healthy.path)
    assert agent.go_on() == {("run", 0)}
    assert agent.samples()["instep_rank_records_invalid"] == 1.0


def test_without_any_of_it_nothing_is_counted(agent, healthy):
    assert agent.go_on() == {("run", 0)}
    assert agent.samples()["instep_rank_records_invalid"] == 0.0


@pytest.mark.parametrize("level", ["run", "attempt"])
def test_a_folder_that_is_a_link_is_not_followed(agent, healthy, tmp_path, level):
    away = new_writer(tmp_path / "away", 1, run="elsewhere").path
    node = tmp_path / "node-a"
    if level == "run":
        (node / "elsewhere").symlink_to(away.parents[1])
    else:
        (node / "elsewhere").mkdir()
        (node / "elsewhere/0").symlink_to(away.parent)
    assert agent.go_on() == {("run", 0)}


def test_thousands_of_junk_files_hide_no_rank_and_stop_no_source(agent, healthy, tmp_path):
    for number in range(1000):
        (healthy.path.parent / f"junk {number}").touch()
        (healthy.path.parent / str(1000 + number)).write_bytes(b"junk")
        (tmp_path / "node-a" / f"junk-{number}").touch()
    assert agent.go_on(20) == {("run", 0)}
    assert agent.samples()["instep_rank_records_invalid"] == walk.RANKS_MAX - 1


def test_newer_folders_hide_no_rank_that_is_known(agent, healthy, tmp_path):
    assert agent.go_on() == {("run", 0)}
    for number in range(2 * walk.RUNS_MAX):
        (tmp_path / f"node-a/newer-{number}").mkdir()
    assert agent.go_on() == {("run", 0)}


def test_a_record_cut_short_between_two_reads_stays_as_it_was(agent, healthy):
    assert agent.go_on() == {("run", 0)}
    os.truncate(healthy.path, 100)
    assert agent.go_on() == {("run", 0)}
    os.truncate(healthy.path, 0)
    assert agent.go_on() == {("run", 0)}


def test_a_record_that_is_rewritten_while_it_is_read_harms_nobody(agent, healthy):
    other = new_writer(healthy.path.parents[3], 1)
    whole, noise, stop = other.path.read_bytes(), random.Random(1), threading.Event()

    def rewrite():
        with other.path.open("r+b") as file:
            while not stop.is_set():
                file.seek(noise.randrange(len(whole)))
                file.write(noise.randbytes(64))
                file.truncate(noise.randrange(len(whole)))
                file.seek(0)
                file.write(whole)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        assert ("run", 0) in agent.go_on(200)
    finally:
        stop.set()
        thread.join(10)


@pytest.mark.skipif(os.getuid() != 0, reason="Gives a file to another user: needs root.")
def test_a_record_of_another_user_says_nothing_of_this_users_process(agent, healthy):
    os.chown(healthy.path, 12_345, 12_345)
    agent.go_on()
    (place,) = {report.place for frame in agent.frames for report in frame.ranks if report.place}
    assert (place.pid, place.missing) == (0, ("owner",))


def _seal(slot):
    """Give the slot with the sequence at both ends and the right checksum."""
    body = slot[: -layout.TAIL.size]
    return body + layout.TAIL.pack(crc32(body), int.from_bytes(body[:8], "little") & 0xFFFFFFFF)


_NUMBERS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**31, 2**62, 2**63, 2**64 - 1]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["heartbeat", "group", "live", "step", "collective"]), st.lists(_NUMBERS))))
def test_whatever_sealed_slots_hold_the_report_can_be_sent(tmp_path, slots):
    writer = new_writer(tmp_path, run=f"run-{random.getrandbits(64):x}")
    writer.enter(writer.declare_group([0, 1]), 1, 1, 64)
    regions = layout.lay_out(groups=4, steps=8, collectives=16)
    with writer.path.open("r+b") as file:
        for name, numbers in slots:
            region = getattr(regions, name)
            slot = bytearray(region.slot_bytes)
            body = struct.pack(f"<Q{len(numbers)}Q", 1, *numbers)[: region.slot_bytes - layout.TAIL.size]
            slot[: len(body)] = body
            file.seek(region.at(1 if name == "step" else 0))
            file.write(_seal(bytes(slot)))
    source = RankRecords()
    said = list(source.collect(Node("node-a", record_root=tmp_path)))
    source.close()
    writer.path.unlink()
    (report,) = (each for each in said if isinstance(each, RankReport))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=RankReport).rank == report.rank


def _with_large_groups(root, rank, groups):
    """Write a record whose every group claims as many members as are believed."""
    writer = new_writer(root, rank, groups=groups)
    region = layout.lay_out(groups=groups, steps=8, collectives=16).group
    text = b"0-65535"
    with writer.path.open("r+b") as file:
        for slot in range(groups):
            body = layout.GROUP.pack(1, slot, 0, 65_536, 0, 0, len(text), b"", text)
            file.seek(region.at(slot))
            file.write(_seal(body + bytes(region.slot_bytes - len(body))))


def test_groups_that_claim_enormous_sizes_take_bounded_memory(agent, tmp_path):
    for rank in range(12):
        _with_large_groups(tmp_path, rank, 60)
    tracemalloc.start()
    try:
        agent.go_on(1)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()
    held = sum(watched.reader.members_held for watched in agent.records._watched.values())
    assert held <= rank_records.MEMBERS_HELD_MAX
    assert 8 * reader.MEMBERS_HELD_MAX == rank_records.MEMBERS_HELD_MAX


def test_steps_come_in_parts_and_none_is_lost(tmp_path):
    writer = new_writer(tmp_path, steps=3000)
    for step in range(1, 2501):
        writer.finish_step(step, 0.001)
    source, node = RankRecords(), Node("node-a", record_root=tmp_path)
    parts = [next(each for each in source.collect(node) if not isinstance(each, Sample)).steps for _ in range(4)]
    source.close()
    assert [len(part) for part in parts] == [1024, 1024, 452, 0]
    assert [step.step for part in parts for step in part] == list(range(1, 2501))
