"""Too little shared memory is found out at start, and said in one sentence."""

import os
import subprocess

import pytest
from instep_trainer.checkpoint import room
from instep_trainer.checkpoint.slots import Slots
from instep_trainer.errors import CannotRun

MEGA = 1_000_000


class Free:
    f_frsize = 4096

    def __init__(self, size_bytes):
        self.f_bavail = size_bytes // 4096


def test_too_little_room_is_one_sentence_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(room.os, "statvfs", lambda path: Free(8 * MEGA + 4096))
    with pytest.raises(CannotRun) as caught:
        room.check_room(tmp_path / "a" / "checkpoint", 2, 12 * MEGA - 4096)
    assert "too small for the checkpoint: 4 slots of 12 MB need 48 MB, 8 MB are free: make" in str(caught.value)
    assert caught.value.exit_code == 3


def test_slots_that_are_there_already_count_as_room(tmp_path, monkeypatch):
    slots = Slots(tmp_path, 0)
    slots.reserve(2 * MEGA)
    monkeypatch.setattr(room.os, "statvfs", lambda path: Free(0))
    room.check_room(tmp_path, 1, 2 * MEGA - 4096)
    with pytest.raises(CannotRun):
        room.check_room(tmp_path, 2, 2 * MEGA - 4096)
    slots.close()


@pytest.fixture
def small_memory(tmp_path):
    folder = tmp_path / "shm"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_memory_that_is_full_is_found_at_start_and_again_at_allocation(small_memory):
    with pytest.raises(CannotRun, match=rf"{small_memory} too small for the checkpoint: 8 slots of 2 MB need 16 MB"):
        room.check_room(small_memory / "node" / "run" / "checkpoint", 4, 2 * MEGA - 4096)
    slots = Slots(small_memory / "checkpoint", 0)
    with pytest.raises(CannotRun, match="too small for the checkpoint"):
        slots.reserve(6 * MEGA)
    assert os.statvfs(small_memory).f_bavail > 0
    slots.close()
