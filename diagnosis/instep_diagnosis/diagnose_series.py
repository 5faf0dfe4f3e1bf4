"""`instep diagnose series FILE.csv`: when a worker's level changed, with no knowledge of the job."""

from __future__ import annotations

import argparse
import json

from instep_diagnosis.detectors.series import SeriesEvent, detect_series_events
from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.files.series import SeriesTable, read_series


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser(
        "series",
        help="say when a worker's level changed, in any series of numbers",
        description="When a worker went to another level by itself, in any series above zero; nothing is "
        "known of the job.",
    )
    parser.add_argument("file", metavar="FILE.csv", help="columns time, worker, value")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print one line per event. Raises `EvidenceError` where the file cannot be read."""
    table = read_series(options.file)
    events = detect_series_events(table.values_TW, table.times_T, table.workers)
    for event in events:
        print(json.dumps(_fields(event, table), ensure_ascii=False) if options.json else _text(event, table))
    if not events and not options.json:
        print("No worker changed its level by itself.")
    return FOUND if events else FINE


def _fields(event: SeriesEvent, table: SeriesTable) -> dict[str, object]:
    return {
        "worker": event.worker,
        "start": table.moment(event.start),
        "end": table.moment(event.end),
        "ratio": round(event.ratio, 4),
        "is_ongoing": event.is_ongoing,
    }


def _text(event: SeriesEvent, table: SeriesTable) -> str:
    until = "and still is" if event.is_ongoing else f"until {table.moment(event.end)}"
    return f"{event.worker}: at {event.ratio:.3f} times its level before, from {table.moment(event.start)} {until}"
