"""Frames on their way to the server, on disk and bounded: nothing that was not acknowledged is lost by a restart."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from instep_agent.errors import ConfigurationInvalid

BYTES_MAX = 64 << 20
AGE_SECONDS_MAX = 3600.0
DICTIONARIES_MAX = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame in the spool."""

    number: int
    has_events: bool
    size_bytes: int
    since_seconds: float
    """CLOCK_REALTIME of its making: the spool outlives a boot."""

    @property
    def name(self) -> str:
        """File name; its order is the order of making."""
        return f"{self.number:016d}-{'events' if self.has_events else 'samples'}.frame"


class Spool:
    """A folder of frames, oldest first. Beyond its bounds the oldest frames without events go; events never do."""

    def __init__(self, folder: Path, *, bytes_max: int = BYTES_MAX, age_seconds_max: float = AGE_SECONDS_MAX) -> None:
        """Take over what an earlier agent left in `folder`; raise ConfigurationInvalid when it cannot be written."""
        self._folder = folder
        self._bytes_max = bytes_max
        self._age_seconds_max = age_seconds_max
        self._changed = threading.Condition()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._in_memory: dict[int, bytes] = {}
        self.size_bytes = 0
        self.dropped_total = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._adopt()
            (folder / ".writable").touch()
        except OSError as error:
            raise ConfigurationInvalid(
                f"Cannot use the spool folder {folder} ({(error.strerror or '').lower()}): name a "
                "folder that the agent may write."
            ) from error
        self._next = next(reversed(self._entries), 0) + 1

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, data: bytes, *, has_events: bool) -> None:
        """Add a frame and wake whoever waits for one."""
        with self._changed:
            entry = Entry(self._next, has_events, len(data), time.time())
            self._next += 1
            try:
                _write(self._folder / entry.name, data)
            except OSError:  # the disk is full or gone: memory is the next best place, within the same bounds
                self._in_memory[entry.number] = data
            self._entries[entry.number] = entry
            self.size_bytes += entry.size_bytes
            self._keep_bounds()
            self._changed.notify_all()

    def wait_oldest(self, timeout_seconds: float) -> tuple[Entry, bytes] | None:
        """Give the oldest frame, or None when none came within the time."""
        with self._changed:
            if not self._entries:
                self._changed.wait(timeout_seconds)
            self._keep_bounds()
            while self._entries:
                entry = next(iter(self._entries.values()))
                try:
                    return entry, self._in_memory.get(entry.number) or (self._folder / entry.name).read_bytes()
                except OSError:  # somebody cleaned the folder up
                    self._forget(entry)
        return None

    def wake(self) -> None:
        """Let a waiting `wait_oldest` come back at once."""
        with self._changed:
            self._changed.notify_all()

    def remove(self, entry: Entry) -> None:
        """Forget a frame that was acknowledged or refused for good."""
        with self._changed:
            self._forget(entry)

    def keep_dictionary(self, name: str, data: bytes) -> None:
        """Keep a dictionary by its hash, for frames that a later agent sends."""
        path = self._folder / f"{name}.dictionary"
        if path.exists():
            return
        with contextlib.suppress(OSError):  # as for frames; a server that knows the dictionary will not miss it
            _write(path, data)
            kept = sorted(self._folder.glob("*.dictionary"), key=lambda each: each.stat().st_mtime_ns)
            for old in kept[:-DICTIONARIES_MAX]:
                old.unlink(missing_ok=True)

    def dictionary(self, name: str) -> bytes | None:
        """Give a dictionary by its hash, or None when it is no longer there."""
        try:
            return (self._folder / f"{name}.dictionary").read_bytes()
        except OSError:
            return None

    def _adopt(self) -> None:
        for path in sorted(self._folder.glob("*.frame")):
            number, _, kind = path.stem.partition("-")
            if number.isdecimal():
                status = path.stat()
                entry = Entry(int(number), kind == "events", status.st_size, status.st_mtime)
                self._entries[entry.number] = entry
                self.size_bytes += entry.size_bytes

    def _keep_bounds(self) -> None:
        oldest_seconds = time.time() - self._age_seconds_max
        for entry in tuple(self._entries.values()):
            if self.size_bytes <= self._bytes_max and entry.since_seconds >= oldest_seconds:
                return
            if not entry.has_events:
                self._forget(entry)
                self.dropped_total += 1

    def _forget(self, entry: Entry) -> None:
        if self._entries.pop(entry.number, None) is not None:
            self.size_bytes -= entry.size_bytes
            if self._in_memory.pop(entry.number, None) is None:
                (self._folder / entry.name).unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """A reader never sees half a file, not even after a crash of the agent."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
