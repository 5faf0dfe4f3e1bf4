"""A preloaded process that forks ranks: it has imported torch once, so a rank starts in tens of milliseconds.

Started by the supervisor as `python -m instep_trainer.run.zygote FD preload|exec`, where FD is a SOCK_SEQPACKET socket.
It reads tasks and answers with pids and exits. It holds one thread, no process group and no CUDA context, so a fork
of it is as good as a fresh interpreter; measured, 6 of 7 seconds of a cold restart are imports. With `exec` nothing is
preloaded and the child executes its argument vector: for programs that are not Python, and for scripts that must see
a fresh interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MESSAGE_BYTES_MAX = 1 << 20
PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


@dataclass(frozen=True, slots=True)
class Task:
    """What one forked child becomes."""

    argv: list[str]
    """The script or module and its own arguments."""
    form: str
    """`script`, `module` (both run inside the preloaded child) or `exec` (replaces it)."""
    environment: dict[str, str]
    output: str
    """File that gets standard output and error; empty keeps those of the supervisor."""


def main() -> None:
    """Serve until the socket closes. In a forked child this returns only when the child's script has ended."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(signal.SIGTERM)  # once it serves, it outlives that by the moment it takes to end what ranks left
    if sys.argv[2] == "preload":
        preload()
    wakeup = _wake_on_child_exit()
    connection.send(json.dumps({"ready": True, "threads": _thread_count()}).encode())
    task = _serve(connection, wakeup)
    if task is not None:
        _leave(_exit_code_of(task))


def preload() -> None:
    """Import what every rank imports, and build one optimizer: the first one imports `torch._dynamo` (1.3 s of CPU)."""
    import torch
    import torch.distributed
    import torch.nn.parallel

    import instep_trainer.observe.start  # noqa: F401  the rank's own recorder

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    gc.collect()
    gc.freeze()  # what is loaded stays shared: a collection in a child would copy its pages


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when its parent dies: ranks never outlive their supervisor."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def allow_stack_dumps() -> None:
    """Let py-spy read this process where the kernel's Yama module would allow only ancestors."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)


def run_task(task: Task) -> None:
    """Become the rank: environment, output, argument vector, record, then the script as `__main__`."""
    os.environ.update(task.environment)
    _redirect(task.output)
    if task.form == "exec":
        os.execvp(task.argv[0], task.argv)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    from instep_trainer.observe.start import start_in_preloaded

    start_in_preloaded()
    sys.argv = task.argv
    if task.form == "module":
        sys.path[0] = ""
        runpy.run_module(task.argv[0], run_name="__main__", alter_sys=True)
        return
    sys.path[0] = str(Path(task.argv[0]).resolve().parent)
    runpy.run_path(task.argv[0], run_name="__main__")


def _exit_code_of(task: Task) -> int:
    """Run the task and return the exit status the interpreter would give it."""
    try:
        run_task(task)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001  the script's own failure, told as the interpreter tells it
        traceback.print_exc()
        return 1
    return 0


def _leave(exit_code: int) -> NoReturn:
    """End as the interpreter does, without taking its modules apart: that copies every shared page, 2.5 s with four
    ranks."""
    join_threads: Callable[[], None] = vars(threading)["_shutdown"]  # what the interpreter itself calls at its end
    join_threads()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _serve(connection: socket.socket, wakeup: int) -> Task | None:
    """Fork on demand and tell of exits; returns a task in a child, None in the zygote when the supervisor is gone."""
    alive: set[int] = set()
    while True:
        waited: list[Any] = [connection, wakeup]
        ready, _, _ = select.select(waited, [], [])
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
            with contextlib.suppress(OSError):  # nobody listens any more: the next read says so
                _tell_exits(connection, alive)
        if connection not in ready:
            continue
        try:
            message = connection.recv(MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            message = b""
        if not message:
            _kill_groups(alive)
            return None
        task = _fork(connection, wakeup, json.loads(message), alive)
        if task is not None:
            return task


def _kill_groups(alive: set[int]) -> None:
    """End the ranks with what they have started, such as loader workers: the parent-death signal ends ranks alone."""
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _fork(connection: socket.socket, wakeup: int, request: dict[str, Any], alive: set[int]) -> Task | None:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(pid, pid)
        alive.add(pid)
        connection.send(json.dumps({"key": request["key"], "pid": pid}).encode())
        return None
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(wakeup)
    connection.close()
    die_with_parent()
    allow_stack_dumps()
    return Task(**request["task"])


def _tell_exits(connection: socket.socket, alive: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        alive.discard(pid)
        connection.send(json.dumps({"pid": pid, "exit_code": os.waitstatus_to_exitcode(status)}).encode())


def _wake_on_child_exit() -> int:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reader


def _redirect(output: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not output:
        return
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _thread_count() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208  a path object here costs an import in every rank


if __name__ == "__main__":
    main()
