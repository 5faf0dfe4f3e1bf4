"""`instep diagnose …`: decode, call the core, print. `instep catalogue …` is in `catalogue_command`."""

from __future__ import annotations

import argparse
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
from instep_diagnosis.catalogue_command import catalogue
from instep_diagnosis.errors import DiagnosisError
from instep_diagnosis.exit_status import COULD_NOT_LOOK
from instep_diagnosis.standard_output import prepare_output

__all__ = ["catalogue", "main"]

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
    prepare_output(as_json=options.json)
    try:
        return int(dict(_COMMANDS)[options.what].run(options))
    except DiagnosisError as error:
        print(f"instep diagnose: {error}", file=sys.stderr)
        return COULD_NOT_LOOK


EPILOG = "exit codes: 0 nothing found, 1 something found, 2 used wrongly, 3 the evidence cannot be read."


def _diagnose_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instep diagnose", description="Who is slow or stuck, from evidence on file.", epilog=EPILOG
    )
    commands = parser.add_subparsers(dest="what", required=True)
    for _, command in _COMMANDS:
        one = command.add_parser(commands)
        one.epilog = EPILOG
        one.add_argument("--json", action="store_true", help="print JSON instead of text for people")
    return parser
