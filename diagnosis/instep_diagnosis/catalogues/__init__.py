"""What the numbers in a kernel log mean: versioned data, each row with its source, replaceable without a release."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from instep_diagnosis.catalogues import loading
from instep_diagnosis.errors import CatalogueError

ACTIONS = tuple(str(word) for word in loading.CLOSED["action"])
"""Every action a row may ask for, cheapest first."""
CLASSES = ("application", "hardware", "fabric", "software", "information", "unknown")
CLEARS = ("reset", "reboot", "person", "recovery-none")
"""What may end a standing fault: the GPU was reset, the node started anew, a person says it is repaired, the driver
asks for nothing any more; besides these a code, such as `xid-162`."""
CLEARED_BY_ACTION = {
    "none": ("recovery-none", "reset", "reboot", "person"),
    "restart-app": ("recovery-none", "reset", "reboot", "person"),
    "reset-gpu": ("recovery-none", "reset", "reboot", "person"),
    # A GPU that is off the bus cannot be reset, and what its driver said last is no proof.
    "reboot-node": ("reboot", "person"),
    "contact-support": ("person",),
}
"""What ends a fault whose row does not say."""


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
    """Where the fault lies most often: one of `CLASSES`."""
    text: str
    source: str
    name: str = ""
    """The driver's own identifier, where it is known."""
    differs: str = ""
    """Why this row says otherwise than one of its sources."""
    clears: tuple[str, ...] = ()
    """What ends the fault once it stands: of `CLEARS`, or a code such as `xid-162`. Empty: it never stands."""
    is_always: bool = False
    """The word in the line (Fatal, Non-fatal) cannot change this row."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All rows of one kind of code, and the version of the data."""

    version: str
    rows: dict[int, CatalogueRow] = field(default_factory=dict)


@cache
def xid_catalogue() -> Catalogue:
    """The GPU driver's Xid codes.

    >>> xid_catalogue().rows[79].severity, xid_catalogue().rows[45].severity
    ('fatal', None)
    """
    return _load("xid.toml")


@cache
def sxid_catalogue() -> Catalogue:
    """The NVSwitch driver's SXid codes.

    >>> sxid_catalogue().rows[22003].severity
    'fatal'
    """
    return _load("sxid.toml")


@cache
def cancelling_codes() -> frozenset[str]:
    """Codes that end another fault.

    >>> "xid-162" in cancelling_codes()
    True
    """
    rows = (*xid_catalogue().rows.values(), *sxid_catalogue().rows.values())
    return frozenset(word for row in rows for word in row.clears if word not in CLEARS)


def clears_of(row: dict[str, Any], label: object) -> tuple[str, ...]:
    """What ends the fault of a row once it stands: as it says, else by its action where it is fatal, else nothing."""
    stated = row.get("clears")
    if stated is None:
        return CLEARED_BY_ACTION[row["action"]] if row.get("severity") == "fatal" else ()
    unknown = [word for word in stated if word not in CLEARS and not word.startswith(("xid-", "sxid-"))]
    if unknown:
        raise CatalogueError(f"Row {label} is cleared by {unknown}: use {', '.join(CLEARS)} or a code as in xid-162.")
    return tuple(stated)


def _load(name: str) -> Catalogue:
    data = loading.read(name)
    names = data.get("names", {})
    rows = [_row(name, code, entry, data["sources"], names) for entry in data["row"] for code in entry["codes"]]
    catalogue = Catalogue(version=data["version"], rows={row.code: row for row in rows})
    if len(catalogue.rows) != len(rows):
        raise CatalogueError(f"Catalogue {name} holds a code twice: each code has one row.")
    return catalogue


def _row(name: str, code: int, entry: dict[str, Any], sources: dict[str, str], names: dict[str, str]) -> CatalogueRow:
    loading.checked(name, code, entry, ("workload", "action", "class", "text"))
    if entry["class"] not in CLASSES:
        raise CatalogueError(f"Row {code} of catalogue {name} has class {entry['class']!r}: use {', '.join(CLASSES)}.")
    return CatalogueRow(
        code=code,
        severity=entry.get("severity"),
        workload=entry["workload"],
        action=entry["action"],
        class_=entry["class"],
        text=entry["text"],
        source=loading.source_of(name, code, entry, sources),
        name=names.get(str(code), ""),
        differs=entry.get("differs", ""),
        clears=clears_of(entry, code),
        is_always=entry.get("always", False),
    )
