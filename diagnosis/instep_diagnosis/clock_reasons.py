"""Why a GPU runs below its clocks: the driver's bit mask in words, each with its kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from instep_diagnosis.catalogues import loading
from instep_diagnosis.errors import CatalogueError

KINDS = ("benign", "power", "thermal", "brake")


@dataclass(frozen=True, slots=True)
class ClockReason:
    """One bit of the mask."""

    bit: int
    name: str
    kind: str
    """One of `KINDS`."""
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class ClockCatalogue:
    """Every known bit, and the version of the data."""

    version: str
    rows: dict[int, ClockReason]


@cache
def clock_catalogue() -> ClockCatalogue:
    """bit → what it means.

    >>> clock_catalogue().rows[0x40].kind
    'thermal'
    """
    data = loading.read("clock.toml")
    rows: dict[int, ClockReason] = {}
    for entry in data["row"]:
        loading.checked("clock.toml", entry.get("bit", "?"), entry, ("bit", "name", "kind", "text"))
        if entry["kind"] not in KINDS or entry["bit"] in rows:
            raise CatalogueError(f"Row {entry['bit']:#x} of catalogue clock.toml is there twice or has no known kind.")
        source = loading.source_of("clock.toml", entry["bit"], entry, data["sources"])
        rows[entry["bit"]] = ClockReason(entry["bit"], entry["name"], entry["kind"], entry["text"], source)
    return ClockCatalogue(data["version"], rows)


def clock_reasons(mask: int) -> tuple[ClockReason, ...]:
    """The reasons in a mask, lowest bit first; a bit that is not known is named as such and counts as benign.

    >>> [reason.name for reason in clock_reasons(0x44)]
    ['software-power-cap', 'hardware-thermal']
    """
    rows = clock_catalogue().rows
    bits = [1 << place for place in range(max(0, mask).bit_length()) if mask >> place & 1]
    return tuple(rows.get(bit) or _unknown(bit) for bit in bits)


def _unknown(bit: int) -> ClockReason:
    return ClockReason(bit, f"{bit:#x}", "benign", "a bit that is not known", "")
