"""Python stacks of a process that may not be able to answer: stopped, stuck in the kernel, or holding the GIL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from instep_agent.errors import StacksUnavailable
from instep_agent.wire import StackFrame, ThreadStack

THREADS_MAX = 256
FRAMES_MAX = 128
OUTPUT_BYTES_MAX = 16 << 20


class _Frame(msgspec.Struct):
    name: str
    filename: str
    line: int


class _Thread(msgspec.Struct):
    frames: list[_Frame]
    thread_name: str | None = None
    os_thread_id: int | None = None
    active: bool = False
    owns_gil: bool = False


def stacks_of(pid: int, *, timeout_seconds: float = 2.0) -> tuple[ThreadStack, ...]:
    """Give the threads of process `pid`, the main one first; raise StacksUnavailable with one sentence.

    The process is not paused: a stopped one must stay stopped as it is, and a healthy one must not lose time. So the
    frames of a running thread may be a mixture of two moments.
    """
    import subprocess  # for an order, which is rare

    command = [_py_spy(), "dump", "--nonblocking", "--json", "--pid", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout_seconds, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise StacksUnavailable(
            f"The stacks of process {pid} could not be read within {timeout_seconds:g} s."
        ) from error
    except OSError as error:
        raise StacksUnavailable(f"Cannot start {command[0]} ({(error.strerror or '').lower()}).") from error
    if done.returncode != 0:
        raise StacksUnavailable(_why(pid, done.stderr.decode("utf-8", "replace")))
    try:
        threads = msgspec.json.decode(done.stdout[:OUTPUT_BYTES_MAX], type=list[_Thread])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StacksUnavailable(f"py-spy's answer for process {pid} could not be understood ({error}).") from error
    stacks = [_stack(thread, pid) for thread in threads[:THREADS_MAX]]
    return tuple(sorted(stacks, key=lambda stack: not stack.is_main))


def _py_spy() -> str:
    """Give the py-spy of this installation before any other on the path."""
    import shutil  # for an order, which is rare

    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")
    if found is None:
        raise StacksUnavailable("py-spy is not installed beside this Python nor on PATH: pip install py-spy.")
    return found


def _why(pid: int, said: str) -> str:
    if not Path(f"/proc/{pid}").exists():
        return f"Process {pid} does not exist any more."
    if "ermission denied" in said or "not permitted" in said:
        return f"Process {pid} may not be looked at: run as its user with ptrace allowed, or give CAP_SYS_PTRACE."
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"py-spy could not read process {pid} ({lines[-1][:200] if lines else 'it gave no reason'})."


def _stack(thread: _Thread, pid: int) -> ThreadStack:
    frames = tuple(
        StackFrame(function=frame.name, file=frame.filename, line=frame.line) for frame in thread.frames[:FRAMES_MAX]
    )
    is_main = thread.os_thread_id == pid or thread.thread_name == "MainThread"
    return ThreadStack(
        name=thread.thread_name or "", is_main=is_main, is_active=thread.active, owns_gil=thread.owns_gil, frames=frames
    )
