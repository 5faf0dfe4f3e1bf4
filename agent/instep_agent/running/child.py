"""The processes in which drivers are asked: a keeper, forked from the agent at its start, and the children it forks.

Why a keeper: a process that has threads should not fork, and a child must be replaceable at any time. The keeper is
forked before the agent has threads, does nothing but fork, kill and reap, and its children share the agent's memory
pages: keeper and one child together cost 7.7 MiB (PSS, with `pynvml` loaded), a freshly executed interpreter 11.4 MiB,
and each further child 4 MiB against 11.

agent  ──control (one packet a message)──▶ keeper ──fork──▶ child
  └────────────data (names out, turns back)────────────────────┘

Nobody is left behind: a child dies with its keeper and the keeper with the agent, also when that is killed
(PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from instep_agent.announce import Progress, current, use
from instep_agent.columns import Series
from instep_agent.errors import Absent, AgentError
from instep_agent.node import Node, Reading, Source
from instep_agent.running.notes import Notes
from instep_agent.turn import Turn, packed, sorted_turn, take_turn

PACKET_BYTES_MAX = 4096
ANSWER_BYTES_MAX = 16 << 20
WATCH_SECONDS = 0.2
"""So long the watching sources of a child may wait for something to happen before its next request is looked for, when
none is announced."""
WATCH_SECONDS_MAX = 2.0
"""And no longer than this until the next announced one: some requests come unannounced."""
REAP_SECONDS_MAX = 1.0
"""At its end the keeper waits so long for children that it killed."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8

log = logging.getLogger("instep.agent.child")

Groups = Mapping[str, tuple[Sequence[Source], Progress, Notes | None]]
"""The sources of each child by its name, the page where it says what it is doing, and that where its process writes
what the next one must know, if it may end between two turns."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """Agent to keeper: fork the child of this name; its data socket comes along."""

    child: str
    number: int
    """Counts the starts of this child: the answer names it again."""


class Kill(msgspec.Struct, frozen=True, tag=True):
    """Agent to keeper: kill this process unless it has ended; its number is no other's before the keeper reaps it."""

    pid: int


class Pause(msgspec.Struct, frozen=True, tag=True):
    """Agent to keeper: stop this process for a drill, or let it go on."""

    pid: int
    is_over: bool = False


class Started(msgspec.Struct, frozen=True, tag=True):
    """Keeper to agent: the child runs; or it could not be forked, and `problem` says why."""

    child: str
    number: int
    pid: int
    problem: str = ""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Keeper to agent: the process ended, by this signal, or with this exit code."""

    pid: int
    signal: int = 0
    code: int = 0


orders = msgspec.msgpack.Decoder(Start | Kill | Pause)
reports = msgspec.msgpack.Decoder(Started | Ended)
turns = msgspec.msgpack.Decoder(Turn)
encode = msgspec.msgpack.Encoder().encode


def fork_keeper(node: Node, groups: Groups) -> tuple[int, socket.socket]:
    """Fork the keeper; give its number and the agent's end of the control socket."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent = os.getpid()
    gc.collect()
    _be_sparing()
    gc.freeze()  # a collection would write to every object, and so unshare its page
    pid = os.fork()
    if pid == 0:
        _run_forked("instep-keeper", agent, its.detach(), lambda control: Keeper(control, node, groups).run())
    its.close()
    ours.setblocking(False)
    return pid, ours


def _be_sparing() -> None:
    """Have the C library give back what is free, now and later; one that cannot (musl) does so by itself."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_ARENA_MAX, 1)  # each thread would get its own
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)  # a page of /metrics goes back whole; by default only the first does
        libc.malloc_trim(0)  # what starting has left free would be had by every process


def _run_forked(name: str, parent: int, descriptor: int, run: Callable[[socket.socket], object]) -> None:
    """Be a process of our own: none of the agent's descriptors, signals or exit hooks; never returns."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # for the agent to obey; we end when it does
        signal.set_wakeup_fd(-1)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked to die with it
            os._exit(1)
        run(socket.socket(fileno=_keep_only(descriptor)))
        code = 0
    except Exception:  # a forked process must not go on in its parent's stack: it says why, and ends with 1
        log.exception("%s ended by an error", name)
    finally:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            sys.stderr.flush()
        os._exit(code)


