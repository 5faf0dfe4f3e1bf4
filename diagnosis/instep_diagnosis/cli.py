"""`instep diagnose …` and `instep catalogue …`: decode, call the core, print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from instep_diagnosis.bundles import diagnose
from instep_diagnosis.catalogues import CatalogueRow, sxid_catalogue, xid_catalogue
from instep_diagnosis.codec import encode
from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.files.bundle import read_bundle
from instep_diagnosis.files.lines import kernel_lines
from instep_diagnosis.kernel_faults import assess
from instep_diagnosis.kernel_line import KernelLine, read_kernel_line
from instep_diagnosis.verdict import Verdict

FINE, FOUND, COULD_NOT_LOOK = 0, 1, 3
"""Exit statuses; 2, used wrongly, is argparse's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`instep diagnose`: 0 nothing found, 1 something found, 2 used wrongly, 3 the evidence cannot be read."""
    options = _diagnose_parser().parse_args(arguments)
    try:
        if options.what == "bundle":
            return _bundle(Path(options.file), as_json=options.json)
        return _kernel_log(options.file, as_json=options.json)
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
    what = parser.add_subparsers(dest="what", required=True)
    bundle = what.add_parser("bundle", help="diagnose an exported evidence bundle again")
    bundle.add_argument("file", metavar="FILE.zip")
    log = what.add_parser("kernel-log", help="say what each line of a kernel log means")
    log.add_argument("file", metavar="FILE", nargs="?", default="-", help="a kernel log, or - for standard input")
    for command in (bundle, log):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _catalogue_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep catalogue", description="What the driver's fault numbers mean.")
    show = parser.add_subparsers(dest="what", required=True).add_parser("show", help="show one code, or all of a kind")
    show.add_argument("kind", choices=["xid", "sxid"])
    show.add_argument("code", type=int, nargs="?")
    show.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _bundle(path: Path, *, as_json: bool) -> int:
    bundle, packed = read_bundle(path)
    verdicts = diagnose(bundle)
    if as_json:
        document = {"verdicts": verdicts, "is_same_as_packed": verdicts == packed}
        print(encode(document).decode())
    else:
        print("\n\n".join(verdict_text(verdict) for verdict in verdicts) or "Nothing is wrong in this evidence.")
        if verdicts != packed:
            print("This differs from the verdict the bundle was packed with (another version?).", file=sys.stderr)
    return FOUND if verdicts else FINE


def verdict_text(verdict: Verdict) -> str:
    """A verdict for a person: the sentence, who is blamed, and why."""
    lines = [f"{verdict.kind} ({verdict.certainty}): {verdict.summary}"]
    for suspect in verdict.suspects:
        who = suspect.node if suspect.rank is None else f"rank {suspect.rank} on {suspect.node}"
        lines.append(f"  suspect: {who}, {suspect.cause}, {suspect.confidence:.2f} sure")
    lines.append(f"  owner: {verdict.owner}; node at fault: {'yes' if verdict.is_node_at_fault else 'no evidence'}")
    lines += [f"  - {item.text}" for item in verdict.evidence]
    return "\n".join(lines)


def _kernel_log(source: str, *, as_json: bool) -> int:
    is_any = False
    for number, text in enumerate(kernel_lines(source), start=1):
        fields = _line_fields(read_kernel_line(text))
        is_any = is_any or fields["severity"] is not None
        if as_json:
            print(json.dumps(fields, ensure_ascii=False))
        elif fields["kind"] != "none":
            code = "" if fields["code"] is None else f" {fields['code']}"
            print(
                f"line {number}: {fields['kind']}{code} on {fields['pci'] or '?'}: {fields['text']}; "
                f"severity {fields['severity'] or 'none'}, workload {fields['workload']}, action {fields['action']}"
            )
    return FOUND if is_any else FINE


def _line_fields(line: KernelLine) -> dict[str, str | int | None]:
    fault = assess(line)
    return {
        "kind": line.kind.value,
        "code": line.code,
        "pci": line.pci,
        "severity": fault.severity if fault else None,
        "workload": fault.workload if fault else "survives",
        "action": fault.action if fault else "none",
        "pid": line.pid,
        "name": line.name,
        "link": line.link,
        "subcode": line.subcode,
        "text": fault.text if fault else "",
    }


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
