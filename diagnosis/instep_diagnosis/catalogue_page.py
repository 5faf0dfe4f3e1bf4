"""Writes the reference page of the catalogues out of their data.

`python -m instep_diagnosis.catalogue_page docs/reference/catalogues.md` writes the page; a test compares it with the
data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from instep_diagnosis.catalogue_command import BOOKS, Book, Fields
from instep_diagnosis.catalogues import CLEARED_BY_ACTION
from instep_diagnosis.catalogues.rules import return_rule

_OPENING = """\
# Catalogues

What fault numbers, counters, clock reasons and log lines mean. This page is written by `make docs` from the data in
`diagnosis/instep_diagnosis/catalogues/`; a test compares the two.

- `severity`: may this GPU or node be given further work? **fatal**: no, until repaired; **warning**: yes, and watch it;
  empty: yes.
- `workload`: does the running work fail?
- `action`: `none`, `restart-app`, `reset-gpu`, `reboot-node` or `contact-support`, cheapest first.
- What the driver itself asks for (Xid 154, or its field in NVML) overrules the table.
- A row that says otherwise than one of its sources says why: `instep catalogue show xid 63`.

`instep catalogue show KIND KEY` prints one entry with its source, `instep catalogue list KIND` all of a kind. A folder
named by the variable `INSTEP_CATALOGUES` may hold newer files of the same names; a file that breaks its rules is
refused with the row and the reason.
"""
_TABLES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("xid", "Xid codes of the GPU driver", "", ("severity", "workload", "action", "class", "text", "cleared_by")),
    (
        "recovery",
        "Recovery actions",
        "What Xid 154 and NVML's field ask for. *None* ends what the driver itself can end.",
        ("severity", "action", "text"),
    ),
    (
        "repeat",
        "Codes that repeat",
        "Lines nearer than *apart* are one burst. *Alone*: only while no other GPU of the node shows the code, since a "
        "program at fault shows it on all. Drills do not count.",
        ("same", "count", "apart_seconds", "window_seconds", "is_alone", "action", "text"),
    ),
    (
        "nvlink5",
        "NVLink 5 events (Xid 144 to 150)",
        "The first row that fits counts. The word Fatal or Nonfatal in the line overrules the severity.",
        ("units", "statuses", "subcodes", "severity", "action", "owner", "text"),
    ),
    ("xid74", "Register bits of Xid 74 (up to Hopper)", "Key: the register.", ("bits", "is_harmless", "text")),
    (
        "sxid",
        "SXid codes of the NVSwitch driver",
        "The word Fatal or Non-fatal in the line overrules the severity, except for codes that are always fatal.",
        ("severity", "workload", "action", "text", "cleared_by"),
    ),
    ("kernel", "Kernel lines without a number", "", ("severity", "workload", "action", "owner", "text")),
    (
        "reading",
        "Readings of GPUs",
        "What opens an incident without any line, as a reading or as one of the *events* of NVML. The row that it "
        "*means* says how bad it is; a line with an Xid of *part of*, and another row of *part of readings*, says "
        "more: then it belongs to that.",
        ("means", "events", "part_of", "part_of_readings", "text"),
    ),
    (
        "nccl",
        "Lines of NCCL and torch",
        "*Victim*: whoever logs it suffers from another's fault.",
        ("workload", "action", "owner", "victim", "text"),
    ),
    (
        "rdma",
        "Counters of RDMA ports",
        "A counter that saturates stops at that value and shows nothing more until somebody clears it.",
        ("kind", "reading", "side", "saturates_at", "text"),
    ),
    ("clock", "Clock event reasons", "", ("name", "kind", "text")),
)


def page() -> str:
    """The whole page."""
    parts = [_OPENING, _standing()]
    for kind, title, note, columns in _TABLES:
        book = BOOKS[kind]()
        opening = f"## {title}\n\n`{kind}`, version {book.version}. {note}".rstrip()
        parts.append(f"{opening}\n\n{_table(book, columns)}")
    return "\n".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Write the page to the path given, or to standard output."""
    if arguments:
        Path(arguments[0]).write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
    return 0


def _standing() -> str:
    rule = return_rule()
    days = f"{rule.window_seconds / 86400:.0f} days"
    rows = [[action, ", ".join(clears)] for action, clears in CLEARED_BY_ACTION.items()]
    return (
        "## Faults that stand\n\n"
        "A fatal fault, and a warning whose row lists what ends it, stands until one of these events; time alone ends\n"
        "nothing. Where a row does not say, its action does:\n\n"
        + _lines([["action", "ended by"], *rows])
        + f"\nA fault that a reset or reboot ended {rule.count} times within {days} and "
        "that comes back is hardware: only a\nperson ends it. Duplicates are counted, not repeated. Drills stand too, "
        "labelled, and never touch real faults.\n"
    )


def _table(book: Book, columns: tuple[str, ...]) -> str:
    rows = [[key, *(_cell(fields, column) for column in columns)] for key, fields in book.entries]
    if all(key.isdigit() for key, _ in book.entries):
        rows.sort(key=lambda row: int(row[0]))
    return _lines([["key", *(column.removeprefix("is_").replace("_", " ") for column in columns)], *rows])


def _cell(fields: Fields, column: str) -> str:
    value = fields.get(column)
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return ", ".join(hex(one) if column == "statuses" else str(one) for one in value)
    if isinstance(value, float):
        return f"{value:.0f}"
    return "" if value is None else str(value)


def _lines(rows: Iterable[Sequence[str]]) -> str:
    header, *rest = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([header, "|" + " --- |" * (header.count(" | ") + 1), *rest, ""])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
