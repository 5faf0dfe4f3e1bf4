"""Stacks of real processes in the three states that matter: asleep, stopped, and holding the GIL."""

import os
import signal
import subprocess
import sys
import time

import pytest
from instep_agent.errors import StacksUnavailable
from instep_agent.host.processes import look_at, start_ticks
from instep_agent.ranks.stacks import stacks_of

_ASLEEP = "import time\ndef stuck_here():\n print('ready', flush=True)\n time.sleep(60)\nstuck_here()"
_HOLDS_GIL = (
    "import ctypes\nlibc = ctypes.PyDLL(None)\ndef stuck_here():\n print('ready', flush=True)\n"
    " libc.sleep(60)\nstuck_here()"
)


@pytest.fixture
def start():
    started = []

    def start(code):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        process.stdout.close()


def _wait_for_state(pid, state):
    deadline = time.monotonic() + 10
    while look_at(pid, start_ticks(pid)).state != state:
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize("code", [_ASLEEP, _HOLDS_GIL], ids=["asleep", "holds the GIL"])
def test_names_the_function_a_process_is_stuck_in(start, code):
    process = start(code)
    _wait_for_state(process.pid, "sleeping")
    main = stacks_of(process.pid, timeout_seconds=20)[0]
    assert main.is_main
    assert "stuck_here" in [frame.function for frame in main.frames]
    assert main.owns_gil == (code == _HOLDS_GIL)


def test_reads_a_stopped_process_and_leaves_it_stopped(start):
    process = start(_ASLEEP)
    process.send_signal(signal.SIGSTOP)
    _wait_for_state(process.pid, "stopped")
    assert "stuck_here" in [frame.function for frame in stacks_of(process.pid, timeout_seconds=20)[0].frames]
    assert look_at(process.pid, start_ticks(process.pid)).state == "stopped"


def test_a_process_that_is_gone_is_one_sentence(start):
    process = start(_ASLEEP)
    process.kill()
    process.wait(10)
    with pytest.raises(StacksUnavailable, match=f"Process {process.pid} does not exist any more"):
        stacks_of(process.pid, timeout_seconds=20)


def test_a_process_that_is_no_python_is_one_sentence():
    process = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(StacksUnavailable, match=f"py-spy could not read process {process.pid}"):
            stacks_of(process.pid, timeout_seconds=20)
    finally:
        process.kill()
        process.wait(10)


def test_a_time_limit_that_is_missed_is_one_sentence(start):
    with pytest.raises(StacksUnavailable, match=r"within 0\.0001 s"):
        stacks_of(start(_ASLEEP).pid, timeout_seconds=0.0001)


def test_a_missing_py_spy_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("instep_agent.ranks.stacks.sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StacksUnavailable, match="pip install py-spy"):
        stacks_of(1)
