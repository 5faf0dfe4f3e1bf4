"""`instep inject` for the faults of a node: what it says when it cannot, and what it leaves behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from drilled_node import INJECT
from instep_agent import inject as package
from instep_agent.inject.faults import BY_NAME, NODE_FAULTS
from nvml_scenario import Scenario


def run(*arguments):
    command = [*INJECT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_the_list_names_every_module_that_is_a_fault():
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    used = {type(fault).__module__.rpartition(".")[2] for fault in NODE_FAULTS}
    assert modules - used == {"__init__", "cli", "faults", "injection", "places"}


def test_the_list_is_printed_without_a_node():
    code, printed, _ = run("--list")
    assert code == 0
    assert all(name in printed for name in (*BY_NAME, "kill", "slow"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("xid",), "--pci is missing"),
        (("thermal",), "--gpu is missing"),
        (("oom",), "--pid is missing"),
        (("thermal", "--gpu", 0, "--for", 0), "--for is 0"),
        (("ecc-corrected", "--gpu", 0, "--count", 0), "--count is 0"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(arguments, sentence):
    code, _, said = run(*arguments, "--node", "n1")
    assert code == 2
    assert sentence in said
    assert said.count("\n") == 1


def test_a_place_that_is_not_there_is_said_with_status_3(tmp_path):
    code, _, said = run("oom", "--pid", 7, "--node", "n1", "--kernel-log", tmp_path / "none")
    assert (code, "Cannot write" in said) == (3, True)
    code, _, said = run("thermal", "--gpu", 0, "--node", "n1", "--drills", tmp_path, "--scenario", tmp_path / "none")
    assert (code, "Cannot read the scenario" in said) == (3, True)
    assert list(tmp_path.iterdir()) == [], "no drill is left behind"


def test_at_its_end_a_drill_leaves_scenario_and_folder_as_they_were(tmp_path):
    scenario = Scenario(tmp_path / "scenario.txt")
    scenario.healthy()
    before = scenario.path.read_text()
    drills = tmp_path / "drills"
    code, _, _ = run(
        "thermal", "--gpu", 0, "--node", "n1", "--for", 0.1, "--drills", drills, "--scenario", scenario.path
    )
    assert (code, scenario.path.read_text(), list(drills.iterdir())) == (0, before, [])


def test_the_command_is_the_one_of_the_dispatcher():
    done = subprocess.run(
        [sys.executable, "-m", "instep", "inject", "--list"], capture_output=True, text=True, timeout=60
    )
    assert "driver-hang" in done.stdout
