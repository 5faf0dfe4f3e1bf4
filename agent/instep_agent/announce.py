"""What a source is doing right now, kept where the agent can read it although the source never comes back.

A source says which call it is about to make: `announce("nvmlDeviceGetTemperature gpu 3")`. That is one write into a
page of memory that the agent shares with the child process (0.7 µs): a source may do it before every call of a driver.
"""

from __future__ import annotations

import mmap
import struct
import time

SOURCE_BYTES_MAX = 64
CALL_BYTES_MAX = 200
_HEAD = struct.Struct("<QHH")
_CALL_AT = _HEAD.size + SOURCE_BYTES_MAX


class Progress:
    """Which source runs, in which call, since when; shared by the agent and the processes it forks afterwards."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._source = b""

    def begin(self, source: str) -> None:
        """Say whose turn it is; empty when it is nobody's."""
        self._source = source.encode()[:SOURCE_BYTES_MAX]
        self._page[_HEAD.size : _HEAD.size + len(self._source)] = self._source
        self.call("")

    def call(self, text: str) -> None:
        """Say which call comes next."""
        self.encoded_call(text.encode()[:CALL_BYTES_MAX])

    def encoded_call(self, call: bytes) -> None:
        """The same for text that was encoded once and for all, of at most CALL_BYTES_MAX."""
        self._page[_CALL_AT : _CALL_AT + len(call)] = call
        _HEAD.pack_into(self._page, 0, time.monotonic_ns(), len(self._source), len(call))

    def read(self) -> tuple[str, str, float]:
        """Give the source, its call and the seconds since. What is being written meanwhile may come out mixed."""
        since_ns, source_bytes, call_bytes = _HEAD.unpack_from(self._page, 0)
        source = self._page[_HEAD.size : _HEAD.size + min(source_bytes, SOURCE_BYTES_MAX)]
        call = self._page[_CALL_AT : _CALL_AT + min(call_bytes, CALL_BYTES_MAX)]
        age_seconds = (time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0
        return source.decode("utf-8", "replace"), call.decode("utf-8", "replace"), age_seconds


class _Current:
    """The page of this process; a child's is given to it at its start."""

    progress = Progress()


def announce(call: str) -> None:
    """Say which call the source that runs now is about to make."""
    _Current.progress.call(call)


def announce_encoded(call: bytes) -> None:
    """The same as `announce`, for a call that is made again and again."""
    _Current.progress.encoded_call(call)


def use(progress: Progress) -> None:
    """Announce into `progress` from now on."""
    _Current.progress = progress


def current() -> Progress:
    """Give the page that `announce` writes to."""
    return _Current.progress
