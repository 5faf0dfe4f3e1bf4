"""`instep bench interference`: its sums, and whose CPU it counts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from instep.bench import interference
from instep.local.processes import Started

CORES = os.cpu_count() or 1


def windows(*, share: float, slower: float, count: int = 12) -> list[tuple[float, float, float]]:
    """Steps of 50 ms that differ by a little noise, with and without an agent."""
    noise = [0.001 * (number % 5 - 2) for number in range(count)]
    return [(0.05 * (1 + slower + each), 0.05 * (1 - each), share * CORES * 0.05) for each in noise]


def test_an_agent_within_its_bars_is_fine(capsys):
    assert interference.report(windows(share=0.001, slower=0.0)) == 0
    said = capsys.readouterr().out
    assert "0.100% (limit 0.25%)" in said
    assert "half-width" in said


@pytest.mark.parametrize("costs", [{"share": 0.004, "slower": 0.0}, {"share": 0.001, "slower": 0.05}])
def test_an_agent_that_takes_too_much_or_slows_steps_is_not(costs):
    assert interference.report(windows(**costs)) == 1


BURN = """
import sys, time
until = time.process_time() + 0.3
while time.process_time() < until:
    pass
print("done", flush=True)
sys.stdin.read()
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"


def test_the_children_of_the_agent_are_counted():
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"done\n"
    used = interference.cpu_seconds(Started("agent", process, Path()))
    process.communicate(timeout=20)
    assert used >= 0.3
