"""Sources that run in child processes: the agent asks and goes on; a child that does not answer in time is killed.

A source with `child = "nvml"` runs in the child of that name, one source after the other. What a source may do there:

- `announce("nvmlDeviceGetTemperature gpu 3")` (`instep_agent.announce`) before a call that may never come back:
  a child that is stuck or dies is reported with the call that it was in;
- `watch(self, node, timeout_seconds) -> Iterator[Reading]`, a method beside `collect`: wait no longer than
  `timeout_seconds` for something to happen (such as `nvmlEventSetWait_v2`) and yield it. The child calls it between two
  turns, from the first good `collect` on, and each reading leaves at once.

The agent never waits for a child, so that every other source keeps its interval. A source that lost its child waits
1 s, 2 s, … 60 s for its next turn, until one comes back; the other sources of that child go on 1 s later in a new one.
A process that cannot be killed (it hangs in the kernel) is left alone; while there are two of them under one name, no
third is started. Where all sources of a child can hand on what they remember (`instep_agent.running.notes`), its
process is ended when none of them is due for a while.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import msgspec

from instep_agent.announce import Progress
from instep_agent.columns import Series, compacted
from instep_agent.node import Node, Source
from instep_agent.running import child as process
from instep_agent.running.notes import Notes, is_forgettable
from instep_agent.turn import Turn, unpacked

START_GRACE_SECONDS = 5.0
"""A child's first turn may take so much longer: a driver library loads and initialises."""
BACKOFF_SECONDS_MIN = 1.0
BACKOFF_SECONDS_MAX = 60.0
UNKILLABLE_MAX = 2
CLOSE_SECONDS_MAX = 2.0
REST_SECONDS_MIN = 10.0
"""A process that may end between two turns does so when there are so many until the next: a fork takes milliseconds."""
_RECEIVE_BYTES = 1 << 15
"""More than almost every answer, and less than what the C library asks the kernel for each time."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A child is gone: it did not answer in time (`signal` is empty), or it ended by itself."""

    child: str
    source: str
    """The source whose turn or watch it was; empty when it was nobody's."""
    call: str
    """The call that it had announced last."""
    call_seconds: float
    """Since it announced that."""
    ending: str
    """`deadline`, the signal's name, or `exit N`."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """No process of this child can be had, and why; `is_unkillable`: too many hang in the kernel."""

    child: str
    sources: tuple[str, ...]
    detail: str
    is_unkillable: bool


Report = Turn | Loss | Blocked


@dataclass(slots=True)
class _Child:
    """One name: its sources, and the process that runs them now, if any."""

    name: str
    sources: dict[str, Source]
    progress: Progress
    data: socket.socket | None = None
    pid: int = 0
    """0 until the keeper has told it."""
    is_ended: bool = False
    """It closed its end of the data socket; how it ended, the keeper says."""
    rest: bytearray = field(default_factory=bytearray)
    series: dict[str, tuple[Series, ...]] = field(default_factory=dict)
    """What its process has said last, by source: it says series again only when they are others."""
    asked: deque[str] = field(default_factory=deque)
    """What it was asked for and has not answered, in that order: it has all names at once."""
    deadline_seconds: float = 0.0
    """When the first of these turns must be over, on the agent's clock."""
    is_new: bool = False
    pending: deque[str] = field(default_factory=deque)
    next_seconds: dict[str, float] = field(default_factory=dict)
    """When each source may be asked next, on the agent's clock."""
    not_before_seconds: float = 0.0
    """No process is started earlier."""
    paused_pid: int = 0
    """The process that a drill has stopped."""
    killed: set[int] = field(default_factory=set)
    """Killed and not yet known to have ended."""
    notes: Notes | None = None
    """Where its process writes what the next one must know; None where it lives on between turns."""
    resting: set[int] = field(default_factory=set)
    """Ended because nothing is to be done, and not yet known to be gone."""
    is_rested: bool = False
    known_series: dict[str, tuple[Series, ...]] = field(default_factory=dict)
    """What any of its processes has said last, by source: whoever compares tuples then knows them again."""
    asked_at_seconds: float = 0.0
    starts_total: int = 0
    rests_total: int = 0

    @property
    def is_running(self) -> bool:
        return self.data is not None

    def free_seconds(self, now_seconds: float) -> float:
        """Give the time after this request in which no other one comes."""
        return 0.0 if self.pending else max(0.0, min(self.next_seconds.values(), default=0.0) - now_seconds)


