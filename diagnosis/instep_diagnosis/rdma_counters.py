"""What a counter of an RDMA port means, and what two readings of it say: a rise, a new start, or nothing any more."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from instep_diagnosis.catalogues import loading
from instep_diagnosis.errors import CatalogueError

KINDS = ("error", "congestion", "traffic", "state")
READINGS = ("any", "rate", "info")
SIDES = ("local", "remote", "path", "application", "unknown")


@dataclass(frozen=True, slots=True)
class CounterRow:
    """What is known about one counter."""

    name: str
    folder: str
    """`counters` or `hw_counters` under the port, or `ethtool` of its network device."""
    kind: str
    """One of `KINDS`."""
    reading: str
    """`any`: each rise at run time is an error; `rate`: only a rate means something; `info`."""
    side: str
    """Who is to blame for a rise: one of `SIDES`."""
    bits: int
    saturates_at: int | None
    """The value at which it stops for good, until somebody clears it; None for a counter that wraps."""
    text: str
    source: str
    scale: int = 1
    unit: str = ""
    differs: str = ""


@dataclass(frozen=True, slots=True)
class CounterCatalogue:
    """Every known counter, and the version of the data."""

    version: str
    rows: dict[str, CounterRow]


class Change(StrEnum):
    """What two readings say."""

    SAME = "same"
    RISE = "rise"
    CLEARED = "cleared"
    """It fell: the driver, the firmware or a person began anew."""
    SATURATED = "saturated"
    """It stands at its maximum: it can no longer show anything, and looks well for ever."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The change between two readings of one counter, and the rise that is sure, in the counter's own unit."""

    change: Change
    rise: int


@cache
def counter_catalogue() -> CounterCatalogue:
    """name → what the counter means.

    >>> counter_catalogue().rows["link_downed"].saturates_at
    255
    """
    data = loading.read("rdma.toml")
    rows = [_row(name, entry, data["sources"]) for entry in data["row"] for name in entry["names"]]
    catalogue = CounterCatalogue(data["version"], {row.name: row for row in rows})
    if len(catalogue.rows) != len(rows):
        raise CatalogueError("Catalogue rdma.toml holds a counter twice: each counter has one row.")
    return catalogue


def read_counter(row: CounterRow, before: int | None, now: int) -> Reading:
    """What a counter's new value says after its former one; None where there was none in this boot.

    >>> read_counter(counter_catalogue().rows["link_downed"], 254, 255).change.value
    'saturated'
    """
    rise = 0 if before is None else now - before if now >= before else _fallen(row, before, now)
    if row.saturates_at is not None and now >= row.saturates_at:
        return Reading(Change.SATURATED, rise)
    if before is not None and now < before and not _is_wrap(row, before, now):
        return Reading(Change.CLEARED, rise)
    return Reading(Change.RISE if rise else Change.SAME, rise)


def _fallen(row: CounterRow, before: int, now: int) -> int:
    """The rise of a counter that fell: it wrapped, or it began anew and what it shows came since."""
    return now + (1 << row.bits) - before if _is_wrap(row, before, now) else now


def _is_wrap(row: CounterRow, before: int, now: int) -> bool:
    """Only a narrow counter in the last quarter of its range, now in the first, wraps; anything else is a new start,
    also of one that some devices make wider than it is by rights."""
    size = 1 << row.bits
    return row.saturates_at is None and row.bits <= 32 and size * 3 // 4 <= before < size and now < size // 4


def _row(name: str, entry: dict[str, Any], sources: dict[str, str]) -> CounterRow:
    loading.checked("rdma.toml", name, entry, ("folder", "kind", "reading", "side", "bits", "text"))
    if entry["kind"] not in KINDS or entry["reading"] not in READINGS or entry["side"] not in SIDES:
        raise CatalogueError(f"Row {name} of catalogue rdma.toml has a kind, reading or side that does not exist.")
    return CounterRow(
        name=name,
        folder=entry["folder"],
        kind=entry["kind"],
        reading=entry["reading"],
        side=entry["side"],
        bits=entry["bits"],
        saturates_at=(1 << entry["bits"]) - 1 if entry.get("saturates") else None,
        text=entry["text"],
        source=loading.source_of("rdma.toml", name, entry, sources),
        scale=entry.get("scale", 1),
        unit=entry.get("unit", ""),
        differs=entry.get("differs", ""),
    )
