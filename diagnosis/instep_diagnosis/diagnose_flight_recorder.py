"""`instep diagnose flight-recorder DIR`: who keeps a job waiting, from a folder of flight-recorder dumps."""

from __future__ import annotations

import argparse
from pathlib import Path

from instep_diagnosis.files.dumps import read_dump_folder
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.judge import localise
from instep_diagnosis.wait_graph_output import print_finding


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser(
        "flight-recorder",
        help="name who keeps a job waiting, from its ranks' dumps",
        description="Who keeps the others waiting, from the dumps that torch writes of NCCL or gloo: any file "
        "names and order, some missing.",
    )
    parser.add_argument("folder", metavar="DIR", help="flight-recorder dumps, pickle or JSON, one file for each rank")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the finding. Raises `EvidenceError` where the folder holds nothing that can be read."""
    folder = read_dump_folder(Path(options.folder))
    history = assemble(folder.dumps, folder.unreadable, folder.notes)
    return print_finding(localise(history), history, as_json=options.json)
