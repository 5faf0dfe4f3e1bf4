"""The dispatcher, as its users meet it: verbs found, verbs missing, parts not installed."""

import os
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from instep import main as dispatcher


def install(monkeypatch, **targets):
    """Put these verbs in the place of the installed ones."""
    points = [EntryPoint(name, target, "instep.commands") for name, target in targets.items()]
    monkeypatch.setattr(dispatcher, "entry_points", lambda group: points)


def module(monkeypatch, tmp_path, name, text):
    """Write an importable module, and forget it after the test."""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_installed_command_lists_every_verb():
    command = [str(Path(sys.executable).with_name("instep")), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    listed = run.stdout.split("verbs: ")[1].strip().split(", ")
    assert listed == sorted(point.name for point in entry_points(group="instep.commands"))


def test_help_is_fine_and_no_verb_at_all_is_used_wrongly(capsys):
    assert dispatcher.main(["--help"]) == 0
    assert dispatcher.main(["-h"]) == 0
    assert dispatcher.main([]) == 2
    assert capsys.readouterr().out.count("usage: instep VERB") == 3


def test_an_unknown_verb_is_used_wrongly_and_gets_one_sentence(capsys):
    assert dispatcher.main(["incidnets", "list"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "no verb 'incidnets'" in said.err
    assert "incidents" in said.err


def test_a_package_that_is_not_installed_gets_one_sentence(monkeypatch, tmp_path, capsys):
    module(monkeypatch, tmp_path, "needs_more", "import a_package_nobody_has\n\ndef main(arguments): return 0\n")
    install(monkeypatch, train="needs_more:main")
    assert dispatcher.main(["train"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'a_package_nobody_has' is missing" in said
    assert "pip install" in said


def test_a_module_of_ours_that_is_missing_is_a_fault_and_not_hidden(monkeypatch):
    install(monkeypatch, train="instep.no_such_module:main")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        dispatcher.main(["train"])


def test_a_verb_gets_the_words_after_it_and_gives_the_exit_status(monkeypatch, tmp_path, capsys):
    module(
        monkeypatch, tmp_path, "gives_back", "def main(arguments):\n    print(arguments)\n    return len(arguments)\n"
    )
    install(monkeypatch, run="gives_back:main")
    assert dispatcher.main(["run", "--nnodes", "2:3"]) == 2
    assert capsys.readouterr().out == "['--nnodes', '2:3']\n"


def test_a_verb_that_returns_nothing_is_fine(monkeypatch, tmp_path):
    module(monkeypatch, tmp_path, "says_nothing", "def main(arguments):\n    pass\n")
    install(monkeypatch, run="says_nothing:main")
    assert dispatcher.main(["run"]) == 0


def test_the_process_ends_with_the_exit_status_of_its_verb():
    command = [str(Path(sys.executable).with_name("instep")), "no-such-verb"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 2


def test_a_reader_that_has_seen_enough_is_no_traceback():
    shown = "set -o pipefail; instep catalogue show xid | head -n 1"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert run.stderr == ""
    assert len(run.stdout.splitlines()) == 1
    assert run.returncode in (0, 128 + signal.SIGPIPE)
