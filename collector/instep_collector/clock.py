"""Time as the collector sees it: injected everywhere, read only at the edges."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of this machine's time."""

    def monotonic(self) -> float:
        """Seconds that never jump; ages are differences of it."""

    def realtime(self) -> float:
        """Seconds since 1970 UTC; kept and shown, never subtracted from another machine's."""


class SystemClock:
    """The real one."""

    def monotonic(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def realtime(self) -> float:
        """Seconds since 1970 UTC."""
        return time.time()
