"""Kernel log lines from a file or from standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from instep_diagnosis.errors import EvidenceError


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
    for raw in stream:
        yield _line(raw.decode("utf-8", errors="replace").rstrip("\r\n"))


def _line(text: str) -> str:
    if not text.startswith("{"):
        return text
    try:
        line = msgspec.json.decode(text)["line"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return text
    return line if isinstance(line, str) else text
