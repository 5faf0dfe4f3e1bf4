"""Frames on their way to the server, on disk and bounded: nothing that was not acknowledged is lost by a restart.

One file a frame, written beside its place and renamed into it, with a checksum in front: what a loss of power left
torn is found out and left out. While the server keeps up there is one frame at a time, and that has a file of its own
that is written over and over (`instep_agent.uplink.spool_slot`). When the spool is full its oldest *samples* go first,
whether in frames of their own or beside events; events go only when events alone are too much.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from instep_agent.errors import ConfigurationInvalid
from instep_agent.metric import counter, gauge
from instep_agent.uplink.spool_slot import Slot, SlotTorn
from instep_agent.wire import Frame, Sample

BYTES_MAX = 64 << 20
AGE_SECONDS_MAX = 3600.0
DICTIONARIES_MAX = 64
_MAGIC = b"ISF1"
_HEAD_BYTES = len(_MAGIC) + 4

SPOOL_METRICS = (
    gauge("instep_agent_spool_bytes", "Frames that the server has not acknowledged."),
    gauge("instep_agent_spool_frames", "How many frames the server has not acknowledged."),
    gauge("instep_agent_spool_oldest_age_seconds", "Since the oldest of them was made; 0 when there is none."),
    counter(
        "instep_agent_spool_dropped_total",
        "Frames that were given up unsent, by kind: samples, stripped (its events were kept), events, torn.",
    ),
)

log = logging.getLogger("instep.agent.spool")
_frames = msgspec.msgpack.Decoder(Frame)


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame in the spool; its kind is `samples`, `events` (perhaps with samples), or `stripped` (events alone)."""

    number: int
    kind: str
    size_bytes: int
    since_seconds: float
    """When it was made, on the monotonic clock of this agent: steps of the wall clock make nothing old."""

    @property
    def name(self) -> str:
        """File name; its order is the order of making."""
        return f"{self.number:016d}-{self.kind}.frame"


