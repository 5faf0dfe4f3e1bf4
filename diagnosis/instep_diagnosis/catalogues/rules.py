"""What a code's own line adds to its row, as data: recovery actions, NVLink events, register bits, repetitions.

And what readings tell without a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from instep_diagnosis.catalogues import loading
from instep_diagnosis.errors import CatalogueError


@dataclass(frozen=True, slots=True)
class RecoveryAction:
    """What the driver asks for, by its value in Xid 154 and in NVML's field."""

    value: int
    words: tuple[str, ...]
    severity: str | None
    action: str
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class RepeatRule:
    """A code that comes again and again tells more than once."""

    codes: tuple[int, ...]
    same: str
    """What must be the same: `gpu`, `link` or `unit` (GPC and TPC of an Xid 13)."""
    count: int
    apart_seconds: float
    """Lines nearer to one another than this are one burst and count once."""
    window_seconds: float
    is_alone: bool
    """Only while no other GPU of the node shows the code."""
    severity: str | None
    action: str
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class ReturnRule:
    """A fault that a reset or reboot ended and that comes back so often is hardware: only a person ends it."""

    count: int
    window_seconds: float
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class NvlinkRule:
    """One sort of NVLink 5 event (Xid 144 to 150)."""

    xid: int
    units: tuple[str, ...]
    """Sub-units by name, or by what their name begins with; as the line has them."""
    statuses: tuple[int, ...]
    """Error status words; empty: any."""
    subcodes: tuple[int, ...]
    """Reasons; empty: any."""
    severity: str | None
    action: str
    owner: str
    text: str
    source: str
    is_always: bool = False
    """The line's own word cannot change this row."""


@dataclass(frozen=True, slots=True)
class RegisterBits:
    """Bits of a register word of Xid 74 (up to Hopper) with one meaning."""

    register: int
    """Counted from 1, as they stand in the line."""
    bits: tuple[int, ...]
    is_harmless: bool
    """They alone prove nothing: to ignore, sympathetic, or only on repeat."""
    text: str
    source: str

    @property
    def mask(self) -> int:
        """The bits as a number."""
        return sum(1 << bit for bit in self.bits)


@dataclass(frozen=True, slots=True)
class ReadingRule:
    """What a reading of a GPU, or an event without a number, tells by itself."""

    name: str
    code: int
    """The Xid whose row says how bad it is; 0 where `line` does, or the row itself."""
    line: str
    """Name of such a line without a number; empty where `code` does, or the row itself."""
    severity: str | None
    """With `workload` and `action` where the row says itself how bad it is; else None."""
    workload: str
    action: str
    events: tuple[str, ...]
    """Types of NVML events that tell of it as well."""
    part_of: tuple[int | str, ...]
    """Xid codes that tell of the same error, or `any`: their line says more than the reading."""
    part_of_readings: tuple[str, ...]
    """Other readings that say more of the same error."""
    text: str
    source: str

    @property
    def means(self) -> str:
        """The row that says how bad it is, what to do and what ends it: its catalogue and key, or what it says
        itself."""
        if self.code:
            return f"xid {self.code}"
        return f"kernel {self.line}" if self.line else f"{self.severity}, {self.action}"

    def is_part_of(self, fault_class: str) -> bool:
        """Whether a fault of this class on the same GPU tells of the same error, and more.

        >>> reading_rules()["ecc-uncorrected"].is_part_of("xid-95")
        True
        """
        code = fault_class.removeprefix("xid-") if fault_class.startswith("xid-") else ""
        is_code = code.isdecimal() and ("any" in self.part_of or int(code) in self.part_of)
        return is_code or fault_class in self.part_of_readings


@cache
def recovery_actions() -> dict[int, RecoveryAction]:
    """value → what it asks for.

    >>> recovery_actions()[1].action
    'reset-gpu'
    """
    data = loading.read("xid.toml")
    rows = [_checked("xid.toml", entry, ("value", "words", "action", "text")) for entry in data["recovery"]]
    return {
        row["value"]: RecoveryAction(
            row["value"],
            tuple(row["words"]),
            row.get("severity"),
            row["action"],
            row["text"],
            loading.source_of("xid.toml", row["value"], row, data["sources"]),
        )
        for row in rows
    }


