"""What is done again and again beside the loop, in a thread of its own, so that collecting never waits for it.

The watchdog is one: a source in the agent's own thread that does not come back is said by it. The sweeper is another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Repeating:
    """Calls `act` every `interval_seconds`, the first time after one interval. Start it, `close` it."""

    def __init__(self, name: str, act: Callable[[], object], *, interval_seconds: float) -> None:
        """`name` is the thread's."""
        self._act = act
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_seconds: float = 0.5) -> None:
        """Stop; what is being done is waited for so long."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            self._act()
