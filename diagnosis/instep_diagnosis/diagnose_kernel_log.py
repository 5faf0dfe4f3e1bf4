"""`instep diagnose kernel-log FILE`: what each line of a kernel log means, and which faults stand at its end."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator

from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.files.lines import kernel_lines
from instep_diagnosis.kernel_faults import KernelFault, assess
from instep_diagnosis.kernel_line import KernelLine, read_kernel_lines
from instep_diagnosis.latching import FaultSeen, LatchState, latched, standing

_SECONDS = re.compile(r"^[^A-Za-z]*?\[\s*(\d{1,12}\.\d{1,9})\]")
_MICROSECONDS = re.compile(r"^\d+,\d+,(\d{1,18}),[^;]*;")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser(
        "kernel-log",
        help="say what each line of a kernel log means",
        description="What each line means, raw or as a JSON object with a field `line`; without --json only "
        "the lines that tell of a fault, and which faults stand at the end.",
    )
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="a kernel log, plain or gzip, or - for standard input"
    )
    return parser


class _Texts:
    """The lines of a log, and the time of the one that was given last."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at_seconds = 0.0
        """Since boot; a line without such a time is as old as the one before it."""

    def __iter__(self) -> Iterator[str]:
        for text in kernel_lines(self.source):
            if found := _SECONDS.match(text[:200]):
                self.at_seconds = float(found[1])
            elif found := _MICROSECONDS.match(text[:200]):
                self.at_seconds = int(found[1]) / 1e6
            yield text


def run(options: argparse.Namespace) -> int:
    """Print each line's meaning. Raises `EvidenceError` where the log cannot be read."""
    is_any, state, texts, number, told = False, LatchState(), _Texts(options.file), 0, 0
    for number, line in enumerate(read_kernel_lines(texts), start=1):
        fault = assess(line)
        told += fault is not None
        fields = _line_fields(line, fault)
        is_any = is_any or fields["severity"] is not None
        if options.json:
            print(json.dumps(fields, ensure_ascii=False))
        elif fault is not None:
            print(_line_text(number, fields))
            gpu = (line.pci or "").partition(".")[0]
            state = latched(state, FaultSeen("", gpu, fault, texts.at_seconds))
    for latch in standing(state, ""):
        work = "no further work" if latch.severity == "fatal" else "further work, and watch"
        print(
            f"stands at the end: {latch.key.fault_class} on {latch.key.gpu or '?'}, {latch.count} lines, {work}; "
            f"action {latch.action}; ended by {', '.join(latch.clears)}"
        )
    if not told and not options.json:
        print(f"No line tells of a fault, of {number}.")
    return FOUND if is_any else FINE


def _line_text(number: int, fields: dict[str, str | int | None]) -> str:
    code = "" if fields["code"] is None else f" {fields['code']}"
    where = fields["pci"] or fields["device"] or (f"process {fields['pid']}" if fields["pid"] else "?")
    return (
        f"line {number}: {fields['kind']}{code} on {where}: {fields['text']}; "
        f"severity {fields['severity'] or 'none'}, workload {fields['workload']}, action {fields['action']}"
    )


def _line_fields(line: KernelLine, fault: KernelFault | None) -> dict[str, str | int | None]:
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
        "class": fault.fault_class if fault else None,
        "unit": line.unit,
        "device": line.device,
        "injected": line.is_injected,
    }
