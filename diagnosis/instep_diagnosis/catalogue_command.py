"""`instep catalogue …`: what a code, a counter, a bit or a line means, out of the data, with its source."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from instep_diagnosis.catalogues import Catalogue, CatalogueRow, loading, sxid_catalogue, xid_catalogue
from instep_diagnosis.catalogues.patterns import PatternCatalogue, kernel_patterns, nccl_patterns
from instep_diagnosis.catalogues.rules import nvlink_rules, reading_rules, recovery_actions, register_bits, repeat_rules
from instep_diagnosis.clock_reasons import ClockReason, clock_catalogue, clock_reasons
from instep_diagnosis.errors import CatalogueError
from instep_diagnosis.exit_status import COULD_NOT_LOOK, FINE, FOUND
from instep_diagnosis.kernel_line import read_kernel_line
from instep_diagnosis.log_lines import read_log_line
from instep_diagnosis.rdma_counters import counter_catalogue

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Book:
    """One kind of entry: its version, and each entry's key with its fields."""

    version: str
    entries: tuple[tuple[str, Fields], ...]


def catalogue(arguments: Sequence[str] | None = None) -> int:
    """`instep catalogue show xid 94`: 0, or 1 when there is no such entry, 3 when the data breaks its rules."""
    options = _parser().parse_args(arguments)
    try:
        book = BOOKS[options.kind]()
        found = book.entries if options.key is None else _chosen(options.kind, book, options.key)
    except CatalogueError as error:
        print(f"instep catalogue: {error}", file=sys.stderr)
        return COULD_NOT_LOOK
    if not found:
        print(f"instep catalogue: {_missing(options.kind, book, options.key)}", file=sys.stderr)
        return FOUND
    rows = [{"catalogue": options.kind, "kind": options.kind, **fields, "version": book.version} for _, fields in found]
    if options.json:
        is_one = options.key is not None and len(rows) == 1
        print(json.dumps(rows[0] if is_one else rows, ensure_ascii=False))
        return FINE
    for key, fields in found:
        print(f"{key}: {fields['text']}" if options.what == "list" else _text(options.kind, key, fields, book.version))
    return FINE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep catalogue", description="What the driver's fault numbers mean.")
    commands = parser.add_subparsers(dest="what", required=True)
    show = commands.add_parser("show", help="show one entry, or all of a kind")
    listing = commands.add_parser("list", help="list the entries of a kind, one a line")
    for command in (show, listing):
        command.add_argument("kind", metavar="KIND", choices=sorted(BOOKS), help=", ".join(sorted(BOOKS)))
        command.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("key", metavar="KEY", nargs="?", help="a code, a name, a mask such as 0x40, or a whole line")
    listing.set_defaults(key=None)
    return parser


def _chosen(kind: str, book: Book, key: str) -> tuple[tuple[str, Fields], ...]:
    number = _number(key)
    if kind == "clock" and number is not None and number > 0:
        return tuple((hex(reason.bit), _clock_fields(reason)) for reason in clock_reasons(number))
    if kind in ("nccl", "kernel") and " " in key:
        return _of_line(kind, book, key)
    wanted = key.lower() if number is None or kind in ("rdma", "nccl", "kernel", "reading") else str(number)
    return tuple((name, fields) for name, fields in book.entries if name.lower() == wanted)


def _of_line(kind: str, book: Book, text: str) -> tuple[tuple[str, Fields], ...]:
    """The entry that a whole line belongs to."""
    found = read_log_line(text)
    name = (found.row.name if found else "") if kind == "nccl" else read_kernel_line(text).text
    return tuple(entry for entry in book.entries if entry[0] == name)


def _number(key: str) -> int | None:
    try:
        return int(key, 0)
    except ValueError:
        return None


def _missing(kind: str, book: Book, key: str) -> str:
    names = [name for name, _ in book.entries]
    near = difflib.get_close_matches(key.lower(), names, n=1) if _number(key) is None else []
    hint = f"; did you mean {near[0]}?" if near else f"; instep catalogue list {kind} shows what there is."
    return f"{kind} {key} is not in version {book.version}{hint}"


def _text(kind: str, key: str, fields: Fields, version: str) -> str:
    label = {"xid": "Xid", "sxid": "SXid"}.get(kind, kind)
    lines = [f"{label} {key}: {fields['text']}"]
    lines += [f"  {name}: {_value(name, value)}" for name, value in fields.items() if _is_told(name, value)]
    return "\n".join([*lines, f"  source: {fields['source']} (catalogue {version})"])


