"""How well the node keeps time, and whether its wall clock was set: timestamps of this node are held against that."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from instep_agent.errors import SourceFailed
from instep_agent.metric import counter, gauge
from instep_agent.node import Fact, Node
from instep_agent.wire import Sample

STEP_SECONDS_MIN = 0.005
"""Both clocks run at the same, corrected rate: only setting one moves them apart. Less is the reading's noise."""
_READINGS = 3
_UNSYNCHRONISED, _NANOSECONDS = 0x0040, 0x2000


class _Timex(ctypes.Structure):
    """The kernel's `struct timex`."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


@dataclass(frozen=True, slots=True)
class TimeKeeping:
    """What the kernel's clock discipline says."""

    offset_seconds: float
    maxerror_seconds: float
    is_synchronised: bool


def read_timekeeping() -> TimeKeeping:
    """Give it by adjtimex with nothing to change; raise OSError where that is not allowed."""
    timex = _Timex()
    if _libc().adjtimex(ctypes.byref(timex)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    unit_seconds = 1e-9 if timex.status & _NANOSECONDS else 1e-6
    return TimeKeeping(timex.offset * unit_seconds, timex.maxerror * 1e-6, not timex.status & _UNSYNCHRONISED)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class Clock:
    """Offset, error bound and state of the kernel's clock discipline (adjtimex), and each time the wall clock is set.

    The offset is what is still to be corrected, as an NTP daemon told the kernel; one that steers in another way leaves
    it 0. A fact `clock_stepped` tells that the wall clock moved against the monotonic one, by how many seconds.
    """

    name = "clock"
    interval_seconds = 5.0
    deadline_seconds = 1.0
    child = ""
    rights = "calls adjtimex without changing anything: everybody may, unless a container's seccomp profile forbids it"
    metrics = (
        gauge("instep_clock_offset_seconds", "What the kernel has still to correct the wall clock by (adjtimex)."),
        gauge("instep_clock_error_seconds_max", "Bound of the wall clock's error, as the kernel keeps it (adjtimex)."),
        gauge("instep_clock_is_synchronised", "1 when the kernel holds its clock for synchronised (adjtimex)."),
        counter("instep_clock_steps_total", "Times the wall clock was set by 5 ms or more, since the agent's start."),
    )

    def __init__(self, read: Callable[[], TimeKeeping] = read_timekeeping) -> None:
        self._read = read
        self._distance_ns: int | None = None
        self._steps_total = 0

    def collect(self, node: Node) -> Iterator[Sample | Fact]:
        """Yield the clock's state. Raise `SourceFailed` when the kernel does not tell it."""
        yield from self._step(node)
        yield Sample(name="instep_clock_steps_total", labels=(), value=float(self._steps_total))
        try:
            now = self._read()
        except OSError as error:
            raise SourceFailed(
                f"Cannot call adjtimex ({(error.strerror or '').lower()}): allow it in the container's seccomp profile."
            ) from error
        yield Sample(name="instep_clock_offset_seconds", labels=(), value=now.offset_seconds)
        yield Sample(name="instep_clock_error_seconds_max", labels=(), value=now.maxerror_seconds)
        yield Sample(name="instep_clock_is_synchronised", labels=(), value=float(now.is_synchronised))

    def _step(self, node: Node) -> Iterator[Fact]:
        distance_ns = min((_reading(node) for _ in range(_READINGS)), key=lambda reading: reading[0])[1]
        before_ns, self._distance_ns = self._distance_ns, distance_ns
        step_seconds = 0.0 if before_ns is None else (distance_ns - before_ns) / 1e9
        if abs(step_seconds) >= STEP_SECONDS_MIN:
            self._steps_total += 1
            way = "forward" if step_seconds > 0 else "back"
            text = f"The node's wall clock was set {way} by {abs(step_seconds):.3f} s."
            fields = {"seconds": f"{step_seconds:.6f}"}
            yield Fact("clock_stepped", text, node.monotonic_ns(), node.realtime_ns(), fields)


def _reading(node: Node) -> tuple[int, int]:
    """Give how long a reading of both clocks took, and how far the wall clock is ahead, in nanoseconds."""
    before_ns = node.monotonic_ns()
    realtime_ns = node.realtime_ns()
    after_ns = node.monotonic_ns()
    return after_ns - before_ns, realtime_ns - (before_ns + after_ns) // 2
