"""Times a what-if analysis in this process and prints the processor time of every repeat as JSON.

`instep bench whatif` starts it. Compiling, or reading compiled code, falls into the first analysis, which stands apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

SLOW_WORKER = (1, 2)
PLAN_STEPS, PLAN_STAGES, PLAN_DP, PLAN_MICROBATCHES = 40, 4, 4, 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--engine", default="numba")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="instep-bench-") as folder:
        trace, layout = _input(options, Path(folder))
        print(json.dumps(measure(trace, layout, options.engine, options.repeats)))


def measure(path: Path, layout: Any, engine: str, repeats: int) -> dict[str, Any]:
    """Processor milliseconds by part, `repeats` of each, in their order."""
    first = time.process_time()
    from instep_diagnosis.files.trace import read_trace
    from instep_diagnosis.whatif.analysis import analyse_lanes, prepare
    from instep_diagnosis.whatif.trace import lay_out

    replay = _replay(engine)
    trace = read_trace(path, layout)
    lanes = lay_out(trace)
    prepared = prepare(lanes)
    result = analyse_lanes(lanes, prepared, replay)
    first = time.process_time() - first
    peak_bytes = peak_memory_bytes()
    parts: dict[str, Callable[[], object]] = {
        "read": lambda: read_trace(path, layout),
        "lay_out": lambda: lay_out(trace),
        "graph_and_weights": lambda: prepare(lanes),
        "simulate_and_decompose": lambda: analyse_lanes(lanes, prepared, replay),
        "whole": lambda: _whole(path, layout, replay),
    }
    return {
        "rows": len(trace.step_N),
        "engine": engine,
        "slowdown": result.slowdown,
        "first_milliseconds": first * 1e3,
        "cpu_milliseconds": {name: [_milliseconds(part) for _ in range(repeats)] for name, part in parts.items()},
        "peak_bytes": peak_bytes,
    }


def _whole(path: Path, layout: Any, replay: Any) -> object:
    from instep_diagnosis.files.trace import read_trace
    from instep_diagnosis.whatif.analysis import analyse
    from instep_diagnosis.whatif.report import document

    return document(analyse(read_trace(path, layout), replay))


def _replay(engine: str) -> Any:
    if engine == "numba":
        from instep_diagnosis.whatif import compiled

        return compiled.replay
    from instep_diagnosis.whatif.replay import replay

    return replay


def _milliseconds(part: Callable[[], object]) -> float:
    before = time.process_time()
    part()
    return (time.process_time() - before) * 1e3


def _input(options: argparse.Namespace, folder: Path) -> tuple[Path, Any]:
    """The trace to measure, its data-parallel ranks repeated where that was asked."""
    from instep_diagnosis.files.trace import read_layout

    if options.paths:
        path, layout = options.paths[0], read_layout(options.paths[1])
    else:
        path, layout = folder / "made.parquet", _make(folder / "made.parquet")
    if options.tiles == 1:
        return path, layout
    tiled = folder / "tiled.parquet"
    _tile(path, tiled, layout.dp, options.tiles)
    return tiled, replace(layout, dp=layout.dp * options.tiles)


def _make(path: Path) -> Any:
    """Write a trace of a pipeline in which one worker computes half as fast."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from instep_diagnosis.whatif.optypes import OPTYPES
    from instep_diagnosis.whatif.synthetic import Plan, synthetic_trace
    from instep_diagnosis.whatif.trace import Layout

    def seconds(step: int, kind: str, stage: int, dp: int, number: int) -> float:
        if kind.endswith("compute"):
            return 0.2 * (2.0 if (stage, dp) == SLOW_WORKER else 1.0) * (1 + 0.01 * ((step * 7 + number) % 5))
        return 0.002

    layout = Layout(PLAN_STAGES, PLAN_DP, name="made")
    trace, _ = synthetic_trace(Plan(layout, PLAN_MICROBATCHES), seconds, PLAN_STEPS)
    columns = {"dp_rank": trace.dp_N, "stage": trace.stage_N, "step": trace.step_N, "seq_id": trace.seq_N}
    columns |= {"start_ts": trace.start_seconds_N, "duration": trace.duration_seconds_N, "mc": trace.chunk_N}
    names = [OPTYPES[code] for code in trace.optype_N]
    pq.write_table(pa.table({**columns, "optype": names}), path)
    return layout


def _tile(source: Path, target: Path, dp: int, tiles: int) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    place = table.column_names.index("dp_rank")
    ranks = table["dp_rank"].cast(pa.int32())
    with pq.ParquetWriter(target, table.set_column(place, "dp_rank", ranks).schema) as writer:
        for tile in range(tiles):
            writer.write_table(table.set_column(place, "dp_rank", pc.add(ranks, pa.scalar(dp * tile, pa.int32()))))


def peak_memory_bytes() -> int:
    """Of this program alone: what getrusage tells began with whoever started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    main()
