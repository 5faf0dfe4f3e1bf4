"""The spool: bounded in bytes and age, samples before events, and whole after whatever end."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_agent.columns import column_of
from instep_agent.errors import ConfigurationInvalid
from instep_agent.node import Fact, Node
from instep_agent.uplink import spool_slot
from instep_agent.uplink.frames import FrameBuilder, Tick
from instep_agent.uplink.spool import Spool
from instep_agent.wire import Frame, Sample

SAMPLES = [Sample(name="x_bytes", labels=(("n", str(n)),), value=1.0) for n in range(50)]


SPARE_BYTES = 8
"""Frames of one content differ by so much at most: how sure their clock readings are takes one to five bytes."""


class Frames:
    """Makes encoded frames; a text makes one with an event."""

    def __init__(self):
        self.builder = FrameBuilder(Node("node-a"))

    def __call__(self, text=""):
        facts = [Fact("kernel_line", text, 1, 1)] if text else []
        return msgspec.msgpack.encode(self.builder.build(Tick(facts=facts), [column_of(SAMPLES)]))


def fill(spool, *texts):
    frames = Frames()
    for text in texts:
        spool.append(frames(text), has_events=bool(text))


def drain(spool):
    """Take everything out; give each frame's sequence, its events, and whether it has values."""
    found = []
    while taken := spool.wait_oldest(0):
        frame = msgspec.msgpack.decode(taken[1], type=Frame)
        found.append((frame.sequence, [event.text for event in frame.events], bool(frame.values)))
        spool.remove(taken[0])
    return found


def shown(spool):
    return {
        (sample.name.removeprefix("instep_agent_spool_"), *dict(sample.labels).values()): sample.value
        for sample in spool.samples()
    }


def test_beyond_its_bytes_the_oldest_samples_go_and_no_event(tmp_path):
    one = len(Frames()()) + SPARE_BYTES
    spool = Spool(tmp_path, bytes_max=4 * one)
    fill(spool, "", "fault", "", "", "", "", "other", "")
    assert spool.size_bytes <= 4 * one
    kept = drain(spool)
    assert [(number, events) for number, events, _ in kept if events] == [(2, ["fault"]), (7, ["other"])]
    assert [number for number, events, _ in kept if not events] == [6, 8], "the newest samples"
    assert not kept[0][2], "what stood beside the old event went before it"
    assert kept[-2][2], "what stands beside the new event is newer than what was given up"
    assert spool.dropped == {"samples": 4, "stripped": 1, "events": 0, "torn": 0}
    assert list(tmp_path.glob("*.frame")) == []


def test_a_frame_that_is_on_its_way_is_not_given_up_nor_counted_so(tmp_path):
    one = len(Frames()()) + SPARE_BYTES
    spool = Spool(tmp_path, bytes_max=3 * one)
    fill(spool, "", "", "")
    entry, _ = spool.wait_oldest(0.0)
    fill(spool, "", "")
    assert spool.size_bytes <= 3 * one
    spool.remove(entry)  # it has arrived
    assert [number for number, _, _ in drain(spool)] == [1, 2], "those that were added last"
    assert spool.dropped["samples"] == 2


def test_a_frame_that_did_not_get_through_is_the_first_to_go_again(tmp_path):
    one = len(Frames()()) + SPARE_BYTES
    spool = Spool(tmp_path, bytes_max=3 * one)
    fill(spool, "", "", "")
    spool.wait_oldest(0.0)
    spool.let_go()
    fill(spool, "")
    assert [number for number, _, _ in drain(spool)] == [2, 3, 1], "the second, the third, and the one added last"


def test_only_events_alone_push_out_events_and_that_is_said(tmp_path, caplog):
    spool = Spool(tmp_path, bytes_max=3000)
    fill(spool, *[f"event {number}" for number in range(40)])
    kept = drain(spool)
    assert 0 < len(kept) < 40
    assert [events for _, events, _ in kept] == [[f"event {number}"] for number in range(40 - len(kept), 40)]
    assert spool.dropped["events"] == 40 - len(kept)
    assert caplog.text.count("full of events alone") == 1


def test_beyond_its_age_samples_go_and_events_stay(tmp_path):
    now = [100.0]
    spool = Spool(tmp_path, age_seconds_max=10, clock_seconds=lambda: now[0])
    fill(spool, "", "event")
    now[0] = 105.0
    fill(spool, "")
    assert shown(spool)[("oldest_age_seconds",)] == 5.0
    now[0] = 111.0
    assert [events for _, events, _ in drain(spool)] == [["event"], []]
    assert spool.dropped == {"samples": 1, "stripped": 1, "events": 0, "torn": 0}


def test_a_later_agent_takes_over_frames_with_their_order_and_kind(tmp_path):
    fill(Spool(tmp_path), "", "event", "")
    later = Spool(tmp_path)
    assert len(later) == 3
    fill(later, "new")
    assert [(events, values) for _, events, values in drain(later)] == [
        ([], True),
        (["event"], True),
        ([], True),
        (["new"], True),
    ]