@cache
def repeat_rules() -> tuple[RepeatRule, ...]:
    """Every rule on codes that come again."""
    data = loading.read("xid.toml")
    fields = ("codes", "same", "count", "apart_seconds", "window_seconds", "action", "text")
    rows = [_checked("xid.toml", entry, fields) for entry in data["repeat"]]
    return tuple(
        RepeatRule(
            codes=tuple(row["codes"]),
            same=row["same"],
            count=row["count"],
            apart_seconds=row["apart_seconds"],
            window_seconds=row["window_seconds"],
            is_alone=row.get("alone", False),
            severity=row.get("severity"),
            action=row["action"],
            text=row["text"],
            source=loading.source_of("xid.toml", row["codes"], row, data["sources"]),
        )
        for row in rows
    )


@cache
def return_rule() -> ReturnRule:
    """When a repaired fault that comes back is hardware."""
    data = loading.read("xid.toml")
    row = _checked("xid.toml", data["return"], ("count", "window_seconds", "text"))
    source = loading.source_of("xid.toml", "return", row, data["sources"])
    return ReturnRule(row["count"], row["window_seconds"], row["text"], source)


@cache
def nvlink_rules() -> tuple[NvlinkRule, ...]:
    """Every rule on NVLink 5 events, in the order in which they are tried."""
    data = loading.read("nvlink5.toml")
    rows = [_checked("nvlink5.toml", entry, ("xid", "units", "action", "owner", "text")) for entry in data["row"]]
    return tuple(
        NvlinkRule(
            xid=row["xid"],
            units=tuple(row["units"]),
            statuses=tuple(row.get("statuses", ())),
            subcodes=tuple(row.get("subcodes", ())),
            severity=row.get("severity"),
            action=row["action"],
            owner=row["owner"],
            text=row["text"],
            source=loading.source_of("nvlink5.toml", row["xid"], row, data["sources"]),
            is_always=row.get("always", False),
        )
        for row in rows
    )


@cache
def register_bits() -> tuple[RegisterBits, ...]:
    """Every known bit of Xid 74's register words."""
    data = loading.read("xid74.toml")
    rows = [_checked("xid74.toml", entry, ("register", "bits", "harmless", "text")) for entry in data["row"]]
    found = tuple(
        RegisterBits(
            register=row["register"],
            bits=tuple(row["bits"]),
            is_harmless=row["harmless"],
            text=row["text"],
            source=loading.source_of("xid74.toml", row["bits"], row, data["sources"]),
        )
        for row in rows
    )
    if len({(row.register, bit) for row in found for bit in row.bits}) != sum(len(row.bits) for row in found):
        raise CatalogueError("Catalogue xid74.toml holds a bit twice: each bit has one row.")
    return found


@cache
def reading_rules() -> dict[str, ReadingRule]:
    """Name of a fault that readings tell of → what it means.

    >>> reading_rules()["ecc-uncorrected"].code
    48
    """
    data = loading.read("readings.toml")
    rows = [_checked("readings.toml", entry, ("name", "part_of", "text")) for entry in data["row"]]
    return {row["name"]: _reading_rule(row, data["sources"]) for row in rows}


def _reading_rule(row: dict[str, Any], sources: dict[str, str]) -> ReadingRule:
    own = ("severity", "workload", "action")
    if sum(("code" in row, "line" in row, all(name in row for name in own))) != 1:
        raise CatalogueError(
            f"Row {row['name']} of catalogue readings.toml needs one of code, line, and all of {', '.join(own)}."
        )
    return ReadingRule(
        name=row["name"],
        code=row.get("code", 0),
        line=row.get("line", ""),
        severity=row.get("severity"),
        workload=row.get("workload", ""),
        action=row.get("action", ""),
        events=tuple(row.get("events", ())),
        part_of=tuple(row["part_of"]),
        part_of_readings=tuple(row.get("part_of_readings", ())),
        text=row["text"],
        source=loading.source_of("readings.toml", row["name"], row, sources),
    )


@cache
def event_rules() -> dict[str, ReadingRule]:
    """Type of an NVML event without a number → what it means; types that keep no GPU from work are left out.

    >>> event_rules()["poison_fatal"].code
    95
    """
    return {event: rule for rule in reading_rules().values() for event in rule.events}


def _checked(name: str, entry: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    loading.checked(name, entry.get("text", "?"), entry, fields)
    return entry
