"""Torn, foreign, hostile and older records: a reader says so, or says less; it never says something wrong."""

import json
import os
import struct
import subprocess
import sys
import time
from zlib import crc32

import make_vectors
import pytest
from instep_agent.rank_record import (
    CompletedSource,
    Op,
    Phase,
    RecordInvalid,
    RecordNoRoom,
    RecordReader,
    RecordStale,
    RecordVersionUnknown,
    decode,
    layout,
    read_record,
    report,
)
from made_records import new_writer, report_of


def test_the_vector_is_made_bit_for_bit(tmp_path):
    assert make_vectors.write_record(tmp_path).read_bytes() == (make_vectors.HERE / "record-1.0.bin").read_bytes()


def test_the_vector_reads_as_it_did(tmp_path):
    assert make_vectors.reading_of(make_vectors.HERE / "record-1.0.bin") == json.loads(
        (make_vectors.HERE / "record-1.0.json").read_text()
    )


def _slots_before_and_after(writer, region, slot, change):
    """The bytes of one slot before and after `change`."""
    at, size = region.at(slot), region.slot_bytes
    before = writer.path.read_bytes()[at : at + size]
    change()
    return before, writer.path.read_bytes()[at : at + size]


def _torn(before, after):
    """Every state that a store cut off after some byte leaves, whichever end it begins at."""
    for cut in range(len(before) + 1):
        yield after[:cut] + before[cut:]
        yield before[:cut] + after[cut:]


def test_a_heartbeat_torn_at_any_byte_gives_a_whole_one(tmp_path):
    writer = new_writer(tmp_path)
    for number in range(1, 6):
        writer.heartbeat(number, number, Phase.data)
    region = layout.lay_out(groups=4, steps=8, collectives=16).heartbeat
    slot = 7 % 2  # `create` has written one heartbeat, so the next is number 7
    before, after = _slots_before_and_after(writer, region, slot, lambda: writer.heartbeat(6, 6, Phase.data))
    assert before != after
    for torn in _torn(before, after):
        with writer.path.open("r+b") as file:
            file.seek(region.at(slot))
            file.write(torn)
        beat = read_record(writer.path).heartbeat
        assert beat.step == beat.micro_step
        assert beat.step == (6 if torn == after else 5)


def test_a_collective_torn_at_any_byte_is_old_new_or_absent(tmp_path):
    writer = new_writer(tmp_path)
    group = writer.declare_group([0, 1])
    token = writer.enter(group, 1, Op.all_reduce, 8)
    region = layout.lay_out(groups=4, steps=8, collectives=16).collective
    before, after = _slots_before_and_after(
        writer, region, token, lambda: writer.completed(token, CompletedSource.polled)
    )
    whole = {decode.decode_collective(before), decode.decode_collective(after)}
    assert len(whole) == 2
    assert {decode.decode_collective(torn) for torn in _torn(before, after)} == whole | {None}


def test_a_torn_live_slot_leaves_the_one_before(tmp_path):
    writer = new_writer(tmp_path)
    group = writer.declare_group([0, 1])
    region = layout.lay_out(groups=4, steps=8, collectives=16).live
    writer.enter(group, 1, Op.all_reduce, 8)
    before, after = _slots_before_and_after(writer, region, 0, lambda: writer.enter(group, 2, Op.broadcast, 9))
    assert before != after
    for torn in _torn(before, after):
        with writer.path.open("r+b") as file:
            file.seek(region.at(0))
            file.write(torn)
        (state,) = read_record(writer.path).groups
        assert (state.live.seq, state.live.op) == ((2, Op.broadcast) if torn == after else (1, Op.all_reduce))


def test_a_step_torn_at_any_byte_is_left_out_and_read_when_whole(tmp_path):
    writer = new_writer(tmp_path, steps=2)
    region = layout.lay_out(groups=4, steps=2, collectives=16).step
    writer.finish_step(1, 0.1)
    before, after = _slots_before_and_after(writer, region, 1, lambda: [writer.finish_step(n, 0.1) for n in (2, 3)])
    for torn in _torn(before, after):
        with writer.path.open("r+b") as file:
            file.seek(region.at(1))
            file.write(torn)
        found = [step.step for step in read_record(writer.path).steps]
        assert found == ([2, 3] if torn == after else [1, 2] if torn == before else [2])


def test_an_identity_torn_at_any_byte_is_the_one_before(tmp_path):
    writer = new_writer(tmp_path)
    region = layout.lay_out(groups=4, steps=8, collectives=16).identity
    before, after = _slots_before_and_after(writer, region, 0, lambda: writer.update_identity(gpu="GPU-new"))
    for cut in [*range(200), *range(region.slot_bytes - 16, region.slot_bytes)]:
        with writer.path.open("r+b") as file:
            file.seek(region.at(0))
            file.write(torn := after[:cut] + before[cut:])
        assert read_record(writer.path).identity.gpu == ("GPU-new" if torn == after else "")


def test_a_file_still_being_created_is_not_a_record_yet(tmp_path):
    writer = new_writer(tmp_path)
    with writer.path.open("r+b") as file:
        file.write(bytes(8))
    with pytest.raises(RecordInvalid, match="still being created"):
        read_record(writer.path)


