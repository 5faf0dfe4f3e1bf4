"""Lines without a number, as data: what a kernel, NCCL or torch line looks like, what it means and whose it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from instep_diagnosis.catalogues import clears_of, loading
from instep_diagnosis.errors import CatalogueError

OWNERS = ("node", "network", "job", "storage", "unknown")
SUBJECTS = ("gpu", "fabric", "nic", "pcie", "cpu", "memory", "storage", "process")
GROUPS = ("pci", "pid", "name", "device", "rank", "seq", "op", "seconds", "status", "link")
"""What a pattern may take out of its line."""


@dataclass(frozen=True, slots=True)
class PatternRow:
    """One sort of line. `severity`, `workload`, `action`, `clears` and `differs` as in `catalogues.CatalogueRow`."""

    name: str
    pattern: re.Pattern[str]
    severity: str | None
    workload: str
    action: str
    subject: str
    """What the line is about: one of `SUBJECTS`."""
    owner: str
    """Who has to look: one of `OWNERS`."""
    text: str
    examples: tuple[str, ...]
    source: str
    is_victim: bool = False
    """Whoever logs this line suffers from another's fault: it names nobody."""
    clears: tuple[str, ...] = ()
    differs: str = ""


@dataclass(frozen=True, slots=True)
class PatternCatalogue:
    """All rows of one kind of line in the order in which they are tried, and the version of the data."""

    version: str
    rows: dict[str, PatternRow]

    def match(self, text: str) -> tuple[PatternRow, re.Match[str]] | None:
        """The first row whose pattern is in the text, and where."""
        for row in self.rows.values():
            if found := row.pattern.search(text):
                return row, found
        return None


@cache
def kernel_patterns() -> PatternCatalogue:
    """Fault lines of the kernel and its drivers that carry no code.

    >>> kernel_patterns().match("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.")[0].name
    'gpu-lost'
    """
    return _load("kernel.toml")


@cache
def nccl_patterns() -> PatternCatalogue:
    """Lines of NCCL and of torch's process groups in a rank's own log."""
    return _load("nccl.toml")


def _load(name: str) -> PatternCatalogue:
    data = loading.read(name)
    rows = [_row(name, entry, data["sources"]) for entry in data["row"]]
    catalogue = PatternCatalogue(data["version"], {row.name: row for row in rows})
    if len(catalogue.rows) != len(rows):
        raise CatalogueError(f"Catalogue {name} holds a name twice: each name has one row.")
    return catalogue


def _row(name: str, entry: dict[str, Any], sources: dict[str, str]) -> PatternRow:
    label = entry.get("name", "?")
    fields = ("name", "pattern", "workload", "action", "text", "subject", "owner", "examples")
    loading.checked(name, label, entry, fields)
    if entry["owner"] not in OWNERS or entry["subject"] not in SUBJECTS:
        raise CatalogueError(f"Row {label} of catalogue {name} has an owner or a subject that does not exist.")
    return PatternRow(
        name=label,
        pattern=_pattern(name, label, entry["pattern"]),
        severity=entry.get("severity"),
        workload=entry["workload"],
        action=entry["action"],
        subject=entry["subject"],
        owner=entry["owner"],
        text=entry["text"],
        examples=tuple(entry["examples"]),
        source=loading.source_of(name, label, entry, sources),
        is_victim=entry.get("victim", False),
        clears=clears_of(entry, label),
        differs=entry.get("differs", ""),
    )


def _pattern(name: str, label: str, text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise CatalogueError(f"Row {label} of catalogue {name} is no regular expression ({error}).") from error
    unknown = set(pattern.groupindex) - set(GROUPS)
    if unknown:
        raise CatalogueError(f"Row {label} of catalogue {name} has groups {sorted(unknown)}: use {', '.join(GROUPS)}.")
    return pattern
