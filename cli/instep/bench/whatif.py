"""`instep bench whatif`: the processor time of a what-if analysis, warm and in one process, part by part.

The measuring script, `instep.bench.scripts.whatif_timing`, runs in a process of its own. With a recorded trace and its
meta file it times that trace; without one it makes a trace of four stages and as many data-parallel ranks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "scripts" / "whatif_timing.py"
TIMEOUT_SECONDS = 600.0
MEMORY_BYTES_MAX = 1e9


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 measured, 1 not within the bar that was given, 2 used wrongly, 3 could not measure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.trace is None) != (options.meta is None):
        parser.error("a trace and its --meta go together")
    command = [sys.executable, str(SCRIPT), "--repeats", str(max(3, options.repeats)), "--tiles", str(options.tiles)]
    command += ["--engine", options.engine]
    if options.trace:
        command += [str(options.trace), str(options.meta)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"instep bench whatif: no result within {TIMEOUT_SECONDS:.0f} s: lower --repeats.", file=sys.stderr)
        return 3
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no result"])[-1]
        print(f"instep bench whatif: {reason}", file=sys.stderr)
        return 3
    results = json.loads(run.stdout)
    print(json.dumps(results, indent=2) if options.json else _table(results))
    return 0 if _is_within(results, options) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep bench whatif", description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, help="a recorded trace (default: one that is made)")
    parser.add_argument("--meta", type=Path, help="its meta file; needed with a trace")
    parser.add_argument("--repeats", type=int, default=20, help="measurements of each part (default 20)")
    parser.add_argument("--tiles", type=int, default=1, help="repeat the data-parallel ranks so many times (default 1)")
    parser.add_argument("--engine", choices=("numpy", "numba"), default="numba", help="which replay (default numba)")
    parser.add_argument("--whole-ms-max", type=float, help="bar for the median of the whole analysis, in milliseconds")
    parser.add_argument("--replay-ms-max", type=float, help="bar for the median of simulation and decomposition")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _is_within(results: dict[str, Any], options: argparse.Namespace) -> bool:
    bars = (("whole", options.whole_ms_max), ("simulate_and_decompose", options.replay_ms_max))
    medians = ((statistics.median(results["cpu_milliseconds"][name]), bar) for name, bar in bars if bar is not None)
    return all(value <= bar for value, bar in medians) and results["peak_bytes"] <= MEMORY_BYTES_MAX


def _table(results: dict[str, Any]) -> str:
    lines = [
        f"{results['rows']} rows, {results['engine']}; processor time in milliseconds",
        f"{'':28} {'median':>9} {'quartiles':>21} {'min':>9} {'max':>9}",
    ]
    for name, values in results["cpu_milliseconds"].items():
        low, median, high = statistics.quantiles(values, n=4)
        quartiles = f"{low:.3f} … {high:.3f}"
        lines.append(f"{name:28} {median:9.3f} {quartiles:>21} {min(values):9.3f} {max(values):9.3f}")
    cold = results["first_milliseconds"]
    lines.append(f"first in this process, with imports and compiled code: {cold:.0f} ms")
    lines.append(f"peak memory of the first analysis: {results['peak_bytes'] / 1e6:.0f} MB")
    lines.append(f"slowdown: {results['slowdown']:.6f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
