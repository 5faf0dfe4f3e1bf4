"""`make setup`: what it installs, when it does nothing, and what it says where it cannot.

The script is the real one, in a copy of the repository's root files; Python, pip and apt-get are stand-ins that
note how they were called.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ["bash", "cat", "chmod", "cp", "dirname", "env", "grep", "id", "mkdir", "mktemp", "rm", "sha256sum"]
TOOLS += ["tail", "uname"]

PYTHON = """#!/bin/bash
echo "python $*" >>"$CALLS"
case "$*" in
    "-m venv --clear .venv")
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        echo "command = python -m venv $PWD/.venv" >.venv/pyvenv.cfg ;;
    *" pip "*) if [ -n "${PIP_FAILS:-}" ]; then echo "ERROR: the index is away"; exit 1; fi ;;
    "-c import ensurepip, venv") if [ -n "${NO_VENV:-}" ]; then exit 1; fi ;;
    "-c import sys; print("*) echo python3.11-venv ;;
esac
"""
APT_GET = """#!/bin/bash
echo "apt-get $*" >>"$CALLS"
if [ -e "$POLICY_RC_D" ]; then echo "services stay off" >>"$CALLS"; fi
if [ -n "${APT_FAILS:-}" ]; then echo "E: Unable to locate package"; exit 100; fi
"""


class Machine:
    """A folder with the repository's root files, and a PATH with only what the test puts there."""

    def __init__(self, folder):
        self.repository, self.bin, self.calls = folder / "instep here", folder / "bin", folder / "calls"
        self.repository.mkdir()
        self.bin.mkdir()
        shutil.copytree(ROOT / ".ci", self.repository / ".ci")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.repository)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def has(self, name, script="#!/bin/bash\n"):
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def setup(self, *words, **settings):
        """Run the script; give back its exit status, what it said, and what it called."""
        self.calls.write_text("")
        environment = {
            "PATH": str(self.bin),
            "CALLS": str(self.calls),
            "TMPDIR": str(self.repository.parent),
            "POLICY_RC_D": str(self.repository.parent / "policy-rc.d"),
            **settings,
        }
        command = [str(self.repository / ".ci" / "setup"), *words]
        run = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        assert run.stdout == ""
        return run.returncode, run.stderr, self.calls.read_text()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def ready(machine):
    """A machine with Python, a browser and every service, on which set-up has run."""
    machine.has("python3.11", PYTHON)
    for command in ("chromium", "promtool", "amtool", "pg_createcluster", "gcc", "ethtool"):
        machine.has(command)
    assert machine.setup("tests")[0] == 0
    return machine


def test_installs_the_pinned_packages_into_a_venv(machine):
    machine.has("python3.11", PYTHON)
    status, said, called = machine.setup()
    assert status == 0
    assert "venv --clear .venv" in called
    assert "--constraint constraints.txt --editable .[all,dev]" in called
    assert "torch==2.13.0" in called
    assert "apt-get" not in called
    assert len(said.splitlines()) == 3


def test_does_nothing_when_up_to_date(ready):
    assert ready.setup("tests") == (0, "", "")
    assert ready.setup() == (0, "", "")


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_installs_again_into_the_same_venv_when_a_requirement_changed(ready, changed):
    with (ready.repository / changed).open("a") as file:
        file.write("# changed\n")
    status, _, called = ready.setup()
    assert status == 0
    assert "--editable .[all,dev]" in called
    assert "venv --clear" not in called


def test_makes_the_venv_anew_when_the_repository_was_moved(ready):
    ready.repository = ready.repository.rename(ready.repository.parent / "moved")
    status, _, called = ready.setup()
    assert status == 0
    assert "venv --clear" in called


def test_a_failed_installation_is_shown_and_tried_again(ready):
    (ready.repository / ".venv" / ".setup-stamp").unlink()
    status, said, _ = ready.setup(PIP_FAILS="yes")
    assert status == 1
    assert "the index is away" in said
    assert "this command failed" in said
    assert ready.setup()[0] == 0


@pytest.mark.parametrize("name", ["no python at all", "python3"])
def test_says_what_to_install_where_there_is_no_python(machine, name):
    machine.has(name, "#!/bin/bash\nexit 1\n")  # as one that is too old answers
    status, said, called = machine.setup()
    assert status == 1
    assert said == (
        "setup: Instep needs Python 3.11 or newer with its venv module: "
        "install it, or name it as in make setup PYTHON=/opt/python/bin/python3.\n"
    )
    assert called == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: otherwise apt-get is called through sudo")
def test_installs_the_venv_package_with_apt_when_only_that_is_missing(machine):
    machine.has("python3.11", PYTHON)
    machine.has("apt-get", APT_GET)
    status, said, called = machine.setup(NO_VENV="yes")
    assert status == 0
    assert "install -y -qq --no-install-recommends python3.11-venv" in called
    assert "installing python3.11-venv with apt-get" in said


def test_says_how_to_get_the_venv_package_without_apt(machine):
    machine.has("python3.11", PYTHON)
    status, said, _ = machine.setup(NO_VENV="yes")
    assert status == 1
    assert said.count("\n") == 1
    assert "apt-get install python3-venv" in said


def test_goes_on_without_a_browser_and_says_so_in_one_sentence(ready):
    (ready.bin / "chromium").unlink()
    status, said, _ = ready.setup("tests")
    assert status == 0
    assert said.count("\n") == 1
    assert "chromium is missing" in said


def test_the_build_server_does_not_go_on_without_a_browser(ready):
    (ready.bin / "chromium").unlink()
    status, said, _ = ready.setup("tests", CI="true")
    assert status == 1
    assert "chromium is missing and could not be installed" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: otherwise apt-get is called through sudo")
def test_a_browser_that_apt_cannot_install_is_named_with_its_reason(ready):
    (ready.bin / "chromium").unlink()
    ready.has("apt-get", APT_GET)
    assert "install -y -qq --no-install-recommends chromium" in ready.setup("tests")[2]
    status, said, _ = ready.setup("tests", APT_FAILS="yes")
    assert status == 0
    assert "E: Unable to locate package" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: otherwise apt-get is called through sudo")
def test_all_that_is_missing_is_installed_at_once(ready):
    for command in ("promtool", "gcc"):
        (ready.bin / command).unlink()
    ready.has("apt-get", APT_GET)
    called = ready.setup("tests")[2].splitlines()
    assert [line.partition("recommends ")[2] for line in called if " install " in line] == ["prometheus gcc libc6-dev"]
    assert "services stay off" in called
    assert not (ready.repository.parent / "policy-rc.d").exists()


def test_running_instep_needs_no_browser(ready):
    (ready.bin / "chromium").unlink()
    assert ready.setup() == (0, "", "")
