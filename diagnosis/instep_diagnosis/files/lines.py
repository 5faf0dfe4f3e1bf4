"""Kernel log lines from a file or from standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from instep_diagnosis.errors import EvidenceError, reason_of
from instep_diagnosis.files.gzipped import UNREADABLE, Lines, plain_or_gzip

LINE_BYTES_MAX = 65_536
"""The rest of a longer line is passed over: no kernel record comes near it."""


def kernel_lines(source: str) -> Iterator[str]:
    """Each line of a file, plain or gzip, or of standard input for `-`; of a JSON object with a `line` field that
    field.

    Bytes that are no UTF-8 are replaced. Raises `EvidenceError` where the file cannot be read.
    """
    try:
        if source == "-":
            yield from _texts(sys.stdin.buffer)
        else:
            with plain_or_gzip(Path(source)) as stream:
                yield from _texts(stream)
    except UNREADABLE as error:
        raise EvidenceError(f"Cannot read {source} ({reason_of(error)}): give a kernel log, or - for input.") from error


def _texts(stream: Lines) -> Iterator[str]:
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