def _keep_only(descriptor: int) -> int:
    """Close what the parent had open, but for standard error and `descriptor`; give that."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    top = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536)
    with contextlib.suppress(OSError):
        top = max(int(entry.name) for entry in os.scandir("/proc/self/fd")) + 1
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, top)
    return descriptor


def _readable(descriptors: Sequence[int], timeout_seconds: float | None) -> frozenset[int]:
    """Give those from which there is something to read within the time. select() takes none beyond 1023; this does."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    ready = poller.poll(None if timeout_seconds is None else max(0.0, timeout_seconds) * 1e3)
    return frozenset(descriptor for descriptor, _ in ready)


class Keeper:
    """Forks, kills and reaps the children, as the agent orders."""

    def __init__(self, control: socket.socket, node: Node, groups: Groups) -> None:
        self._control = control
        self._node = node
        self._groups = groups
        self._alive: set[int] = set()
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = wake
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Go on until the agent closes its end; then end every child."""
        while True:
            readable = _readable([self._control.fileno(), self._woken], None)
            if self._woken in readable:
                os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in readable and not self._obey():
                break
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)
        until_seconds = time.monotonic() + REAP_SECONDS_MAX
        while self._alive and (left := until_seconds - time.monotonic()) > 0:
            _readable([self._woken], left)
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
            self._reap()

    def _obey(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, PACKET_BYTES_MAX, 1)
        if not data:
            return False
        order = orders.decode(data)
        if isinstance(order, Kill):
            self.kill(order.pid)
        elif isinstance(order, Pause):
            self._pause(order)
        else:
            self._fork(order, descriptors[0])
        return True

    def _fork(self, order: Start, descriptor: int) -> None:
        keeper = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._tell(Started(order.child, order.number, 0, error.strerror or "fork failed"))
            return
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sources, progress, notes = self._groups[order.child]
            _run_forked(
                f"instep-{order.child}",
                keeper,
                descriptor,
                lambda data: serve(self._node, sources, data, progress, notes),
            )
        os.close(descriptor)
        self._alive.add(pid)
        self._tell(Started(order.child, order.number, pid))

    def kill(self, pid: int) -> None:
        """Kill a child, unless it was reaped already."""
        if pid in self._alive:
            os.kill(pid, signal.SIGKILL)

    def _pause(self, order: Pause) -> None:
        if order.pid in self._alive:
            os.kill(order.pid, signal.SIGCONT if order.is_over else signal.SIGSTOP)

    def _reap(self) -> None:
        while self._alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._alive.discard(pid)
            is_signal = os.WIFSIGNALED(status)
            self._tell(
                Ended(pid, os.WTERMSIG(status), 0) if is_signal else Ended(pid, 0, os.waitstatus_to_exitcode(status))
            )

    def _tell(self, report: Started | Ended) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # the agent ended: the next receive says so
            self._control.send(encode(report))


def serve(
    node: Node, sources: Sequence[Source], data: socket.socket, progress: Progress, notes: Notes | None = None
) -> None:
    """Be a child: take the turns that are asked for, watch between them, and end when the agent closes its end."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a driver that crashes each minute must not fill the disk
    use(progress)
    if notes is not None:
        notes.recall(sources)
    by_name = {source.name: source for source in sources}
    watchers: dict[str, Callable[[Node, float], Iterator[Reading]]] = {}
    names = _Requests(data)
    said: dict[str, tuple[Series, ...]] = {}
    while True:
        asked = names.next(0.0 if watchers else None)
        if asked is not None:
            started_seconds = time.monotonic()
            turn = take_turn(by_name[asked], node)
            names.expect(asked, started_seconds + max(turn.rest_seconds, by_name[asked].interval_seconds))
            if notes is not None:
                notes.write(sources)
            _answer(data, turn, said)
            watch: Any = getattr(by_name[asked], "watch", None)
            if watch is not None and turn.outcome == "ok":
                watchers[asked] = watch
            else:
                watchers.pop(asked, None)
        elif names.is_ended:
            return
        else:
            _watch_all(node, data, watchers, names)


