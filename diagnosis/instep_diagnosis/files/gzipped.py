"""Files of lines that may be compressed with gzip, whatever their names end with."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading such a file may raise."""


class Lines(Protocol):
    """A stream that is read line by line."""

    def readline(self, size: int, /) -> bytes:
        """The next line, or as much of it as `size` bytes; empty at the end."""


@contextmanager
def plain_or_gzip(path: Path) -> Iterator[Lines]:
    """The file's content, unpacked where its first two bytes are those of gzip. Reading may raise `UNREADABLE`."""
    with path.open("rb") as stream:
        if stream.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield unpacked
        else:
            yield stream
