"""Kernel log lines from a file or from standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from instep_diagnosis.errors import EvidenceError

LINE_BYTES_MAX = 65_536
"""The rest of a longer line is passed over: no kernel record comes near it."""


def kernel_lines(source: str) -> Iterator[str]:
    """Each line of a file, or of standard input for `-`; of a JSON object with a `line` field that field.

    Bytes that are no UTF-8 are replaced. Raises `EvidenceError` where the file cannot be read.
    """
    try:
        if source == "-":
            yield from _texts(sys.stdin.buffer)
        else:
            with Path(source).open("rb") as stream:
                yield from _texts(stream)
    except OSError as error:
        raise EvidenceError(f"Cannot read {source} ({error.strerror}): give a kernel log, or - for input.") from error


def _texts(stream: BinaryIO) -> Iterator[str]:
    while raw := stream.readline(LINE_BYTES_MAX):
        rest = raw
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(LINE_BYTES_MAX)
        yield _line(raw.decode("utf-8", errors="replace").rstrip("\r\n"))


def _line(text: str) -> str:
    if not text.startswith("{"):
        return text
    try:
        line = msgspec.json.decode(text)["line"]
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
        return text
    return line if isinstance(line, str) else text
