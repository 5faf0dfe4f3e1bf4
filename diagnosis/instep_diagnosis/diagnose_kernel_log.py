"""`instep diagnose kernel-log FILE`: what each line of a kernel log means."""

from __future__ import annotations

import argparse
import json

from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.files.lines import kernel_lines
from instep_diagnosis.kernel_faults import assess
from instep_diagnosis.kernel_line import KernelLine, read_kernel_line


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser("kernel-log", help="say what each line of a kernel log means")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="a kernel log, or - for standard input")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print each line's meaning. Raises `EvidenceError` where the log cannot be read."""
    is_any = False
    for number, text in enumerate(kernel_lines(options.file), start=1):
        fields = _line_fields(read_kernel_line(text))
        is_any = is_any or fields["severity"] is not None
        if options.json:
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
