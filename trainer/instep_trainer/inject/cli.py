"""`instep inject`: put a fault where it really arises, into a run that allows drills."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from instep_agent.rank_record import RankRecordError, RecordReader, report

from instep_trainer.errors import TrainerError, UsageError
from instep_trainer.inject.faults import FAULT_SECONDS_DEFAULT, Fault, fault_file
from instep_trainer.run.parser import DEFAULT_ROOT

INSIDE = ("slow", "sleep", "spin", "gil", "skip")
"""Faults that arise inside the rank."""
XID_WORDS = {79: "GPU has fallen off the bus.", 94: "Contained memory error.", 13: "Graphics SM Warp Exception."}
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def main(arguments: Sequence[str]) -> int:
    """Inject one fault. Exit status: 0 done, 2 used wrongly, 3 there is no such rank."""
    parser = build_parser()
    try:
        return _inject(parser.parse_args(list(arguments)))
    except TrainerError as error:
        print(f"instep inject: {error}", file=sys.stderr)
        return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="instep inject",
        description="Inject one fault as a drill. Faults inside a rank need a run started with --allow-drills.",
    )
    parser.add_argument(
        "fault",
        choices=[*SIGNALS, *INSIDE, "xid"],
        help="kill, stop: signals. slow: wait inside the rank's own work. sleep, spin, "
        "gil: stuck in the script. skip: leave out one collective. xid: a line in a node's kernel log",
    )
    parser.add_argument("--node", required=True, help="node of the rank")
    parser.add_argument("--run", default="", help="run of the rank (not for xid)")
    parser.add_argument("--rank", type=int, default=-1, help="the rank (not for xid)")
    parser.add_argument(
        "--record-root",
        type=Path,
        default=Path(os.environ.get("INSTEP_RECORD_ROOT", DEFAULT_ROOT)),
        help="shared-memory folder of the run",
    )
    parser.add_argument("--from-step", type=int, default=0, help="inside faults: begin when so many steps are finished")
    parser.add_argument("--to-step", type=int, default=None, help="slow: end before this step")
    parser.add_argument(
        "--ratio", type=float, default=1.3, help="slow: the rank's own work takes so many times as long (default 1.3)"
    )
    parser.add_argument("--seconds", type=float, default=FAULT_SECONDS_DEFAULT, help="sleep, spin, gil: how long")
    parser.add_argument(
        "--kernel-log", type=Path, default=Path("/dev/kmsg"), help="xid: where the line is written (default /dev/kmsg)"
    )
    parser.add_argument("--code", type=int, default=79, help="xid: its number (default 79)")
    parser.add_argument("--pci", default="", help="xid: PCI address of the GPU, such as 0000:3b:00")
    return parser


def _inject(parsed: argparse.Namespace) -> int:
    if parsed.fault == "xid":
        return _write_xid(parsed.kernel_log, parsed.code, parsed.pci)
    if not parsed.run:
        raise UsageError("--run is missing: which run's rank?")
    folder = newest_attempt(parsed.record_root / parsed.node / parsed.run)
    pid = _pid(folder, parsed.rank)
    if parsed.fault in SIGNALS:
        _signal(pid, parsed)
        return _say_done(parsed.fault)
    fault = Fault(
        kind=parsed.fault,
        from_step=parsed.from_step,
        to_step=parsed.to_step,
        ratio=parsed.ratio,
        seconds=parsed.seconds,
    )
    write_faults(fault_file(parsed.record_root, parsed.node, parsed.run, int(folder.name), parsed.rank), [fault])
    return _say_done(parsed.fault)


def _signal(pid: int, parsed: argparse.Namespace) -> None:
    try:
        os.kill(pid, SIGNALS[parsed.fault])
    except OSError as error:
        raise UsageError(
            f"Cannot signal rank {parsed.rank} ({error.strerror}): it may have just ended, or be another user's."
        ) from error


def _say_done(fault: str) -> int:
    """Tell when it was done, for whoever measures from here."""
    print(json.dumps({"fault": fault, "at": time.time()}))
    return 0


def write_faults(path: Path, faults: list[Fault]) -> None:
    """Put the faults where the rank looks, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(faults))
    new.replace(path)


def newest_attempt(run_folder: Path) -> Path:
    """Return the folder of the run's newest attempt. Raise `UsageError` when there is none."""
    attempts: list[Path] = []
    with contextlib.suppress(FileNotFoundError):
        attempts = [entry for entry in run_folder.iterdir() if entry.name.isdigit()]
    if not attempts:
        raise UsageError(f"There is no run in {run_folder}: check --node, --run and --record-root.")
    return max(attempts, key=lambda entry: int(entry.name))


def _pid(folder: Path, rank: int) -> int:
    try:
        with RecordReader(folder / str(rank)) as reader:
            one = report(reader.read(with_collectives=False), now_monotonic_ns=time.monotonic_ns())
    except (RankRecordError, OSError) as error:
        raise UsageError(f"There is no rank {rank} in {folder} ({error}).") from error
    if one.process_state in ("gone", "zombie"):
        raise UsageError(f"Rank {rank} in {folder} has ended.")
    return one.pid


def _write_xid(kernel_log: Path, code: int, pci: str) -> int:
    """Write the line as the driver would, marked as a drill."""
    if not pci:
        raise UsageError("--pci is missing: which GPU, such as 0000:3b:00?")
    words = XID_WORDS.get(code, "injected")
    line = f"NVRM: Xid (PCI:{pci}): {code}, pid='<unknown>', name=<unknown>, {words} instep-drill\n"
    try:
        with kernel_log.open("a") as log:
            log.write(line)
    except OSError as error:
        raise UsageError(f"Cannot write {kernel_log} ({error.strerror}): run as root, or give --kernel-log.") from error
    return _say_done("xid")
