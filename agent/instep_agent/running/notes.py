"""What the sources of a child must still know when its process is another one, on a page that the agent shares with it.

A child whose sources are all asked rarely need not live between their turns: its process writes down what they remember
and is ended, and the next one reads it. Such a source has two more methods:

- `memory(self) -> bytes | None`: what it remembers, or None while only this very process can know it;
- `recall(self, memory: bytes) -> None`: remember that; called once, before its first turn.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from zlib import crc32

import msgspec

from instep_agent.node import Source

NOTES_BYTES_MAX = 1 << 16
"""Of all sources of a child; one that remembers more lives on."""
_HEAD = struct.Struct("<III")
"""Whether the process may end, the bytes that follow, and their checksum: it may die while it writes."""
_notes = msgspec.msgpack.Decoder(dict[str, bytes])


class Notes:
    """One child's page. Make it before the process is forked that writes it."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, NOTES_BYTES_MAX + _HEAD.size)

    @property
    def may_end(self) -> bool:
        """Whether all that the process knew when it last wrote is here."""
        return bool(_HEAD.unpack_from(self._page)[0])

    def begin(self) -> None:
        """A new process begins: what it will know is not here yet."""
        _, size_bytes, checksum = _HEAD.unpack_from(self._page)
        _HEAD.pack_into(self._page, 0, 0, size_bytes, checksum)

    def write(self, sources: Sequence[Source]) -> None:
        """Write down what these remember; as long as one of them cannot say it, what is here stays."""
        memories = {source.name: source.memory() for source in sources}  # type: ignore[attr-defined]
        data = msgspec.msgpack.encode(memories)
        if None in memories.values() or len(data) > NOTES_BYTES_MAX:
            self.begin()
            return
        self._page[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._page, 0, 1, len(data), crc32(data))

    def recall(self, sources: Sequence[Source]) -> None:
        """Have these remember what is here; nothing of it where it was being written when its process died."""
        _, size_bytes, checksum = _HEAD.unpack_from(self._page)
        data = self._page[_HEAD.size : _HEAD.size + min(size_bytes, NOTES_BYTES_MAX)]
        memories = _notes.decode(data) if data and crc32(data) == checksum else {}
        for source in sources:
            if source.name in memories:
                source.recall(memories[source.name])  # type: ignore[attr-defined]


def is_forgettable(sources: Sequence[Source]) -> bool:
    """Whether the process of these may end between two turns."""
    return all(hasattr(source, "memory") for source in sources)
