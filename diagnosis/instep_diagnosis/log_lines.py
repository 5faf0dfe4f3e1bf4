"""From a line of a rank's own log to what NCCL or torch says in it: whose fault, and whether the rank is a victim."""

from __future__ import annotations

from dataclasses import dataclass

from instep_diagnosis.catalogues.patterns import PatternRow, nccl_patterns

LINE_CHARACTERS_MAX = 4096
"""A longer line is cut before it is matched."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that says something, with what could be taken out of it."""

    row: PatternRow
    fields: dict[str, str]
    """Of `patterns.GROUPS`, those that the line has."""


def read_log_line(text: str) -> LogLine | None:
    """What a line says; None when it says nothing that is known.

    >>> read_log_line("NCCL WARN [Service thread] Socket recv failed while polling for opId=0x7f").row.is_victim
    True
    """
    found = nccl_patterns().match(text[:LINE_CHARACTERS_MAX])
    if found is None:
        return None
    row, match = found
    return LogLine(row, {name: value for name, value in match.groupdict().items() if value is not None})
