"""`instep train` on its own: one rank, and one clear sentence when something is not as it must be."""

import os
import subprocess
import sys

import pytest
from instep_trainer.train import cli
from instep_trainer.train.config import TrainConfig, parse_arguments
from instep_trainer.train.losses import LossLog, read_losses

TINY = ["--layers", "1", "--width", "8", "--heads", "2", "--sequence-length", "8", "--batch-size", "2"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def sentence(capsys, code, *arguments):
    assert cli.main(list(arguments)) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("instep train: "), said
    return said


def test_a_missing_data_folder_is_one_sentence(capsys, tmp_path):
    said = sentence(capsys, 2, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert f"The data folder {tmp_path / 'none'} is not there: give a folder of text files with --data." in said


def test_a_data_folder_without_text_is_one_sentence(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(bytes(100))
    said = sentence(capsys, 2, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    assert "holds no text" in said


def test_too_little_text_is_one_sentence(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("short")
    said = sentence(capsys, 2, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    assert "holds 5 bytes of text, too little for sequences of 64" in said


def test_an_out_folder_that_cannot_be_written_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    said = sentence(capsys, 2, "--out", str(tmp_path / "file" / "out"))
    assert "give another folder with --out" in said


def test_torch_missing_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert "PyTorch is not installed" in sentence(capsys, 3, "--out", str(tmp_path / "out"))


def test_too_little_shared_memory_is_one_sentence(capsys, tmp_path, corpus_folder, monkeypatch):
    from instep_trainer.checkpoint import room

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(room.os, "statvfs", lambda path: Full)
    said = sentence(
        capsys,
        3,
        *TINY,
        "--data",
        str(corpus_folder),
        "--out",
        str(tmp_path / "out"),
        "--checkpoint-memory",
        str(tmp_path / "memory"),
    )
    assert "too small for the checkpoint: 2 slots of 1 MB need 1 MB, 0 MB are free" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--steps", "0"], "--steps is 0: it must lie between 1 and"),
        (["--dropout", "1.5"], "--dropout is 1.5: it must lie between 0.0 and 0.9"),
        (["--width", "10", "--heads", "4"], "--width is 10 and --heads is 4"),
        (["--device", "tpu"], "--device is 'tpu': it must be auto, cpu or cuda"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(capsys, arguments, text):
    assert text in sentence(capsys, 2, *arguments)


def test_an_environment_that_is_no_launcher_s_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "four")
    assert "The environment variable WORLD_SIZE is 'four'" in sentence(capsys, 2)


def test_every_option_has_its_help(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--checkpoint-every-disk" in said and "the standard library's folder" in said


def test_the_separator_that_launchers_leave_is_taken_off(tmp_path, capsys):
    assert "is not there" in sentence(capsys, 2, "--", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))


def test_fields_are_filled_from_the_command_line():
    config = parse_arguments(["--layers", "3", "--steps", "7"])
    assert (config.model.layers, config.steps, config.batch_size) == (3, 7, TrainConfig().batch_size)


@pytest.mark.real
def test_a_rank_alone_trains_evaluates_and_resumes_from_disk(tmp_path, corpus_folder):
    command = [
        sys.executable,
        "-m",
        "instep_trainer.train",
        *TINY,
        "--data",
        str(corpus_folder),
        "--out",
        str(tmp_path),
        "--checkpoint-every-disk",
        "4",
        "--evaluate-every",
        "5",
    ]
    environment = dict(os.environ)
    first = subprocess.run([*command, "--steps", "10"], capture_output=True, text=True, env=environment, timeout=60)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("held-out loss") == 2
    second = subprocess.run([*command, "--steps", "12"], capture_output=True, text=True, env=environment, timeout=60)
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith("attempt 0: resumed at step 10 from disk\n")
    assert sorted(read_losses(tmp_path / "losses.jsonl")) == list(range(1, 13))


def test_a_torn_last_line_spoils_no_other(tmp_path):
    path = tmp_path / "losses.jsonl"
    log = LossLog(path)
    log.append(1, 0.1, 0)
    log.append(2, 0.2, 0)
    log.close()
    path.write_bytes(path.read_bytes()[:-9])
    assert read_losses(path) == {1: 0.1}
    log = LossLog(path)
    log.append(2, 0.25, 1)
    log.close()
    assert read_losses(path) == {1: 0.1, 2: 0.25}
    assert read_losses(tmp_path / "none") == {}
