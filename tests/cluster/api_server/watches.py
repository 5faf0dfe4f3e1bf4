"""Watches: what happened after a revision, then what happens, with bookmarks and with 410 inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tests.cluster.api_server import tables
from tests.cluster.api_server.errors import ApiError, Object
from tests.cluster.api_server.events import to_shown
from tests.cluster.api_server.kinds import Kind
from tests.cluster.api_server.selectors import Matches
from tests.cluster.api_server.store import Change, Store

TIMEOUT_SECONDS = 1800.0
BOOKMARK_SECONDS = 60.0
BEFORE_DEADLINE_SECONDS = 2.0
INITIAL_END = {"k8s.io/initial-events-end": "true"}


class Hub:
    """Wakes the watches of one event loop when the store has changed, from whichever thread."""

    def __init__(self, store: Store) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()
        self.is_closing = False
        self.bookmarks = 0
        """Grows when a test asks for bookmarks at once."""
        self.drops = 0
        """Grows when a test cuts every watch."""
        self.bookmark_seconds = BOOKMARK_SECONDS
        store.listen(lambda _: self.wake())

    def run_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop in which the watches are served."""
        self._loop = loop

    def wake(self) -> None:
        """Every watch looks at the store."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        for event in self._waiting:
            event.set()

    def join(self) -> asyncio.Event:
        """An event that is set at every change."""
        event = asyncio.Event()
        self._waiting.add(event)
        return event

    def leave(self, event: asyncio.Event) -> None:
        """No longer."""
        self._waiting.discard(event)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a watch was asked with."""

    kind: Kind
    namespace: str
    matches: Matches
    revision: int | None
    """None: begin with everything that is there."""
    has_bookmarks: bool
    sends_initial_end: bool
    timeout_seconds: float
    table_include: str | None
    """How much of each object a table row carries; None: no tables."""


async def watch(store: Store, hub: Hub, asked: Asked, is_gone: Callable[[], bool]) -> AsyncIterator[Object]:
    """The events of one watch, until its time is over, its history is lost or the client has gone."""
    changed = hub.join()
    try:
        shape = _Shape(asked)
        with store.lock:
            revision = store.revision if asked.revision is None else asked.revision
            first = store.all(asked.kind.storage, asked.namespace) if asked.revision is None else []
        for found in first:
            if asked.matches(found):
                yield shape.event("ADDED", found)
        if asked.sends_initial_end:
            yield shape.bookmark(revision, INITIAL_END)
        async for event in _follow(store, hub, shape, changed, revision, is_gone):
            yield event
    finally:
        hub.leave(changed)


async def _follow(
    store: Store, hub: Hub, shape: _Shape, changed: asyncio.Event, revision: int, is_gone: Callable[[], bool]
) -> AsyncIterator[Object]:
    asked = shape.asked
    deadline = time.monotonic() + asked.timeout_seconds
    last_bookmark = max(time.monotonic(), deadline - BEFORE_DEADLINE_SECONDS)
    bookmark_at = min(time.monotonic() + hub.bookmark_seconds, last_bookmark)
    seen, drops = hub.bookmarks, hub.drops
    while not (is_gone() or hub.is_closing or hub.drops != drops):
        changed.clear()
        try:
            changes = store.changes_after(revision)
        except ApiError as error:
            yield {"type": "ERROR", "object": error.status()}
            return
        for change in changes:
            revision = change.revision
            if event := shape.of_change(change):
                yield event
        now = time.monotonic()
        if now >= bookmark_at or hub.bookmarks != seen:
            bookmark_at = min(now + hub.bookmark_seconds, last_bookmark) if now < last_bookmark else deadline + 1
            seen = hub.bookmarks
            if asked.has_bookmarks:
                yield shape.bookmark(max(revision, store.revision if not changed.is_set() else revision), {})
        if now >= deadline:
            return
        try:
            await asyncio.wait_for(changed.wait(), max(0.0, min(bookmark_at, deadline) - now))
        except TimeoutError:
            continue


class _Shape:
    """The form of a watch's events: objects, or tables of one row."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._has_sent_columns = False

    def of_change(self, change: Change) -> Object | None:
        """What a change means to this watch: an object that begins or ceases to match is added or deleted."""
        asked = self.asked
        if change.storage != asked.kind.storage or (asked.namespace and change.key[0] != asked.namespace):
            return None
        was = change.before is not None and asked.matches(change.before)
        now = change.after is not None and asked.matches(change.after)
        if now and change.after is not None:
            return self.event("MODIFIED" if was else "ADDED", change.after)
        if was and change.before is not None:
            last = change.before
            metadata = {**last["metadata"], "resourceVersion": str(change.revision)}
            return self.event("DELETED", {**last, "metadata": metadata})
        return None

    def event(self, name: str, found: Object) -> Object:
        """One line of the stream."""
        shown = to_shown(self.asked.kind, found)
        include = self.asked.table_include
        if include is not None:
            about = {"resourceVersion": found["metadata"]["resourceVersion"]}
            has_columns, self._has_sent_columns = not self._has_sent_columns, True
            shown = tables.table(self.asked.kind, [shown], about, include=include, has_columns=has_columns)
        return {"type": name, "object": shown}

    def bookmark(self, revision: int, annotations: Object) -> Object:
        """A line that only tells how far the stream is."""
        metadata: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
        metadata |= {"annotations": annotations} if annotations else {}
        kind = self.asked.kind
        found: Object = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
        if self.asked.table_include is not None:
            found = tables.table(kind, [], metadata, include="None", has_columns=False)
        return {"type": "BOOKMARK", "object": found}
