"""Folders that others may write to: absent, unreadable and empty are three answers."""

import errno
import os

import pytest
from instep_agent.folders import FOLDER_FLAGS, Folder, names


@pytest.fixture
def parent(tmp_path):
    descriptor = os.open(tmp_path, FOLDER_FLAGS)
    yield descriptor
    os.close(descriptor)


def looked_into(name, parent):
    """Whether it was opened, what was in it, and the problem."""
    folder = Folder(name, parent)
    with folder as descriptor:
        return descriptor >= 0, names(descriptor, 9), folder.problem


def test_an_empty_folder_is_open_and_has_no_problem(tmp_path, parent):
    (tmp_path / "run").mkdir()
    assert looked_into("run", parent) == (True, [], "")
    (tmp_path / "run/1").mkdir()
    assert looked_into("run", parent) == (True, ["1"], "")


@pytest.mark.parametrize("kind", ["nothing", "file", "link", "link to nothing", "pipe"])
def test_what_is_no_folder_is_absent(tmp_path, parent, kind):
    match kind:
        case "file":
            (tmp_path / "run").touch()
        case "link":
            (tmp_path / "run").symlink_to(tmp_path)
        case "link to nothing":
            (tmp_path / "run").symlink_to("nowhere")
        case "pipe":
            os.mkfifo(tmp_path / "run")
    assert looked_into("run", parent) == (False, [], "")


@pytest.mark.parametrize(
    ("code", "problem"),
    [(errno.EACCES, "permission denied"), (errno.EMFILE, "too many open files"), (errno.EIO, "input/output error")],
)
def test_what_cannot_be_looked_into_says_why(tmp_path, parent, monkeypatch, code, problem):
    (tmp_path / "run").mkdir()
    opened = os.open

    def refuse(name, *arguments, **options):
        if name == "run":
            raise OSError(code, os.strerror(code))
        return opened(name, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert looked_into("run", parent) == (False, [], problem)


def test_beneath_a_folder_that_is_not_open_nothing_has_a_problem():
    assert looked_into("run", -1) == (False, [], "")
