"""Slots of one rank: what a reader finds at every moment of the writer's life."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from instep_trainer.checkpoint.errors import DamagedSnapshot
from instep_trainer.checkpoint.header import FLAG_AT, HEADER_BYTES, parse_header
from instep_trainer.checkpoint.slots import BOUNDARIES, Entry, Slots, inventory, read_snapshot, slot_path

PAYLOAD_BYTES = 1 << 16


def payload(step):
    return step.to_bytes(8, "little") * (PAYLOAD_BYTES // 8)


def write(slots, step, attempt=0):
    half = PAYLOAD_BYTES // 2
    view = memoryview(payload(step))
    slots.write(Entry(step, attempt), b"{}", PAYLOAD_BYTES, [(0, view[:half]), (half, view[half:])])


def opened(folder, rank=0, **more):
    slots = Slots(folder, rank, **more)
    slots.reserve(PAYLOAD_BYTES + 4096)
    return slots


def held(folder, rank=0):
    """Everything that a reader would believe: step → payload, digest checked."""
    found = {}
    for slot in (0, 1):
        file = os.open(slot_path(folder, rank, slot), os.O_RDONLY)
        try:
            raw = read_snapshot(file)
        except DamagedSnapshot:
            continue
        finally:
            os.close(file)
        header = parse_header(raw, len(raw))
        found[header.step] = bytes(raw[header.payload_offset : header.end])
    return found


def write_until_the_signal(folder, boundary, number):
    """Body of the child of the next test: keeps steps until the third write passes `boundary`."""
    passed = []

    def strike(name):
        passed.append(name)
        if name == boundary and passed.count("begun") == 3:
            os.kill(os.getpid(), number)

    slots = opened(folder, boundary=strike)
    for step in range(1, 9):
        write(slots, step)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_writer_that_ends_at_a_boundary_leaves_every_finished_step_whole(tmp_path, boundary, number):
    here = str(Path(__file__).parent)
    body = (
        f"import sys; sys.path.insert(0, {here!r}); import test_slots; from pathlib import Path; "
        f"test_slots.write_until_the_signal(Path({str(tmp_path)!r}), {boundary!r}, {int(number)})"
    )
    writer = subprocess.Popen([sys.executable, "-c", body])
    _pid, status = os.waitpid(writer.pid, os.WUNTRACED)
    assert os.WIFSIGNALED(status) or os.WIFSTOPPED(status)
    states = held(tmp_path)
    listed = inventory(tmp_path)[0]
    if os.WIFSTOPPED(status):
        writer.kill()
        os.waitpid(writer.pid, 0)
    writer.returncode = 0
    begun, complete = boundary == "begun", boundary == "complete"
    assert sorted(states) == ([2, 3] if complete else [1, 2] if begun else [2])
    assert states == {step: payload(step) for step in states}
    assert sorted(entry.step for entry in listed) == sorted(states)
    assert held(tmp_path) == states


def test_the_older_of_two_slots_is_written(tmp_path):
    slots = opened(tmp_path)
    for step in range(1, 6):
        write(slots, step)
    assert slots.entries == [Entry(5, 0), Entry(4, 0)]
    slots.close()
    slots = opened(tmp_path)
    write(slots, 6)
    assert sorted(held(tmp_path)) == [5, 6]
    slots.close()


def test_what_a_resume_leaves_behind_is_forgotten_and_its_own_state_outlives_the_next_write(tmp_path):
    slots = opened(tmp_path)
    write(slots, 7)
    write(slots, 8)
    slots.settle(Entry(7, 0))
    assert slots.entries == [Entry(7, 0)]
    write(slots, 8, attempt=1)
    assert inventory(tmp_path) == {0: [Entry(8, 1), Entry(7, 0)]}
    slots.close()


def test_a_state_that_fails_its_digest_is_refused(tmp_path):
    slots = opened(tmp_path)
    write(slots, 1)
    write(slots, 2)
    path = slot_path(tmp_path, 0, 1)
    raw = bytearray(path.read_bytes())
    raw[HEADER_BYTES + 5000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedSnapshot, match="does not match its digest"):
        slots.read(Entry(2, 0))
    slots.forget(Entry(2, 0))
    assert slots.entries == [Entry(1, 0)]
    write(slots, 2)
    assert sorted(held(tmp_path)) == [1, 2]
    slots.close()


def test_an_inventory_lists_only_whole_slots_and_survives_what_else_lies_there(tmp_path):
    for rank in (0, 11):
        slots = opened(tmp_path, rank)
        write(slots, 3)
        write(slots, 4)
        slots.close()
    with slot_path(tmp_path, 11, 0).open("r+b") as file:
        file.seek(FLAG_AT)
        file.write(bytes(4))
    os.truncate(slot_path(tmp_path, 0, 1), 5000)
    (tmp_path / "7.0").symlink_to(slot_path(tmp_path, 0, 0))
    (tmp_path / "8.0").mkdir()
    os.mkfifo(tmp_path / "9.0")
    (tmp_path / "10.1").write_bytes(b"")
    (tmp_path / "99999999.0").write_bytes(b"")
    (tmp_path / "note.txt").write_text("hello")
    assert inventory(tmp_path) == {0: [Entry(3, 0)], 11: [Entry(4, 0)]}
    assert inventory(tmp_path / "nowhere") == {}


def test_an_inventory_needs_no_torch():
    body = (
        "import sys, instep_trainer, instep_trainer.checkpoint.slots, instep_trainer.checkpoint.agree; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", body], check=True)


def test_a_snapshot_larger_than_its_slot_is_refused_before_anything_is_touched(tmp_path):
    slots = opened(tmp_path)
    write(slots, 1)
    write(slots, 2)
    with pytest.raises(ValueError, match="does not fit its slot"):
        slots.write(Entry(3, 0), b"{}", 10 * PAYLOAD_BYTES, [])
    assert sorted(held(tmp_path)) == [1, 2]
    slots.close()


def test_slots_grow_and_keep_what_they_hold(tmp_path):
    slots = opened(tmp_path)
    write(slots, 1)
    slots.close()
    slots = opened(tmp_path)
    slots.reserve(4 * PAYLOAD_BYTES)
    assert held(tmp_path) == {1: payload(1)}
    slots.close()
