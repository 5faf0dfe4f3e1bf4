"""The ranks of one node: started through the zygote, watched, stopped. Knows processes, not attempts' meaning."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from instep_trainer.errors import CannotRun
from instep_trainer.run.zygote import MESSAGE_BYTES_MAX, Task

ZYGOTE_READY_SECONDS_MAX = 180.0
"""A first `import torch` on a loaded node with a cold page cache took up to 22 s with 32 beside it; this is far
beyond."""

KILL_SECONDS_MAX = 10.0
"""A process that SIGKILL has not ended after this sits in a driver, and may do so for ever."""


@dataclass(frozen=True, slots=True)
class RankExit:
    """One rank's process ended."""

    attempt: int
    rank: int
    exit_code: int
    """Negative numbers are signals."""
    is_ours: bool = False
    """It ended because it was told to, as far as can be told."""


class RankProcesses:
    """Starts and stops this node's ranks; tells of exits by a callback in the event loop."""

    def __init__(self, *, is_preloaded: bool, environment: dict[str, str], on_exit: Callable[[RankExit], None]) -> None:
        self._is_preloaded = is_preloaded
        self._environment = environment
        self._on_exit = on_exit
        self._alive: dict[int, tuple[int, int]] = {}
        self._signalled: dict[int, set[int]] = {}
        """pid → signals that it was sent from here."""
        self._pending: dict[str, asyncio.Future[int]] = {}
        self._ready: asyncio.Future[int] | None = None
        self._socket: socket.socket | None = None
        self._zygote: subprocess.Popen[bytes] | None = None
        self._all_gone = asyncio.Event()
        self._all_gone.set()

    async def open(self) -> None:
        """Start the zygote; returns when it has loaded what every rank needs."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._socket = ours
        mode = "preload" if self._is_preloaded else "exec"
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "instep_trainer.run.zygote", str(theirs.fileno()), mode],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=self._environment,
        )
        theirs.close()
        self._ready = loop.create_future()
        loop.add_reader(ours.fileno(), self._read)
        try:
            await asyncio.wait_for(self._ready, ZYGOTE_READY_SECONDS_MAX)
        except TimeoutError as error:
            raise CannotRun(
                f"The process that starts ranks was not ready within {ZYGOTE_READY_SECONDS_MAX:.0f} s: "
                "is `import torch` possible on this node?"
            ) from error

    async def start(self, attempt: int, rank: int, task: Task) -> int:
        """Start one rank and return its pid, 0 when it was gone at once. Raise `CannotRun` when it cannot start."""
        if self._socket is None:
            await self.open()  # the one before was killed, such as for memory
        assert self._socket is not None
        key = f"{attempt}/{rank}"
        self._pending[key] = asyncio.get_running_loop().create_future()
        try:
            self._socket.send(json.dumps({"key": key, "task": asdict(task)}).encode())
        except OSError as error:
            del self._pending[key]
            raise CannotRun(f"Rank {rank} could not be started ({error.strerror or error}).") from error
        return await self._pending[key]

    @property
    def pids(self) -> dict[int, int]:
        """rank → pid of those that live."""
        return {rank: pid for pid, (_attempt, rank) in self._alive.items()}

    async def stop(self, grace_seconds: float) -> list[int]:
        """End every rank: SIGTERM, and SIGKILL after the grace. A stopped process gets SIGKILL at once, it cannot
        answer. Return the ranks that live on all the same."""
        self._signal_all(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone.wait(), grace_seconds)
        self._signal_all(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone.wait(), KILL_SECONDS_MAX)
        return sorted(self.pids)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in list(self._alive):
            is_deaf = number is signal.SIGTERM and _state_letter(pid) in "tT"
            sent = signal.SIGKILL if is_deaf else number
            self._signalled.setdefault(pid, set()).add(int(sent))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, sent)

    def close(self) -> None:
        """End the zygote, and with it whatever ranks are left."""
        self._signal_all(signal.SIGKILL)
        self._let_go()
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote.wait()

    def _let_go(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        while self._socket is not None:
            try:
                raw = self._socket.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it ended with a task of ours unread
                raw = b""
            if not raw:
                self._zygote_gone()
                return
            self._take(json.loads(raw))

    def _take(self, message: dict[str, int | str | bool]) -> None:
        if "ready" in message:
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(int(message["threads"]))
        elif "key" in message:
            self._started(str(message["key"]), int(message["pid"]))
        else:
            self._ended(int(message["pid"]), int(message["exit_code"]))

    def _started(self, key: str, pid: int) -> None:
        attempt, _, rank = key.partition("/")
        self._alive[pid] = (int(attempt), int(rank))
        self._all_gone.clear()
        self._pending.pop(key).set_result(pid)

    def _ended(self, pid: int, exit_code: int) -> None:
        attempt, rank = self._alive.pop(pid, (-1, -1))
        sent = self._signalled.pop(pid, set())
        is_ours = bool(sent) and (exit_code >= 0 or -exit_code in sent)  # told to end, a script may end as it likes
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what the rank left behind, such as loader workers
        if not self._alive:
            self._all_gone.set()
        if attempt >= 0:
            self._on_exit(RankExit(attempt, rank, exit_code, is_ours))

    def _zygote_gone(self) -> None:
        self._let_go()
        code = self._zygote.wait() if self._zygote is not None else 0
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                CannotRun(
                    f"The process that starts ranks ended with status {code} before it was ready: see its output above."
                )
            )
        for key in list(self._pending):  # taken along before their pids were known
            self._pending.pop(key).set_result(0)
            attempt, _, rank = key.partition("/")
            self._on_exit(RankExit(int(attempt), int(rank), -int(signal.SIGKILL)))
        for pid in list(self._alive):  # its death took the ranks along (parent-death signal)
            self._ended(pid, -int(signal.SIGKILL))


def _state_letter(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