def test_a_torn_file_is_left_out_and_the_rest_arrives(tmp_path, caplog):
    fill(Spool(tmp_path), "one", "two", "three", "four")
    two, three, _four = sorted(tmp_path.glob("*.frame"))  # the first is in the slot
    two.write_bytes(two.read_bytes()[:-7])
    three.write_bytes(b"")
    (tmp_path / "0000000000000009-events.partial").write_bytes(b"half a frame")
    later = Spool(tmp_path)
    assert [events for _, events, _ in drain(later)] == [["one"], ["four"]]
    assert later.dropped["torn"] == 2
    assert later.size_bytes == 0
    assert list(tmp_path.glob("*.partial")) == []


def test_a_bit_that_changed_on_disk_is_found_out(tmp_path, caplog):
    fill(Spool(tmp_path), "one", "two")
    path = min(tmp_path.glob("*.frame"))
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data)
    assert [events for _, events, _ in drain(Spool(tmp_path))] == [["one"]]


@pytest.mark.parametrize("harm", [lambda data: data[:-7], lambda data: data[:40], lambda data: b"junk" * 40])
def test_a_torn_slot_is_left_out_and_used_again(tmp_path, harm):
    fill(Spool(tmp_path), "one", "two")
    slot = tmp_path / spool_slot.NAME
    slot.write_bytes(harm(slot.read_bytes()))
    later = Spool(tmp_path)
    assert [events for _, events, _ in drain(later)] == [["two"]]
    assert later.dropped["torn"] == 1
    fill(later, "three")
    assert [events for _, events, _ in drain(Spool(tmp_path))] == [["three"]]


def test_what_was_acknowledged_is_not_taken_over_and_what_was_not_is(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, "a long event that is acknowledged")
    assert drain(spool)
    assert len(Spool(tmp_path)) == 0
    fill(spool, "short")
    assert [events for _, events, _ in drain(Spool(tmp_path))] == [["short"]]
    assert len(Spool(tmp_path)) == 0


def test_a_server_that_keeps_up_costs_one_file_for_all_frames(tmp_path):
    spool = Spool(tmp_path)
    for text in ("one", "two", "three"):
        fill(spool, text)
        assert list(tmp_path.glob("*.frame")) == []
        assert [events for _, events, _ in drain(spool)] == [[text]]


@pytest.mark.parametrize("first", ["", "x" * 20_000])
def test_the_folder_itself_keeps_the_bound(tmp_path, first):
    one = len(Frames()()) + SPARE_BYTES
    spool = Spool(tmp_path, bytes_max=4 * one + len(first))
    frames, most = Frames(), 0
    spool.append(frames(first), has_events=bool(first))
    spool.remove(spool.wait_oldest(0)[0])
    for _ in range(12):
        spool.append(frames(), has_events=False)
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    heads = 5 * spool_slot._HEAD.size
    assert 3 * one < most <= 4 * one + len(first) + heads


def test_a_slot_takes_little_more_room_than_the_frame_in_it(tmp_path):
    spool = Spool(tmp_path)
    for text in ("x" * 100_000, "short"):
        fill(spool, text)
        spool.remove(spool.wait_oldest(0)[0])
    assert (tmp_path / spool_slot.NAME).stat().st_size < 10_000


def test_a_slot_that_somebody_removed_is_made_again(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, "one")
    drain(spool)
    (tmp_path / spool_slot.NAME).unlink()
    fill(spool, "two")
    assert [events for _, events, _ in drain(Spool(tmp_path))] == [["two"]]


def test_a_frame_that_is_being_sent_may_be_given_up_meanwhile(tmp_path):
    spool = Spool(tmp_path, bytes_max=2 * len(Frames()()))
    fill(spool, "")
    sending, _ = spool.wait_oldest(0)
    fill(spool, "", "", "")
    spool.remove(sending)
    assert spool.size_bytes == sum(len(data) for _, data in iter(lambda: taken(spool), None))


def taken(spool):
    found = spool.wait_oldest(0)
    if found:
        spool.remove(found[0])
    return found


def test_its_fill_level_is_shown(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, "", "event")
    values = shown(spool)
    assert values[("frames",)] == 2
    assert values[("bytes",)] == spool.size_bytes > 0
    assert {key[1] for key in values if key[0] == "dropped_total"} == {"samples", "stripped", "events", "torn"}


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    spool = Spool(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("instep_agent.uplink.spool._write", full)
    fill(spool, "event", "")
    spool.keep_dictionary("hash", b"x")
    assert [events for _, events, _ in drain(spool)] == [["event"], []]
    assert spool.size_bytes == 0


def test_a_spool_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationInvalid, match="Cannot use the spool folder"):
        Spool(tmp_path / "file")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 12))
def test_whatever_comes_the_bound_holds_in_order_and_events_outlive_samples(tmp_path_factory, kinds, room):
    bytes_max = room * 1500
    spool = Spool(tmp_path_factory.mktemp("spool"), bytes_max=bytes_max)
    fill(spool, *[f"event {number}" if is_event else "" for number, is_event in enumerate(kinds)])
    assert spool.size_bytes <= bytes_max or len(spool) == 1
    dropped = dict(spool.dropped)
    kept = drain(spool)
    assert [number for number, _, _ in kept] == sorted(number for number, _, _ in kept)
    assert len(kept) + dropped["samples"] + dropped["events"] == len(kinds)
    if dropped["events"]:
        assert not any(values for _, _, values in kept[:-1]), "no sample is kept where an event was given up"
    assert math.isclose(spool.size_bytes, 0)