@pytest.mark.parametrize("keep_bytes", [0, 7, 100, 192, 5000, 20_000])
def test_a_truncated_record_is_refused(tmp_path, keep_bytes):
    writer = new_writer(tmp_path)
    writer.close()
    os.truncate(writer.path, keep_bytes)
    with pytest.raises(RecordInvalid):
        read_record(writer.path)


def test_truncation_under_an_open_reader_loses_only_what_is_gone(tmp_path):
    writer = new_writer(tmp_path)
    writer.declare_group([0, 1])
    with RecordReader(writer.path) as reader:
        reader.read()
        writer.close()
        os.truncate(writer.path, 100)
        record = reader.read()
    assert record.identity.rank == 0
    assert record.groups[0].live is None
    said = report(record, now_monotonic_ns=time.monotonic_ns()).groups[0]
    assert (said.entered_seq, said.returned_seq, said.completed_seq) == (None, None, None)


def test_a_link_is_not_followed(tmp_path):
    writer = new_writer(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(writer.path)
    with pytest.raises(RecordInvalid, match="Cannot open"):
        read_record(link)


def test_a_fifo_does_not_block_the_reader(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RecordInvalid, match="regular file"):
        read_record(tmp_path / "fifo")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(RecordInvalid, match="regular file"):
        read_record(tmp_path)
    with pytest.raises(RecordInvalid, match="Cannot open"):
        read_record(tmp_path / "none")


def test_a_huge_sparse_file_is_refused(tmp_path):
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    with pytest.raises(RecordInvalid, match="larger"):
        read_record(tmp_path / "huge")


def test_the_wrong_owner_is_not_believed(tmp_path):
    writer = new_writer(tmp_path)
    assert read_record(writer.path, uid=os.getuid())
    with pytest.raises(RecordInvalid, match="belongs to user"):
        read_record(writer.path, uid=os.getuid() + 1)


def _with_header(path, **changes):
    """Rewrite fields of the header by their place, with a right checksum."""
    data = bytearray(path.read_bytes())
    fields = list(layout.HEADER.unpack_from(data))
    for place, value in changes.items():
        fields[int(place[1:])] = value
    layout.HEADER.pack_into(data, 0, *fields)
    struct.pack_into("<I", data, layout.HEADER_CRC_AT, crc32(bytes(data[: layout.HEADER_CRC_AT])))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("f3", 16),
        ("f3", 2**31),
        ("f4", 2**60),
        ("f5", 0),
        ("f5", 2**40),
        *((f"f{place}", value) for place in range(12, 30) for value in (0, 2**32 - 1)),
    ],
)
def test_absurd_numbers_in_the_header_are_refused(tmp_path, place, value):
    writer = new_writer(tmp_path)
    writer.close()
    _with_header(writer.path, **{place: value})
    with pytest.raises(RecordInvalid):
        read_record(writer.path)


def test_another_major_version_is_refused_with_what_to_do(tmp_path):
    writer = new_writer(tmp_path)
    writer.close()
    _with_header(writer.path, f1=2)
    with pytest.raises(RecordVersionUnknown, match=r"version 2\.0.*same Instep release"):
        read_record(writer.path)


def test_a_newer_minor_with_a_longer_header_is_read(tmp_path):
    writer = new_writer(tmp_path)
    writer.heartbeat(7, 0, Phase.data)
    writer.close()
    data, longer = writer.path.read_bytes(), 64
    writer.path.write_bytes(data[:192] + b"\xaa" * longer + data[192:])
    fields = layout.HEADER.unpack_from(data)
    moved = {f"f{place}": fields[place] + longer for place in range(12, 30, 3)}
    _with_header(writer.path, f2=9, f3=fields[3] + longer, f4=fields[4] + longer, **moved)
    record = read_record(writer.path)
    assert record.header.version == (1, 9)
    assert record.heartbeat.step == 7


def test_a_wrong_header_checksum_is_refused(tmp_path):
    writer = new_writer(tmp_path)
    with writer.path.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    with pytest.raises(RecordInvalid):
        read_record(writer.path)


def test_a_heartbeat_from_the_future_is_not_believed(tmp_path):
    writer = new_writer(tmp_path)
    writer.heartbeat(5, 0, Phase.data)
    said = report(read_record(writer.path), now_monotonic_ns=time.monotonic_ns() - 10**11)
    assert (said.step, said.phase, said.heartbeat_age_seconds) == (0, "unknown", 0.0)


def test_a_record_from_before_the_last_boot_is_stale(tmp_path):
    with pytest.raises(RecordStale, match="last boot"):
        report_of(new_writer(tmp_path), boot_id="another")


def test_the_process_of_a_finished_writer_is_gone(tmp_path):
    code = (
        "import sys; from instep_agent.rank_record import *; RankRecordWriter.create(sys.argv[1], "
        "RankIdentity(job='j', run='r', attempt=0, rank=0, local_rank=0, world_size=1, node='n'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=30)
    assert report_of(tmp_path / "n/r/0/0").process_state == "gone"


def test_no_room_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RecordNoRoom, match=r"no room for the rank record .* enlarge that tmpfs"):
        new_writer(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
