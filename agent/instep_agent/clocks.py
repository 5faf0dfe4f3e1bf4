"""The node's clocks, read together, so that nobody needs to trust one node's wall clock on another."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

from instep_agent.wire import ClockAnchor

_TRIES = 3


@lru_cache(maxsize=8)
def boot_id(proc: Path = Path("/proc")) -> str:
    """Give the kernel's identifier of this boot, or empty text where it cannot be read."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()[:40]
    except OSError:
        return ""


def read_anchor(proc: Path = Path("/proc")) -> ClockAnchor:
    """Give monotonic and wall clock at one moment; the narrowest of a few readings, with its width as uncertainty."""
    uncertainty_ns, monotonic_ns, realtime_ns = min(_one_reading() for _ in range(_TRIES))
    return ClockAnchor(
        boot_id=boot_id(proc), monotonic_ns=monotonic_ns, realtime_ns=realtime_ns, uncertainty_ns=uncertainty_ns
    )


def _one_reading() -> tuple[int, int, int]:
    """Give the width of the reading, then both clocks, in nanoseconds."""
    before = time.monotonic_ns()
    realtime_ns = time.time_ns()
    after = time.monotonic_ns()
    return after - before, (before + after) // 2, realtime_ns
