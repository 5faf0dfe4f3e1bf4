"""Long polls: whoever asks for what is not there yet waits, by key, until it is, or until the wait is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

WAIT_SECONDS_MAX = 60.0


class Waiting:
    """Those who wait, by key."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}
        self._is_over = False

    async def until(self, key: str, look: Callable[[], list[Any]], wait_seconds: float) -> list[Any]:
        """Return what `look` finds at once, or after a wake; nothing when the wait is over."""
        event = asyncio.Event()
        self._events.setdefault(key, set()).add(event)
        try:
            found = look()
            if found or wait_seconds <= 0 or self._is_over:
                return found
            try:
                await asyncio.wait_for(event.wait(), min(wait_seconds, WAIT_SECONDS_MAX))
            except TimeoutError:
                return []
            return look()
        finally:
            self._events[key].discard(event)
            if not self._events[key]:
                del self._events[key]

    def count(self, key: str) -> int:
        """Return how many wait under a key."""
        return len(self._events.get(key, ()))

    def wake(self, key: str) -> None:
        """Have those who wait under a key look again."""
        for event in self._events.get(key, ()):
            event.set()

    def release(self) -> None:
        """Answer everybody who waits, and from now on everybody at once."""
        self._is_over = True
        for key in list(self._events):
            self.wake(key)
