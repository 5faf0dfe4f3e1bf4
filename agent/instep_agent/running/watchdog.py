"""Looks after the loop from beside it: a source in the agent's own thread that does not come back is said by then."""

from __future__ import annotations

import threading
from collections.abc import Callable

LOOK_SECONDS = 1.0


class Watchdog:
    """Calls `look` every second in a thread of its own. Start it, `close` it."""

    def __init__(self, look: Callable[[], None], *, interval_seconds: float = LOOK_SECONDS) -> None:
        self._look = look
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self, timeout_seconds: float = 0.5) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            self._look()