def _watch_all(
    node: Node, data: socket.socket, watchers: dict[str, Callable[[Node, float], Iterator[Reading]]], names: _Requests
) -> None:
    """Let every watcher wait for its part of the time; one that fails watches again after its next good turn."""
    share_seconds = min(names.free_seconds() or WATCH_SECONDS, WATCH_SECONDS_MAX) / len(watchers)
    for name, watch in tuple(watchers.items()):
        started_seconds = time.monotonic()
        current().begin(name)
        pushed: list[Reading] = []
        try:
            for reading in watch(node, share_seconds):
                pushed.append(reading)
                _send(data, msgspec.structs.replace(sorted_turn(name, [reading]), is_push=True))
        except (Absent, AgentError) as error:
            log.debug("source %s stopped to watch: %s", name, error)
            del watchers[name]
        except Exception:  # as in the runner's loop: whatever a source does, the others go on
            log.exception("source %s failed while it watched", name)
            del watchers[name]
        current().begin("")
        if not pushed:  # one that comes back at once must not make this loop spin
            names.wait(share_seconds - (time.monotonic() - started_seconds))


class _Requests:
    """Requests, one a line: the name of the source to ask, and when the next one may come, on this machine's clock.

    A moment and not a time from now on: a request may have waited for a watch to end.
    """

    def __init__(self, data: socket.socket) -> None:
        self._data = data
        self._rest = b""
        self._next_seconds = 0.0
        self._expected_seconds: dict[str, float] = {}
        self.is_ended = False

    def expect(self, name: str, moment_seconds: float) -> None:
        """Count with a request for this source then: one that rests no more is asked earlier than was announced."""
        self._expected_seconds[name] = moment_seconds

    def free_seconds(self) -> float:
        """Give the time until the next request, as far as it is known; 0 when it may come now."""
        now_seconds = time.monotonic()
        expected = (moment for moment in self._expected_seconds.values() if moment > now_seconds)
        return max(0.0, min((self._next_seconds, *expected)) - now_seconds)

    def next(self, timeout_seconds: float | None) -> str | None:
        """Give the next name, or None when none came within the time, or when none will come any more."""
        while b"\n" not in self._rest:
            if not self.wait(timeout_seconds):
                return None
            received = self._data.recv(PACKET_BYTES_MAX)
            if not received:
                self.is_ended = True
                return None
            self._rest += received
        line, _, self._rest = self._rest.partition(b"\n")
        name, _, seconds = line.decode().partition(" ")
        self._next_seconds = float(seconds or 0.0)
        return name

    def wait(self, timeout_seconds: float | None) -> bool:
        """Wait until there is something to receive; give whether there is."""
        return bool(_readable([self._data.fileno()], timeout_seconds))


def _answer(data: socket.socket, turn: Turn, said: dict[str, tuple[Series, ...]]) -> None:
    """Send a turn; the names of its series go along when they are others than before."""
    short, series = packed(turn, said.get(turn.source, ()))
    if _send(data, short):
        said[turn.source] = series


def _send(data: socket.socket, turn: Turn) -> bool:
    body = encode(turn)
    is_small = len(body) <= ANSWER_BYTES_MAX
    if not is_small:
        detail = f"Source {turn.source} said more than {ANSWER_BYTES_MAX} bytes in one turn."
        body = encode(Turn(source=turn.source, outcome="failed", detail=detail))
    try:
        data.sendall(len(body).to_bytes(4, "little") + body)
    except (BrokenPipeError, ConnectionError):  # the agent ended
        os._exit(0)
    return is_small