class Spool:
    """A folder of frames, oldest first, bounded in bytes and age."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int = BYTES_MAX,
        age_seconds_max: float = AGE_SECONDS_MAX,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over what an earlier agent left in `folder`; raise ConfigurationInvalid when it cannot be written."""
        self._folder, self._path = folder, str(folder)
        self._bytes_max = bytes_max
        self._age_seconds_max = age_seconds_max
        self._clock_seconds = clock_seconds
        self._changed = threading.Condition()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._with_samples: OrderedDict[int, None] = OrderedDict()
        self._in_memory: dict[int, bytes] = {}
        self._slot = Slot(folder)
        self._in_slot: tuple[int, bytes] = 0, b""
        """Number and bytes of the frame in the slot; 0 when it is free."""
        self._loses_events = False
        self._on_its_way = 0
        """Number of the frame that is being sent: it is not given up, for it may well arrive."""
        self.size_bytes = 0
        self.dropped = {"samples": 0, "stripped": 0, "events": 0, "torn": 0}
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
            self._make_room(len(data))  # before it is written: the folder itself keeps the bound, too
            self._add(Entry(self._next, "events" if has_events else "samples", len(data), self._clock_seconds()), data)
            self._next += 1
            self._keep_bounds()
            self._changed.notify_all()

    def wait_oldest(self, timeout_seconds: float) -> tuple[Entry, bytes] | None:
        """Give the oldest frame, or None when none came within the time. It is on its way until it is removed, or
        `let_go`."""
        with self._changed:
            if not self._entries:
                self._changed.wait(timeout_seconds)
            self._keep_bounds()
            while self._entries:
                entry = next(iter(self._entries.values()))
                data = self._read(entry)
                if data is not None:
                    self._on_its_way = entry.number
                    return entry, data
                self._lose_torn(entry)
        return None

    def wake(self) -> None:
        """Let a waiting `wait_oldest` come back at once."""
        with self._changed:
            self._changed.notify_all()

    def let_go(self) -> None:
        """The frame that was on its way is in the spool again like any other."""
        with self._changed:
            self._on_its_way = 0

    def remove(self, entry: Entry) -> None:
        """Forget a frame that was acknowledged or refused for good."""
        with self._changed:
            self._forget(entry.number)

    def has_dictionary(self, name: str) -> bool:
        """Whether a dictionary is kept."""
        return os.access(f"{self._path}/{name}.dictionary", os.F_OK)  # for each frame: as cheap as it can be

    def keep_dictionary(self, name: str, data: bytes) -> None:
        """Keep a dictionary by its hash, for frames that a later agent sends."""
        with contextlib.suppress(OSError):  # as for frames; a server that knows the dictionary will not miss it
            _write(self._folder / f"{name}.dictionary", data)
            kept = sorted(self._folder.glob("*.dictionary"), key=lambda each: each.stat().st_mtime_ns)
            for old in kept[:-DICTIONARIES_MAX]:
                old.unlink(missing_ok=True)

    def dictionary(self, name: str) -> bytes | None:
        """Give a dictionary by its hash, or None when it is no longer there."""
        try:
            return (self._folder / f"{name}.dictionary").read_bytes()
        except OSError:
            return None

    def samples(self) -> Iterator[Sample]:
        """Yield how full it is, and what was given up."""
        with self._changed:
            oldest = next(iter(self._entries.values()), None)
            age_seconds = self._clock_seconds() - oldest.since_seconds if oldest else 0.0
            sizes = (float(self.size_bytes), float(len(self._entries)), age_seconds)
            dropped = dict(self.dropped)
        names = ("instep_agent_spool_bytes", "instep_agent_spool_frames", "instep_agent_spool_oldest_age_seconds")
        for name, value in zip(names, sizes, strict=True):
            yield Sample(name=name, labels=(), value=value)
        for kind, count in dropped.items():
            yield Sample(name="instep_agent_spool_dropped_total", labels=(("kind", kind),), value=float(count))

    def _adopt(self) -> None:
        for partial in self._folder.glob("*.partial"):
            partial.unlink(missing_ok=True)
        self._adopt_slot()
        now_seconds, now_realtime_seconds = self._clock_seconds(), time.time()
        for path in sorted(self._folder.glob("*.frame")):
            number, _, kind = path.stem.partition("-")
            if number.isdecimal() and kind in ("samples", "events", "stripped"):
                status = path.stat()
                age_seconds = max(0.0, now_realtime_seconds - status.st_mtime)
                size_bytes = max(0, status.st_size - _HEAD_BYTES)
                self._note(Entry(int(number), kind, size_bytes, now_seconds - age_seconds))

    def _adopt_slot(self) -> None:
        """Give the frame in the slot a file of its own, so that all that an earlier agent left is alike."""
        try:
            found = self._slot.found()
        except SlotTorn:
            self.dropped["torn"] += 1
            return
        if found is not None:
            path = self._folder / Entry(found.number, found.kind, len(found.data), 0.0).name
            _write(path, _MAGIC + zlib.crc32(found.data).to_bytes(4, "little") + found.data)
            os.utime(path, (found.written_seconds, found.written_seconds))
            self._slot.free()

    def _add(self, entry: Entry, data: bytes) -> None:
        if not self._entries:
            with contextlib.suppress(OSError):  # then as any other
                self._slot.put(entry.number, entry.kind, data)
                self._in_slot = entry.number, data
                self._note(entry)
                return
        try:
            _write(self._folder / entry.name, _MAGIC + zlib.crc32(data).to_bytes(4, "little") + data)
        except OSError:  # the disk is full or gone: memory is the next best place, within the same bounds
            self._in_memory[entry.number] = data
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        self._entries[entry.number] = entry
        self.size_bytes += entry.size_bytes
        if entry.kind != "stripped":
            self._with_samples[entry.number] = None

    def _read(self, entry: Entry) -> bytes | None:
        """Give what was written, None when it is torn or gone."""
        if entry.number in self._in_memory:
            return self._in_memory[entry.number]
        if entry.number == self._in_slot[0]:
            return self._in_slot[1]
        try:
            written = (self._folder / entry.name).read_bytes()
        except OSError:  # somebody cleaned the folder up
            return None
        data = written[_HEAD_BYTES:]
        is_whole = written[:_HEAD_BYTES] == _MAGIC + zlib.crc32(data).to_bytes(4, "little")
        return data if is_whole and data else None

    def _make_room(self, size_bytes: int) -> bool:
        """Give up samples that are too old or leave no room for so much more; give whether there is room now."""
        oldest_seconds = self._clock_seconds() - self._age_seconds_max
        while (number := self._oldest_with_samples()) is not None:
            entry = self._entries[number]
            if self.size_bytes + size_bytes <= self._bytes_max and entry.since_seconds >= oldest_seconds:
                return True
            self._give_up_samples(entry)
        return self.size_bytes + size_bytes <= self._bytes_max

    def _oldest_with_samples(self) -> int | None:
        return next((number for number in self._with_samples if number != self._on_its_way), None)

    def _keep_bounds(self) -> None:
        if self._make_room(0) and self._with_samples:
            return
        if self.size_bytes <= self._bytes_max:
            self._loses_events = False
        elif not self._loses_events:
            self._loses_events = True
            log.error("The spool %s is full of events alone: the oldest are given up.", self._folder)
        while self.size_bytes > self._bytes_max and len(self._entries) > 1:  # the newest is never given up
            self._forget(next(iter(self._entries)))
            self.dropped["events"] += 1

    def _give_up_samples(self, entry: Entry) -> None:
        if entry.kind == "samples":
            self._forget(entry.number)
            self.dropped["samples"] += 1
            return
        data = self._read(entry)
        if data is None:
            self._lose_torn(entry)
            return
        stripped = without_samples(data)
        self._replace(entry, replace(entry, kind="stripped", size_bytes=len(stripped)), stripped)
        self.dropped["stripped"] += 1

    def _replace(self, entry: Entry, by: Entry, data: bytes) -> None:
        """Write the shorter frame first: at every moment one of the two is there, and a later agent sends either."""
        self._with_samples.pop(entry.number)
        had_no_file = self._is_without_file(entry.number)
        self.size_bytes += by.size_bytes - entry.size_bytes
        self._entries[entry.number] = by  # in its old place: an ordered dictionary keeps it
        try:
            _write(self._folder / by.name, _MAGIC + zlib.crc32(data).to_bytes(4, "little") + data)
        except OSError:
            self._in_memory[entry.number] = data
        if not had_no_file:
            (self._folder / entry.name).unlink(missing_ok=True)

    def _is_without_file(self, number: int) -> bool:
        """Whether a frame has none of its own; it is given up then."""
        if number == self._in_slot[0]:
            self._in_slot = 0, b""
            self._slot.free(keeps_room=not self._entries)
            return True
        return self._in_memory.pop(number, None) is not None

    def _lose_torn(self, entry: Entry) -> None:
        self._forget(entry.number)
        self.dropped["torn"] += 1
        log.warning("A frame in the spool %s was torn or removed; it is left out.", self._folder)

    def _forget(self, number: int) -> None:
        entry = self._entries.pop(number, None)
        if entry is not None:
            self._with_samples.pop(number, None)
            self.size_bytes -= entry.size_bytes
            if not self._is_without_file(number):
                (self._folder / entry.name).unlink(missing_ok=True)


def without_samples(data: bytes) -> bytes:
    """Give an encoded frame with its events alone; one that is none stays as it is, for the server to refuse."""
    try:
        frame = _frames.decode(data)
    except msgspec.MsgspecError:
        return data
    return msgspec.msgpack.encode(msgspec.structs.replace(frame, dictionary_hash="", values=b"", ranks=(), gpus=None))


def _write(path: Path, data: bytes) -> None:
    """A reader never sees half a file, not even after a crash of the agent."""
    partial = f"{path}.partial"  # many times a second: pathlib and buffered files cost more than the kernel's part
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)
    os.replace(partial, path)  # noqa: PTH105  as above