class Children:
    """The agent's side of every child. `ask` for turns, `wait` for news, `poll` them; `close` ends all processes.

    Make it before the agent has threads: it forks.
    """

    def __init__(self, node: Node, sources: Sequence[Source]) -> None:
        self._node = node
        self._children: dict[str, _Child] = {}
        self._of_source: dict[str, _Child] = {}
        for source in sources:
            name = getattr(source, "child", "")
            if name:
                child = self._children.setdefault(name, _Child(name, {}, Progress()))
                child.sources[source.name] = source
                self._of_source[source.name] = child
        for child in self._children.values():
            child.notes = Notes() if is_forgettable(tuple(child.sources.values())) else None
        self._backoff_seconds: dict[str, float] = {}
        self._held_until_seconds: dict[str, float] = {}
        self._keeper_pid = 0
        self._control: socket.socket | None = None
        self._orphans: set[int] = set()
        self._paused: Set[str] = frozenset()
        """Children whose processes a drill stops."""
        self._ready: list[Report] = []
        self._polled: tuple[int, ...] = ()
        self._poller = select.poll()
        self._said: set[int] | None = None
        """Who had something to say when `wait` came back; None when nobody listened, and all are to be asked."""
        if self._children:
            self._start_keeper()

    def has(self, source: str) -> bool:
        """Whether this source runs in a child."""
        return source in self._of_source

    @property
    def unkillable(self) -> dict[str, int]:
        """Processes that were killed and have not ended, by child."""
        return {child.name: len(child.killed) for child in self._children.values()}

    @property
    def starts(self) -> dict[str, int]:
        """Processes started so far, by child; one that is started again after a rest does not count."""
        return {child.name: child.starts_total - child.rests_total for child in self._children.values()}

    def pause(self, names: Set[str]) -> None:
        """Stop the processes of these children, as a driver would that never answers, and let all others go on."""
        self._paused = names
        for child in self._children.values():
            wanted_pid = child.pid if child.name in names else 0
            if wanted_pid != child.paused_pid:
                if child.paused_pid and child.paused_pid == child.pid:
                    self._order(process.Pause(child.paused_pid, is_over=True))
                if wanted_pid:
                    self._order(process.Pause(wanted_pid))
                child.paused_pid = wanted_pid

    def ask(self, source: str, now_seconds: float, next_seconds: float = 0.0) -> None:
        """Have a source take its turn, as soon as its child is free; one that waits for its turn already waits once.

        `next_seconds` is when it will be asked again, at the earliest: until then its child may watch undisturbed.
        """
        child = self._of_source[source]
        child.next_seconds[source] = next_seconds
        if source not in child.asked and source not in child.pending:
            child.pending.append(source)
        self._go_on(child, now_seconds)

    def wait(self, timeout_seconds: float, also: Sequence[int] = (), *, only: bool = False) -> set[int]:
        """Wait until a child says something, or one of these descriptors does; give those that did.

        `only` these: what children say is left for `poll`.
        """
        wanted = tuple(also) if only else (*(one.fileno() for one in self._sockets()), *also)
        if wanted != self._polled:
            self._poller = select.poll()
            for descriptor in wanted:
                self._poller.register(descriptor, select.POLLIN)
            self._polled = wanted
        said = {descriptor for descriptor, _ in self._poller.poll(max(0.0, timeout_seconds) * 1000)}
        self._said = None if only else said
        return said

    def poll(self, now_seconds: float) -> list[Report]:
        """Give what came since the last time, and what is overdue; go on with what waits."""
        said, self._said = self._said, None
        for child in self._children.values():
            if child.data is not None and (said is None or child.data.fileno() in said):
                self._receive(child, now_seconds)
        if self._control is not None and (said is None or self._control.fileno() in said):
            self._hear_keeper(now_seconds)
        self._reap_orphans()
        for child in self._children.values():
            if child.asked and child.deadline_seconds <= now_seconds:
                self._lose(child, "deadline", now_seconds)
            if child.pending:
                self._go_on(child, now_seconds)
            elif child.notes is not None and child.notes.may_end and self._is_idle(child, now_seconds):
                self._rest(child)
        ready, self._ready = self._ready, []
        return ready

    def due_seconds(self) -> float:
        """Give the moment, on the agent's clock, at which `poll` has something to do although nothing came."""
        moments = [float("inf")]
        for child in self._children.values():
            if child.asked:
                moments.append(child.deadline_seconds)
            elif child.pending:
                held = min(self._held_until_seconds.get(name, 0.0) for name in child.pending)
                moments.append(held if child.is_running else max(child.not_before_seconds, held))
        return min(moments)

    def close(self) -> None:
        """End every child and the keeper. One that hangs in the kernel ends as soon as that lets it."""
        for child in self._children.values():
            self._drop_process(child)
        if self._control is None:
            return
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        self._control.setblocking(True)
        self._control.settimeout(CLOSE_SECONDS_MAX)
        with contextlib.suppress(OSError):
            while self._control.recv(process.PACKET_BYTES_MAX):
                pass
        self._forget_keeper()

    def _sockets(self) -> Iterator[socket.socket]:
        if self._control is not None:
            yield self._control
        yield from (child.data for child in self._children.values() if child.data is not None and not child.is_ended)

    def _start_keeper(self) -> None:
        groups = {
            child.name: (tuple(child.sources.values()), child.progress, child.notes)
            for child in self._children.values()
        }
        with warnings.catch_warnings():  # a lost keeper is forked again beside threads: it takes no lock of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            self._keeper_pid, self._control = process.fork_keeper(self._node, groups)

    def _forget_keeper(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
            with contextlib.suppress(OSError):
                os.kill(self._keeper_pid, signal.SIGKILL)
                os.waitpid(self._keeper_pid, 0)

    def _go_on(self, child: _Child, now_seconds: float) -> None:
        """Ask the sources that may be asked now, in a new process if need be."""
        ready = [name for name in child.pending if self._held_until_seconds.get(name, 0.0) <= now_seconds]
        if not ready or (not child.is_running and not self._start(child, now_seconds)):
            return
        assert child.data is not None
        ready.sort(key=lambda one: self._backoff_seconds.get(one, 0.0))  # the one that lost a child goes last
        child.pending = deque(name for name in child.pending if name not in ready)
        if not child.asked:
            child.asked_at_seconds = now_seconds
            child.deadline_seconds = self._deadline_seconds(child, ready[0], now_seconds)
        child.asked += ready
        free_until_seconds = time.monotonic() + child.free_seconds(now_seconds)
        with contextlib.suppress(OSError):  # it has just ended: the keeper is about to say so
            child.data.send(b"".join(b"%s %.3f\n" % (name.encode(), free_until_seconds) for name in ready))

    def _deadline_seconds(self, child: _Child, source: str, now_seconds: float) -> float:
        grace_seconds = START_GRACE_SECONDS if child.is_new else 0.0
        return now_seconds + child.sources[source].deadline_seconds + grace_seconds

    def _start(self, child: _Child, now_seconds: float) -> bool:
        if child.not_before_seconds > now_seconds:
            return False
        child.killed |= child.resting  # it had a while to end
        child.resting.clear()
        if len(child.killed) >= UNKILLABLE_MAX:
            self._block(
                child,
                f"{len(child.killed)} processes of child {child.name} cannot be killed (they hang in the kernel): no "
                "further one is started until one of them ends; if none does, only a reboot of the node helps.",
                is_unkillable=True,
            )
            return False
        child.not_before_seconds = now_seconds + BACKOFF_SECONDS_MIN
        if self._control is None:
            self._start_keeper()
        assert self._control is not None
        ours, its = socket.socketpair()
        child.progress.begin("")
        if child.notes is not None:
            child.notes.begin()
        child.starts_total += 1
        child.rests_total += child.is_rested
        try:
            order = process.encode(process.Start(child.name, child.starts_total))
            socket.send_fds(self._control, [order], [its.fileno()])
        except OSError as error:
            ours.close()
            self._block(child, f"Child {child.name} cannot be started ({error}).", is_unkillable=False)
            return False
        finally:
            its.close()
        ours.setblocking(False)
        child.data, child.is_new, child.is_rested = ours, not child.is_rested, False
        return True

    def _is_idle(self, child: _Child, now_seconds: float) -> bool:
        """Whether its process runs and nobody needs it for a while."""
        if not child.pid or child.asked or child.name in self._paused or len(child.next_seconds) < len(child.sources):
            return False
        return min(child.next_seconds.values()) >= now_seconds + REST_SECONDS_MIN

    def _rest(self, child: _Child) -> None:
        """End its process, which holds nothing that is not written down."""
        child.resting.add(child.pid)
        self._order(process.Kill(child.pid))
        self._drop_process(child)
        child.is_rested = True

    def _block(self, child: _Child, detail: str, *, is_unkillable: bool) -> None:
        """Nothing can be asked: what waits is dropped, so that each source's next turn tries again."""
        child.pending.clear()
        self._ready.append(Blocked(child.name, tuple(child.sources), detail, is_unkillable))

    def _receive(self, child: _Child, now_seconds: float) -> None:
        while child.data is not None:
            try:
                received = child.data.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                received = b""
            if not received:
                child.is_ended = True
                break
            child.rest += received
            if len(received) < _RECEIVE_BYTES:  # that was all; what came since is heard of by the next wait
                break
        self._take_turns(child, now_seconds)

    def _take_turns(self, child: _Child, now_seconds: float) -> None:
        while len(child.rest) >= 4:
            size_bytes = int.from_bytes(child.rest[:4], "little")
            if len(child.rest) < 4 + size_bytes:
                return
            try:
                turn = process.turns.decode(memoryview(child.rest)[4 : 4 + size_bytes])
                turn = unpacked(turn, child.series.get(turn.source, ()))
            except (msgspec.DecodeError, ValueError) as error:
                asked = next(iter(child.asked), "")
                turn = Turn(source=asked, outcome="failed", detail=f"An answer of child {child.name}: {error}.")
            del child.rest[: 4 + size_bytes]
            if turn.source in child.sources:
                if turn.series is not None and turn.series is not child.series.get(turn.source):
                    series = compacted(turn.series)
                    if series == child.known_series.get(turn.source):
                        series = child.known_series[turn.source]
                    turn = msgspec.structs.replace(turn, series=series)
                    child.series[turn.source] = child.known_series[turn.source] = series
                self._ready.append(turn)
            if not turn.is_push and child.asked and turn.source == child.asked[0]:
                child.asked.popleft()
                child.is_new = False
                if child.asked:
                    child.deadline_seconds = self._deadline_seconds(child, child.asked[0], now_seconds)
                if turn.rest_seconds:
                    child.next_seconds[turn.source] = child.asked_at_seconds + turn.rest_seconds
                self._backoff_seconds.pop(turn.source, None)

    def _hear_keeper(self, now_seconds: float) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(process.PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._lose_keeper(now_seconds)
                return
            report = process.reports.decode(data)
            if isinstance(report, process.Started):
                self._hear_started(report)
            else:
                self._hear_ended(report, now_seconds)

    def _hear_started(self, report: process.Started) -> None:
        child = self._children[report.child]
        if not child.is_running or report.number != child.starts_total:  # it was given up before it was there
            if report.pid:
                self._kill(child, report.pid)
            return
        child.pid = report.pid
        if report.problem:
            self._drop_process(child)
            self._block(child, f"Child {child.name} cannot be started ({report.problem}).", is_unkillable=False)

    def _hear_ended(self, report: process.Ended, now_seconds: float) -> None:
        for child in self._children.values():
            child.killed.discard(report.pid)
            child.resting.discard(report.pid)
            if child.pid == report.pid and child.is_running:
                self._receive(child, now_seconds)
                ending = signal.Signals(report.signal).name if report.signal else f"exit {report.code}"
                self._lose(child, ending, now_seconds)

    def _lose_keeper(self, now_seconds: float) -> None:
        """Its children die with it; where the agent is the first process of its container, they become its own."""
        self._forget_keeper()
        for child in self._children.values():
            self._orphans |= child.killed | child.resting | ({child.pid} - {0})
            child.killed.clear()
            child.resting.clear()
            if child.is_running:
                self._lose(child, "keeper gone", now_seconds)

    def _reap_orphans(self) -> None:
        for pid in tuple(self._orphans):
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            except ChildProcessError:  # somebody else's to reap
                pass
            self._orphans.discard(pid)

    def _lose(self, child: _Child, ending: str, now_seconds: float) -> None:
        running, call, call_seconds = child.progress.read()
        waiting = [*child.asked, *child.pending]
        source = running if running in child.sources else next(iter(child.asked), "")
        pid = child.pid
        self._drop_process(child)
        if ending == "deadline" and pid:
            self._kill(child, pid)
        child.pending = deque(name for name in waiting if name != source)
        child.not_before_seconds = now_seconds + BACKOFF_SECONDS_MIN
        if source:
            doubled_seconds = self._backoff_seconds.get(source, 0.0) * 2 or BACKOFF_SECONDS_MIN
            self._backoff_seconds[source] = min(doubled_seconds, BACKOFF_SECONDS_MAX)
            self._held_until_seconds[source] = now_seconds + self._backoff_seconds[source]
        self._ready.append(Loss(child.name, source, call, call_seconds, ending))

    def _kill(self, child: _Child, pid: int) -> None:
        child.killed.add(pid)
        self._order(process.Kill(pid))

    def _order(self, order: process.Kill | process.Pause) -> None:
        with contextlib.suppress(OSError):  # the keeper is gone, and its children with it
            if self._control is not None:
                self._control.send(process.encode(order))

    def _drop_process(self, child: _Child) -> None:
        if child.data is not None:
            child.data.close()
        child.data, child.pid, child.is_ended = None, 0, False
        child.asked.clear()
        child.rest.clear()
        child.series.clear()
