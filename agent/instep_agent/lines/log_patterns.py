"""Which lines of a job's logs leave the node, and what is taken out of them: `log_patterns.toml`, read once."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LINE_BYTES_MAX = 4096
"""A longer line is cut before it is looked at, so that no pattern has much to try."""
FIELD_CHARACTERS_MAX = 120


@dataclass(frozen=True, slots=True)
class LogPattern:
    """One sort of line."""

    name: str
    contains: tuple[bytes, ...]
    fields: tuple[re.Pattern[str], ...]


@dataclass(frozen=True, slots=True)
class LogPatterns:
    """All of them, in the order in which they are tried."""

    patterns: tuple[LogPattern, ...]
    prefixes: tuple[re.Pattern[str], ...]
    literals: tuple[bytes, ...]
    """Every text that any pattern looks for: bytes without one of them hold no line of interest."""

    def is_worth_a_look(self, data: bytes) -> bool:
        """Whether any pattern may fit anywhere in these bytes: a plain search, whatever stands in them."""
        return any(literal in data for literal in self.literals)

    def match(self, line: bytes) -> tuple[LogPattern, dict[str, str]] | None:
        """Give the first pattern that fits, and the fields of the line.

        >>> pattern, fields = log_patterns().match(b"[rank3]: torch.OutOfMemoryError: CUDA out of memory.")
        >>> pattern.name, fields
        ('out_of_memory', {'rank': '3'})
        """
        line = line[:LINE_BYTES_MAX]
        for pattern in self.patterns:
            if any(literal in line for literal in pattern.contains):
                return pattern, self._fields(pattern, line.decode("utf-8", "replace"))
        return None

    def _fields(self, pattern: LogPattern, text: str) -> dict[str, str]:
        """The first that finds a field gives it."""
        fields: dict[str, str] = {}
        for expression in (*self.prefixes, *pattern.fields):
            if found := expression.search(text):
                given = {name: value for name, value in found.groupdict().items() if value}
                fields = {name: value[:FIELD_CHARACTERS_MAX] for name, value in given.items()} | fields
        return fields


@cache
def log_patterns() -> LogPatterns:
    """Give the patterns of this version."""
    data = tomllib.loads(Path(__file__).with_name("log_patterns.toml").read_text(encoding="utf-8"))
    patterns = tuple(
        LogPattern(
            name=row["name"],
            contains=tuple(text.encode() for text in row["contains"]),
            fields=tuple(map(re.compile, row.get("fields", ()))),
        )
        for row in data["pattern"]
    )
    literals = tuple(literal for pattern in patterns for literal in pattern.contains)
    return LogPatterns(patterns, tuple(map(re.compile, data["prefixes"])), literals)
