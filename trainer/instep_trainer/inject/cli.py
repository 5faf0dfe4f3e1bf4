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
from instep_agent.errors import AgentError, ConfigurationInvalid
from instep_agent.inject.cli import add_options, inject, listing
from instep_agent.inject.faults import BY_NAME
from instep_agent.rank_record import RankRecordError, RecordReader, report

from instep_trainer.errors import TrainerError, UsageError
from instep_trainer.inject.faults import FAULT_SECONDS_DEFAULT, Fault, fault_file
from instep_trainer.run.parser import DEFAULT_ROOT

INSIDE = {
    "slow": "waits inside the rank's own work: --ratio, --from-step, --to-step",
    "sleep": "stuck in the script, asleep: --seconds, --from-step",
    "spin": "stuck in the script, computing: --seconds, --from-step",
    "gil": "stuck in C, holding the GIL: --seconds, --from-step",
    "skip": "leaves out one collective: --from-step",
}
"""Faults that arise inside the rank."""
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
RANK_FAULTS = {"kill": "SIGKILL to the rank", "stop": "SIGSTOP to the rank", **INSIDE}
LISTING = "\n".join(
    [
        "faults of a rank (--run, --rank; those inside it need a run started with --allow-drills):",
        *(f"  {name:18} {help}" for name, help in RANK_FAULTS.items()),
        "faults of a node (--for SECONDS):",
        listing(),
    ]
)


def main(arguments: Sequence[str]) -> int:
    """Inject one fault. Exit status: 0 done, 2 used wrongly, 3 there is no such rank or place."""
    if "--list" in arguments:
        print(LISTING)
        return 0
    parser = build_parser()
    try:
        return _inject(parser.parse_args(list(arguments)))
    except TrainerError as error:
        print(f"instep inject: {error}", file=sys.stderr)
        return error.exit_code
    except AgentError as error:
        print(f"instep inject: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationInvalid) else 3


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="instep inject",
        description="Inject one fault of a rank or of a node, as a drill.",
        epilog=LISTING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fault", metavar="FAULT", choices=[*RANK_FAULTS, *BY_NAME], help="one of the list below")
    parser.add_argument("--list", action="store_true", help="print every fault and end")
    parser.add_argument("--node", required=True, help="node of the rank, or with the fault")
    _add_rank_options(parser.add_argument_group("faults of a rank"))
    add_options(parser.add_argument_group("faults of a node"))
    return parser


def _add_rank_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--run", default="", help="run of the rank")
    parser.add_argument("--rank", type=int, default=-1, help="the rank")
    parser.add_argument(
        "--record-root",
        type=Path,
        default=Path(os.environ.get("INSTEP_RECORD_ROOT", DEFAULT_ROOT)),
        help="shared-memory folder of the run",
    )
    parser.add_argument("--from-step", type=int, default=0, help="inside the rank: begin after so many steps")
    parser.add_argument("--to-step", type=int, default=None, help="slow: end before this step")
    parser.add_argument(
        "--ratio", type=float, default=1.3, help="slow: the rank's own work takes so many times as long (default 1.3)"
    )
    parser.add_argument("--seconds", type=float, default=FAULT_SECONDS_DEFAULT, help="sleep, spin, gil: how long")


def _inject(parsed: argparse.Namespace) -> int:
    if parsed.fault in BY_NAME:
        inject(parsed)
        return 0
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
