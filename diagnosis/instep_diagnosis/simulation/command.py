"""`instep simulate`: writes the evidence of a made-up job into a folder, with its truth: for trying out, for tests."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from instep_diagnosis.exit_status import COULD_NOT_LOOK, FINE
from instep_diagnosis.simulation.hangs import Fault, HangCase, hang_case
from instep_diagnosis.simulation.programs import LAYOUTS
from instep_diagnosis.simulation.steps import StepCase, StepFault, step_case
from instep_diagnosis.wait_graph.history import Progress
from instep_diagnosis.wait_graph.recorder import Entry, RecorderDump

RANKS_MAX = 8_192
_STATES = {Progress.ENTERED: "scheduled", Progress.STARTED: "started", Progress.COMPLETED: "completed"}


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 written, 2 used wrongly, 3 the folder cannot be written."""
    parser = _parser()
    options = parser.parse_args(list(arguments))
    if not 2 <= options.ranks <= RANKS_MAX:
        parser.error(f"--ranks is {options.ranks}, allowed are 2 to {RANKS_MAX}.")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        if any(options.folder.iterdir()):
            parser.error(f"{options.folder} is not empty: give a new folder.")
        truth = _hang(options) if options.what == "hang" else _steps(options)
        (options.folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"instep simulate: cannot write into {options.folder} ({error.strerror}).", file=sys.stderr)
        return COULD_NOT_LOOK
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(truth))
    return FINE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep simulate", description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True)
    hang = kinds.add_parser("hang", help="flight-recorder dumps and counters of a job that hangs")
    steps = kinds.add_parser("steps", help="finished steps of a job with a slow rank, as reports and as a series")
    for kind, faults in ((hang, [fault.value for fault in Fault]), (steps, [fault.value for fault in StepFault])):
        kind.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
        kind.add_argument("--seed", type=int, default=1, help="the same seed makes the same job (default 1)")
        kind.add_argument("--fault", choices=faults, default=None, help="what is done to it (default: drawn)")
        kind.add_argument("--layout", choices=LAYOUTS, default=None, help="its parallelism (default: drawn)")
        kind.add_argument("--ranks", type=int, default=16, help="of a hang at most, of steps exactly (default 16)")
    steps.add_argument("--ratio", type=float, default=None, help="the slow rank's work over its peers' work")
    return parser


def _hang(options: argparse.Namespace) -> dict[str, Any]:
    fault = Fault(options.fault) if options.fault else None
    case = hang_case(options.seed, world_size_max=options.ranks, fault=fault, layout=options.layout)
    folder = options.folder / "flight-recorder"
    folder.mkdir()
    for rank, dump in case.dumps.items():
        (folder / f"rank_{rank}.json").write_bytes(msgspec.json.encode(recorder_json(rank, dump)))
    (options.folder / "counters.json").write_bytes(msgspec.json.encode(counters_json(case)))
    return {
        "seed": case.seed,
        "layout": case.layout,
        "fault": case.fault.value,
        "world_size": case.world_size,
        "culprits": list(case.culprits),
    }


def recorder_json(rank: int, dump: RecorderDump) -> dict[str, Any]:
    """A dump in the form in which torch writes it."""
    return {
        "version": "2.10",
        "rank": rank,
        "entries": [_entry_json(entry, is_gloo=dump.is_gloo) for entry in dump.entries],
        "pg_config": {
            group.name: {"name": group.name, "desc": group.description, "ranks": str(list(group.members))}
            for group in dump.groups
        },
        "pg_status": {
            str(pg_id): {
                "last_enqueued_collective": _number(standing.entered),
                "last_started_collective": _number(standing.started),
                "last_completed_collective": _number(standing.completed),
            }
            for pg_id, standing in dump.statuses.items()
        },
    }


def _entry_json(entry: Entry, *, is_gloo: bool) -> dict[str, Any]:
    _, elements, dtype = entry.signature
    ways = {"send": "->", "recv": "<-"}
    name = entry.op
    if entry.peers is not None:
        ends = entry.peers if entry.op == "send" else (entry.peers[1], entry.peers[0])
        name = f"{entry.op} {ends[0]}{ways[entry.op]}{ends[1]}"
    sizes = [[int(elements.split()[0])]] if elements else []
    kinds = [dtype] if dtype else []
    return {
        "record_id": entry.record_id,
        "pg_id": entry.pg_id,
        "process_group": [entry.name, entry.description],
        "collective_seq_id": 0 if entry.is_transfer else entry.seq,
        "p2p_seq_id": entry.seq if entry.is_transfer else 0,
        "op_id": entry.op_id or entry.seq,
        "profiling_name": f"{'gloo' if is_gloo else 'nccl'}:{name}",
        "input_sizes": sizes, "output_sizes": sizes, "input_dtypes": kinds, "output_dtypes": kinds,
        "state": "scheduled" if is_gloo else _STATES[entry.progress],
        "is_p2p": entry.is_transfer,
        "retired": entry.progress is Progress.COMPLETED,
    }  # fmt: skip


def _number(value: int | None) -> int:
    return -1 if value is None else value


def counters_json(case: HangCase) -> dict[str, Any]:
    """What the last operation of each group says, as counters (docs/reference/hang-evidence.md)."""
    rows: dict[str, Any] = {}
    for rank, dump in case.dumps.items():
        members = {(group.name, group.description): group.members for group in dump.groups}
        groups: dict[str, Any] = {}
        for entry in dump.entries:
            key = (entry.name, entry.description)
            if entry.is_transfer:
                continue
            row = groups.setdefault(f"{entry.description}-{entry.name}", {"completed": entry.seq - 1})
            if key in members:
                row["members"] = list(members[key])
            row["enqueued"], row["op"] = entry.seq, entry.op
            if entry.progress is Progress.COMPLETED:
                row["completed"] = entry.seq
        rows[str(rank)] = {"groups": groups}
    return {"world_size": case.world_size, "ranks": rows}


def _steps(options: argparse.Namespace) -> dict[str, Any]:
    fault = StepFault(options.fault) if options.fault else None
    case = step_case(options.seed, ranks=options.ranks, fault=fault, ratio=options.ratio, layout=options.layout)
    _write_reports(case, options.folder / "reports.jsonl")
    with (options.folder / "series.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("time", "worker", "value"))
        for step, row in enumerate(case.busy_TR):
            writer.writerows((step, f"rank-{rank}", round(float(value), 6)) for rank, value in enumerate(row))
    return {
        "seed": case.seed,
        "layout": case.layout,
        "fault": case.fault.value,
        "world_size": options.ranks,
        "culprits": [] if case.rank is None else [case.rank],
        "ratio": case.ratio,
        "onset_step": case.onset,
        "owner": case.owner.value,
        "noise": case.sigma,
    }


def _write_reports(case: StepCase, path: Path) -> None:
    """One line a rank: its node and its steps, as on the wire."""
    steps = len(case.own_TR)
    job = case.reports(steps, window_steps=steps)
    with path.open("wb") as file:
        for rank, rows in job.steps.items():
            file.write(msgspec.json.encode({"rank": rank, "node": job.nodes[rank], "steps": rows}) + b"\n")
