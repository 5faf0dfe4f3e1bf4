"""What the numbers in a kernel log mean: versioned data, each row with its source, replaceable without a release."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

ACTIONS = ("none", "restart-app", "reset-gpu", "reboot-node", "contact-support")
"""Every action a row may ask for, cheapest first."""


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """What is known about one code."""

    code: int
    severity: str | None
    """May this GPU or node be given further work? `fatal`: no, until repaired; `warning`: yes, and watch it; None:
    yes."""
    workload: str
    """Does the running work fail? `fails`, `survives` or `unknown`."""
    action: str
    """One of `ACTIONS`."""
    class_: str
    """Where the fault lies most often: `application`, `hardware`, `fabric`, `software` or `information`."""
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All rows of one kind of code, and the version of the data."""

    version: str
    rows: dict[int, CatalogueRow]


@cache
def xid_catalogue() -> Catalogue:
    """The GPU driver's Xid codes.

    >>> xid_catalogue().rows[79].severity, xid_catalogue().rows[45].severity
    ('fatal', None)
    """
    return _load("xid.toml")


@cache
def sxid_catalogue() -> Catalogue:
    """The NVSwitch driver's SXid codes that need more than the word in their line."""
    return _load("sxid.toml")


def _load(name: str) -> Catalogue:
    data = tomllib.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))
    rows = [_row(code, entry, data["sources"]) for entry in data["row"] for code in entry["codes"]]
    catalogue = Catalogue(version=data["version"], rows={row.code: row for row in rows})
    if len(catalogue.rows) != len(rows):
        raise ValueError(f"Catalogue {name} holds a code twice: each code has one row.")
    return catalogue


def _row(code: int, entry: dict[str, Any], sources: dict[str, str]) -> CatalogueRow:
    if entry["action"] not in ACTIONS:
        raise ValueError(f"Catalogue row {code} asks for {entry['action']!r}: actions are {', '.join(ACTIONS)}.")
    return CatalogueRow(
        code=code,
        severity=entry.get("severity"),
        workload=entry["workload"],
        action=entry["action"],
        class_=entry["class"],
        text=entry["text"],
        source="; ".join(sources[key] for key in entry["source"]),
    )
