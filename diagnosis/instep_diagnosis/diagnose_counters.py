"""`instep diagnose counters FILE.json`: who keeps a job waiting, from counters of collectives or from NCCL's RAS."""

from __future__ import annotations

import argparse
from pathlib import Path

from instep_diagnosis.files.counters import read_counter_file
from instep_diagnosis.wait_graph.judge import localise
from instep_diagnosis.wait_graph_output import print_finding


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser(
        "counters",
        help="name who keeps a job waiting, from its ranks' counters",
        description="Who keeps the others waiting, from the numbers of collectives that each rank enqueued, "
        "started and completed; any may be missing.",
    )
    parser.add_argument("file", metavar="FILE.json", help="counters of collectives by rank, or NCCL RAS in JSON")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the finding. Raises `EvidenceError` where the file holds no counters."""
    history = read_counter_file(Path(options.file))
    return print_finding(localise(history), history, as_json=options.json)
