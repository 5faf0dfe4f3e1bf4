"""`instep diagnose …` and `instep catalogue …`: decode, call the core, print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from types import ModuleType

from instep_diagnosis import (
    diagnose_bundle,
    diagnose_counters,
    diagnose_flight_recorder,
    diagnose_kernel_log,
    diagnose_series,
    diagnose_stacks,
    diagnose_steps,
)
from instep_diagnosis.catalogues import CatalogueRow, sxid_catalogue, xid_catalogue
from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.exit_status import COULD_NOT_LOOK, FINE, FOUND

# What `instep diagnose NAME` runs: a module with `add_parser(commands)`, which gives back its parser, and
# `run(options)`, which gives back the exit status and may raise `EvidenceError`. `--json` is added here for all.
_COMMANDS: tuple[tuple[str, ModuleType], ...] = (
    ("bundle", diagnose_bundle),
    ("kernel-log", diagnose_kernel_log),
    ("flight-recorder", diagnose_flight_recorder),
    ("counters", diagnose_counters),
    ("stacks", diagnose_stacks),
    ("steps", diagnose_steps),
    ("series", diagnose_series),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """`instep diagnose`: 0 nothing found, 1 something found, 2 used wrongly, 3 the evidence cannot be read."""
    options = _diagnose_parser().parse_args(arguments)
    try:
        return int(dict(_COMMANDS)[options.what].run(options))
    except EvidenceError as error:
        print(f"instep diagnose: {error}", file=sys.stderr)
        return COULD_NOT_LOOK


def catalogue(arguments: Sequence[str] | None = None) -> int:
    """`instep catalogue show xid 94`: 0, or 1 when the catalogue has no such code."""
    options = _catalogue_parser().parse_args(arguments)
    book = xid_catalogue() if options.kind == "xid" else sxid_catalogue()
    rows = list(book.rows.values()) if options.code is None else [r for r in (book.rows.get(options.code),) if r]
    if not rows:
        print(f"instep catalogue: {options.kind} {options.code} is not in version {book.version}.", file=sys.stderr)
        return FOUND
    if options.json:
        found = [_row_fields(row, options.kind, book.version) for row in rows]
        print(json.dumps(found if options.code is None else found[0], ensure_ascii=False))
    else:
        for row in rows:
            print(_row_text(row, options.kind, book.version))
    return FINE


def _diagnose_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep diagnose", description="Who is slow or stuck, from evidence on file.")
    commands = parser.add_subparsers(dest="what", required=True)
    for _, command in _COMMANDS:
        command.add_parser(commands).add_argument("--json", action="store_true", help="print JSON")
    return parser


def _catalogue_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep catalogue", description="What the driver's fault numbers mean.")
    show = parser.add_subparsers(dest="what", required=True).add_parser("show", help="show one code, or all of a kind")
    show.add_argument("kind", choices=["xid", "sxid"])
    show.add_argument("code", type=int, nargs="?")
    show.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _row_fields(row: CatalogueRow, kind: str, version: str) -> dict[str, str | int | None]:
    return {
        "kind": kind,
        "code": row.code,
        "severity": row.severity,
        "workload": row.workload,
        "action": row.action,
        "class": row.class_,
        "text": row.text,
        "source": row.source,
        "version": version,
    }


def _row_text(row: CatalogueRow, kind: str, version: str) -> str:
    label = "Xid" if kind == "xid" else "SXid"
    return (
        f"{label} {row.code}: {row.text}\n"
        f"  severity: {row.severity or 'none'} (further work here: {'no' if row.severity == 'fatal' else 'yes'})\n"
        f"  workload: {row.workload}\n  action: {row.action}\n  class: {row.class_}\n"
        f"  source: {row.source} (catalogue {version})"
    )
