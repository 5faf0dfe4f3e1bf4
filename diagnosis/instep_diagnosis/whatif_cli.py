"""`instep whatif`: how long the steps of a recorded trace would take if some of its ranks had not been slow."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.standard_output import prepare_output

if TYPE_CHECKING:
    from instep_diagnosis.whatif.analysis import Analysis
    from instep_diagnosis.whatif.replay import Model, Replay
    from instep_diagnosis.whatif.trace import Lanes, Trace

FINE, COULD_NOT_LOOK = 0, 3
"""Exit statuses; 2, used wrongly, is argparse's."""

EPILOG = "exit codes: 0 analysed, 2 used wrongly, 3 the trace cannot be read or analysed, or a result not written."


def main(arguments: Sequence[str] | None = None) -> int:
    """`instep whatif`: 0 analysed, 2 used wrongly, 3 not possible."""
    options = _parser().parse_args(arguments)
    prepare_output(as_json=options.json == "-")
    try:
        return _run(options)
    except ImportError as error:
        print(
            f"instep whatif: {error.name or error} is not installed: run pip install 'instep[whatif]'.", file=sys.stderr
        )
    except EvidenceError as error:
        print(f"instep whatif: {error}", file=sys.stderr)
    except MemoryError:
        print("instep whatif: The trace does not fit into this machine's memory: record fewer steps.", file=sys.stderr)
    return COULD_NOT_LOOK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instep whatif",
        description="What a recorded training trace lost to slow ranks, and to which: replays its steps with some of "
        "the operations at the average of their peers.",
        epilog=EPILOG,
    )
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a trace in Parquet, or a folder of PyTorch profiles")
    parser.add_argument("--meta", metavar="META.yaml", type=Path, help="the job's pp_size, dp_size and vpp_size")
    parser.add_argument("--json", metavar="OUT.json", help="write the result there as JSON, or - for standard output")
    parser.add_argument("--heatmap", metavar="F.png", type=Path, help="draw the slowdown of every worker")
    parser.add_argument("--timeline", metavar="F.json", type=Path, help="write one step for Perfetto, as is and ideal")
    parser.add_argument("--step", metavar="N", type=int, help="the step of the timeline (default: the slowest)")
    parser.add_argument(
        "--engine",
        choices=("numpy", "numba"),
        default="numpy",
        help="numba is faster for many traces in one process; loading it costs more than one trace gains",
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    from instep_diagnosis.whatif.analysis import analyse_lanes, prepare
    from instep_diagnosis.whatif.trace import lay_out

    lanes = lay_out(_read(options.trace, options.meta))
    prepared = prepare(lanes)
    result = analyse_lanes(lanes, prepared, _engine(options.engine))
    if options.heatmap:
        from instep_diagnosis.files.heatmap import write_heatmap

        write_heatmap(options.heatmap, result.slowdown_by_worker_PD, f"{lanes.layout.name} {result.slowdown:.3f}")
    if options.timeline:
        _write_timeline(options, result, prepared)
    _print(options.json, result)
    return FINE


def _read(path: Path, meta: Path | None) -> Trace:
    if path.is_dir():
        from instep_diagnosis.files.kineto import read_profiles

        return read_profiles(path, meta)
    from instep_diagnosis.files.trace import read_layout, read_trace

    if meta is None:
        raise EvidenceError(f"The trace {path} needs the job's layout: give its meta file with --meta.")
    return read_trace(path, read_layout(meta))


def _engine(name: str) -> Replay:
    if name == "numba":
        from instep_diagnosis.whatif import compiled

        return compiled.replay
    from instep_diagnosis.whatif.replay import replay

    return replay


def _write_timeline(options: argparse.Namespace, result: Analysis, prepared: tuple[Lanes, Model]) -> None:
    from instep_diagnosis.whatif.timeline import timeline

    step = int(result.steps_T[result.simulated_seconds_T.argmax()]) if options.step is None else options.step
    _write(options.timeline, json.dumps(timeline(*prepared, step)))


def _print(target: str | None, result: Analysis) -> None:
    from instep_diagnosis.whatif.report import document, text

    if target is None:
        print(text(result), end="")
        return
    written = json.dumps(document(result), indent=1, ensure_ascii=False, allow_nan=False)
    if target == "-":
        print(written)
    else:
        _write(Path(target), written + "\n")


def _write(path: Path, written: str) -> None:
    try:
        path.write_text(written, encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"Cannot write {path} ({error.strerror}): name a file in a folder of yours.") from error
