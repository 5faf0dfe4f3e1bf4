"""The objects of the stand-in with their history: one revision counter, every change kept until compaction."""

from __future__ import annotations

import copy
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.api_server.errors import Object, expired, from_the_future

Key = tuple[str, str]
"""(namespace, name); the namespace of cluster-scoped objects is empty."""
CHANGES_MAX = 100_000
"""Older changes are compacted away."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write: the object before (None: created) and after (None: deleted)."""

    revision: int
    storage: str
    key: Key
    before: Object | None
    after: Object | None


class Store:
    """Everything is guarded by `lock`; objects that are handed out are copies, or must not be changed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.revision = 1
        self.compacted_revision = 0
        self._objects: dict[str, dict[Key, Object]] = {}
        self._changes: list[Change] = []
        self._listeners: list[Callable[[Change], None]] = []

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Call it after each write, under the lock."""
        self._listeners.append(listener)

    def get(self, storage: str, key: Key) -> Object | None:
        """A copy of one object."""
        with self.lock:
            return copy.deepcopy(self._objects.get(storage, {}).get(key))

    def all(self, storage: str, namespace: str = "") -> list[Object]:
        """The objects of one storage as they are, not copied, by namespace and name."""
        with self.lock:
            kept = self._objects.get(storage, {})
            return [kept[key] for key in sorted(kept) if not namespace or key[0] == namespace]

    def storages(self) -> list[str]:
        """The storages that hold something."""
        with self.lock:
            return [name for name, kept in self._objects.items() if kept]

    def put(self, storage: str, key: Key, value: Object) -> Object:
        """Keep an object under the next revision, and give back a copy of what was kept."""
        with self.lock:
            self.revision += 1
            kept = copy.deepcopy(value)
            kept["metadata"]["resourceVersion"] = str(self.revision)
            before = self._objects.get(storage, {}).get(key)
            self._objects.setdefault(storage, {})[key] = kept
            self._note(Change(self.revision, storage, key, before, kept))
            return copy.deepcopy(kept)

    def remove(self, storage: str, key: Key) -> Object:
        """Delete an object; gives back its last state, under the revision of the deletion."""
        with self.lock:
            self.revision += 1
            before = self._objects[storage].pop(key)
            self._note(Change(self.revision, storage, key, before, None))
            last = copy.deepcopy(before)
            last["metadata"]["resourceVersion"] = str(self.revision)
            return last

    def _note(self, change: Change) -> None:
        self._changes.append(change)
        if len(self._changes) > CHANGES_MAX:
            self.compacted_revision = self._changes[0].revision
            del self._changes[0]
        for listener in self._listeners:
            listener(change)

    def compact(self) -> int:
        """Forget the history up to now; gives back the revision up to which nothing can be told any more."""
        with self.lock:
            self._changes.clear()
            self.compacted_revision = self.revision
            return self.revision

    def changes_after(self, revision: int) -> list[Change]:
        """Every change since; 410 when they are not all kept."""
        with self.lock:
            if revision < self.compacted_revision:
                raise expired(revision, self.compacted_revision)
            return self._changes[bisect_right(self._changes, revision, key=lambda change: change.revision) :]

    def all_at(self, storage: str, revision: int) -> list[Object]:
        """The objects as they were at an earlier revision: the changes since are undone."""
        with self.lock:
            if revision > self.revision:
                raise from_the_future(revision, self.revision)
            kept = dict(self._objects.get(storage, {}))
            for change in reversed(self.changes_after(revision)):
                if change.storage == storage:
                    if change.before is None:
                        kept.pop(change.key, None)
                    else:
                        kept[change.key] = change.before
            return [kept[key] for key in sorted(kept)]
