"""Checkpoints on disk: whole or not there, the newest kept."""

import pytest

torch = pytest.importorskip("torch")

from instep_trainer.checkpoint import disk  # noqa: E402
from instep_trainer.checkpoint.errors import DamagedSnapshot  # noqa: E402
from instep_trainer.checkpoint.snapshot import Snapshot, decode, encode  # noqa: E402
from instep_trainer.errors import UsageError  # noqa: E402


def saved(folder, *steps, keep_last=2):
    for step in steps:
        snapshot = Snapshot(step, 0, {"a": torch.full((3,), float(step))}, {})
        disk.save(folder, step, encode(snapshot), keep_last=keep_last)


def test_the_newest_are_kept_and_nothing_else_is_left(tmp_path):
    saved(tmp_path / "c", 10, 20, 30)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-20.instep", "step-30.instep"]
    assert decode(disk.newest(tmp_path / "c")).tensors["a"].tolist() == [30.0] * 3


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path):
    saved(tmp_path, 1, 2)
    raw = bytearray((tmp_path / "step-2.instep").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "step-2.instep").write_bytes(raw)
    with pytest.raises(DamagedSnapshot):
        disk.load(tmp_path, 2)
    assert decode(disk.newest(tmp_path)).step == 1


def test_a_checkpoint_cut_short_or_empty_is_passed_over(tmp_path):
    saved(tmp_path, 1, 2, 3, keep_last=3)
    (tmp_path / "step-3.instep").write_bytes(b"")
    (tmp_path / "step-2.instep").write_bytes((tmp_path / "step-2.instep").read_bytes()[:100])
    assert decode(disk.newest(tmp_path)).step == 1
    assert disk.newest(tmp_path / "nowhere") is None


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"Cannot write to .*out \(Not a directory\): give another folder with --out"):
        disk.check_writable(tmp_path / "file" / "out")