def _is_told(name: str, value: Any) -> bool:
    is_empty = value is None or value is False or value in ("", [])
    return name not in ("code", "text", "source") and (name == "severity" or not is_empty)


def _value(name: str, value: Any) -> str:
    if name == "severity":
        return f"{value or 'none'} (further work here: {'no' if value == 'fatal' else 'yes'})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _codes(book: Catalogue, kind: str) -> Book:
    return Book(book.version, tuple((str(code), _code_fields(row, kind)) for code, row in book.rows.items()))


def _code_fields(row: CatalogueRow, kind: str) -> Fields:
    repeated = [rule.text for rule in repeat_rules() if row.code in rule.codes] if kind == "xid" else []
    return {
        "code": row.code,
        "name": row.name,
        "severity": row.severity,
        "workload": row.workload,
        "action": row.action,
        "class": row.class_,
        "text": row.text,
        "repeated": repeated,
        "cleared_by": list(row.clears),
        "differs": row.differs,
        "source": row.source,
    }


def _lines(book: PatternCatalogue) -> Book:
    return Book(
        book.version,
        tuple(
            (
                row.name,
                {
                    "name": row.name,
                    "severity": row.severity,
                    "workload": row.workload,
                    "action": row.action,
                    "subject": row.subject,
                    "owner": row.owner,
                    "victim": row.is_victim,
                    "text": row.text,
                    "pattern": row.pattern.pattern,
                    "cleared_by": list(row.clears),
                    "examples": list(row.examples),
                    "differs": row.differs,
                    "source": row.source,
                },
            )
            for row in book.rows.values()
        ),
    )


def _rdma() -> Book:
    book = counter_catalogue()
    return Book(
        book.version,
        tuple(
            (
                row.name,
                {
                    "name": row.name,
                    "folder": row.folder,
                    "kind": row.kind,
                    "reading": row.reading,
                    "side": row.side,
                    "bits": row.bits,
                    "saturates_at": row.saturates_at,
                    "scale": row.scale,
                    "unit": row.unit,
                    "text": row.text,
                    "differs": row.differs,
                    "source": row.source,
                },
            )
            for row in book.rows.values()
        ),
    )


def _clock_fields(reason: ClockReason) -> Fields:
    return {
        "bit": hex(reason.bit),
        "name": reason.name,
        "kind": reason.kind,
        "text": reason.text,
        "source": reason.source,
    }


def _clock() -> Book:
    book = clock_catalogue()
    return Book(book.version, tuple((hex(bit), _clock_fields(row)) for bit, row in book.rows.items()))


def _rules(rows: Sequence[Any], name: str, key: Callable[[Any], Sequence[object]], fields: Sequence[str]) -> Book:
    entries: list[tuple[str, Fields]] = []
    for row in rows:
        entries.extend((str(one), {field: _plain(getattr(row, field)) for field in fields}) for one in key(row))
    return Book(str(loading.read(name)["version"]), tuple(entries))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _recovery() -> Book:
    fields = ("value", "words", "severity", "action", "text", "source")
    return _rules(list(recovery_actions().values()), "xid.toml", lambda row: [row.value], fields)


def _repeat() -> Book:
    when = ("codes", "same", "count", "apart_seconds", "window_seconds", "is_alone")
    return _rules(repeat_rules(), "xid.toml", lambda row: row.codes, (*when, "severity", "action", "text", "source"))


def _nvlink5() -> Book:
    fields = ("xid", "units", "statuses", "subcodes", "severity", "action", "owner", "text", "source")
    return _rules(nvlink_rules(), "nvlink5.toml", lambda row: [row.xid], fields)


def _xid74() -> Book:
    return _rules(
        register_bits(), "xid74.toml", lambda row: [row.register], ("register", "bits", "is_harmless", "text", "source")
    )


def _reading() -> Book:
    fields = ("name", "means", "events", "part_of", "part_of_readings", "text", "source")
    return _rules(list(reading_rules().values()), "readings.toml", lambda row: [row.name], fields)


BOOKS: dict[str, Callable[[], Book]] = {
    "xid": lambda: _codes(xid_catalogue(), "xid"),
    "sxid": lambda: _codes(sxid_catalogue(), "sxid"),
    "kernel": lambda: _lines(kernel_patterns()),
    "nccl": lambda: _lines(nccl_patterns()),
    "rdma": _rdma,
    "clock": _clock,
    "recovery": _recovery,
    "repeat": _repeat,
    "nvlink5": _nvlink5,
    "xid74": _xid74,
    "reading": _reading,
}
"""Kind → what the catalogue holds of it."""
