"""What is acknowledged is in the journal; a torn end is cut off and hides nothing."""

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_collector.errors import JournalError, StartError
from instep_collector.journal import Journal, RecordKind, decode_records, encode_record


def opened(folder, **limits):
    journal = Journal(folder, **limits)
    journal.open()
    return journal


def write(journal, *payloads):
    async def story():
        await asyncio.gather(*(journal.append(RecordKind.FRAME, 1.5, payload) for payload in payloads))

    asyncio.run(story())


def payloads(folder):
    return [record.payload for record in Journal(folder).replay()]


def test_records_come_back_in_order_without_a_close(tmp_path):
    journal = opened(tmp_path)
    write(journal, b"a", b"", b"c" * 5000)
    assert payloads(tmp_path) == [b"a", b"", b"c" * 5000]
    journal.close()


@pytest.mark.parametrize("cut", range(1, 22))
def test_a_torn_tail_is_cut_at_start_and_later_records_are_readable(tmp_path, cut):
    journal = opened(tmp_path)
    write(journal, b"kept", b"torn")
    journal.close()
    (path,) = tmp_path.glob("*.log")
    os.truncate(path, path.stat().st_size - cut)
    journal = opened(tmp_path)
    assert journal.cut_bytes == len(encode_record(1, 1.5, b"torn")) - cut
    write(journal, b"after")
    journal.close()
    assert payloads(tmp_path) == [b"kept", b"after"]


def test_a_damaged_record_ends_its_file_only(tmp_path):
    journal = opened(tmp_path, segment_bytes=60)
    write(journal, b"x" * 30)
    write(journal, b"y" * 30)
    journal.close()
    first, second = sorted(tmp_path.glob("*.log"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    assert payloads(tmp_path) == [b"y" * 30]
    assert second.exists()


def test_an_empty_file_of_a_killed_start_is_begun_again(tmp_path):
    (tmp_path / "00000001.log").write_bytes(b"INS")
    journal = opened(tmp_path)
    write(journal, b"a")
    journal.close()
    assert payloads(tmp_path) == [b"a"]


def test_old_files_go_when_there_are_too_many(tmp_path):
    journal = opened(tmp_path, segment_bytes=200, segments_max=3)
    for number in range(20):
        write(journal, b"%03d" % number * 30)
    journal.close()
    assert len(list(tmp_path.glob("*.log"))) == 3
    assert payloads(tmp_path)[-1] == b"019" * 30


def test_a_full_disk_acknowledges_nothing_and_leaves_no_half_record(tmp_path, monkeypatch):
    journal = opened(tmp_path)
    write(journal, b"kept")
    real, calls = os.write, []

    def full(descriptor, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, bytes(data)[:7])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JournalError, match="No space left"):
        write(journal, b"lost")
    monkeypatch.undo()
    write(journal, b"after")
    journal.close()
    assert payloads(tmp_path) == [b"kept", b"after"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="--state-dir"):
        Journal(tmp_path / "file" / "journal").open()


@given(
    st.lists(st.tuples(st.integers(0, 255), st.floats(allow_nan=False), st.binary(max_size=200)), max_size=5),
    st.binary(max_size=40),
)
def test_encode_then_decode_is_the_identity_whatever_follows(records, tail):
    data = b"".join(encode_record(*record) for record in records)
    found = [(record.kind, record.realtime, record.payload) for record, _ in decode_records(data + tail)]
    assert found[: len(records)] == records
