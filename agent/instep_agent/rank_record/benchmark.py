"""What the rank record costs: nanoseconds per update, microseconds per step, the reader's share of a core."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from instep_agent.benchmarks.scratch import scratch_folder
from instep_agent.rank_record.identity import RankIdentity
from instep_agent.rank_record.layout import CompletedSource, Op, Phase
from instep_agent.rank_record.reader import RecordReader
from instep_agent.rank_record.report import report
from instep_agent.rank_record.writer import RankRecordWriter

COLLECTIVES_PER_STEP = 8
PHASES_PER_STEP = tuple(map(int, (Phase.data, Phase.forward, Phase.backward, Phase.wait, Phase.optimizer, Phase.user)))
_ALL_REDUCE, _POLLED = int(Op.all_reduce), int(CompletedSource.polled)
RANKS = 8
READS_PER_SECOND = 2.0
UPDATE_NANOSECONDS_LIMIT = 1000.0
STEP_MICROSECONDS_LIMIT = 20.0


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when the medians are within the budget, 1 when not, 2 when used wrongly."""
    parser = argparse.ArgumentParser(prog="instep bench record", description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="measurements of each number (default 20)")
    parser.add_argument("--root", type=Path, default=Path("/dev/shm"), help="a tmpfs to write in (default /dev/shm)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with scratch_folder(options.root) as folder:
        results = measure(folder, repeats=max(2, options.repeats))
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if options.json else _table(results))
    return 0 if is_within_budget(results) else 1


def measure(folder: Path, *, repeats: int, calls: int = 5000) -> dict[str, dict[str, float]]:
    """Give median, quartiles, minimum and maximum of every number over `repeats` measurements of `calls` calls each."""
    writers = [_new_writer(folder, rank) for rank in range(RANKS)]
    writer = writers[0]
    group = writer.declare_group(range(RANKS), "dp", 0)
    cases: dict[str, tuple[Callable[[int], object], float]] = {
        "heartbeat_nanoseconds": (lambda i: writer.heartbeat(i, 0, i % 5), 1),
        "collective_update_nanoseconds": (lambda i: _collective(writer, group, i + 1), 3),
        "finish_step_nanoseconds": (lambda i: writer.finish_step(i, 0.1, wait_seconds=0.01), 1),
        "step_records_microseconds": (lambda i: _step(writer, group, i, is_blocking=False), 1e3),
        "step_records_blocking_microseconds": (lambda i: _step(writer, group, i, is_blocking=True), 1e3),
    }
    results = {}
    for name, (call, divisor) in cases.items():
        count = calls if divisor < 1e3 else calls // 10
        results[name] = _summary([_nanoseconds(call, count) / divisor for _ in range(repeats)])
    results |= _measure_reader(writers, repeats)
    for each in writers:
        each.close()
    return results


def is_within_budget(results: dict[str, dict[str, float]]) -> bool:
    """Whether one update takes at most 1 µs and one step's records at most 20 µs, by their medians."""
    updates = ("heartbeat_nanoseconds", "collective_update_nanoseconds", "finish_step_nanoseconds")
    return (
        all(results[name]["median"] <= UPDATE_NANOSECONDS_LIMIT for name in updates)
        and results["step_records_microseconds"]["median"] <= STEP_MICROSECONDS_LIMIT
    )


def _new_writer(folder: Path, rank: int) -> RankRecordWriter:
    return RankRecordWriter.create(
        folder,
        RankIdentity(job="bench", run="bench", attempt=0, rank=rank, local_rank=rank, world_size=RANKS, node="bench"),
    )


def _collective(writer: RankRecordWriter, group: int | None, seq: int) -> None:
    token = writer.enter(group, seq, _ALL_REDUCE, 4096)
    writer.returned(token)
    writer.completed(token, _POLLED)


def _step(writer: RankRecordWriter, group: int | None, step: int, *, is_blocking: bool) -> None:
    for phase in PHASES_PER_STEP:
        writer.heartbeat(step, 0, phase)
    for seq in range(step * COLLECTIVES_PER_STEP + 1, (step + 1) * COLLECTIVES_PER_STEP + 1):
        token = writer.enter(group, seq, _ALL_REDUCE, 4096)
        if is_blocking:
            writer.returned_completed(token)
        else:
            writer.returned(token)
            writer.completed(token, _POLLED)
    writer.finish_step(step, 0.1, data_seconds=0.01, forward_seconds=0.03, backward_seconds=0.05, wait_seconds=0.01)


def _measure_reader(writers: list[RankRecordWriter], repeats: int) -> dict[str, dict[str, float]]:
    readers = [RecordReader(writer.path) for writer in writers]
    wall, cpu = [], []
    for repeat in range(repeats):
        for writer in writers:
            _step(writer, writer.declare_group(range(RANKS), "dp", 0), repeat, is_blocking=False)
        before, cpu_before = time.perf_counter_ns(), time.process_time_ns()
        for reader in readers:
            report(reader.read(with_collectives=False), now_monotonic_ns=time.monotonic_ns())
        cpu.append((time.process_time_ns() - cpu_before) / 1e9 * READS_PER_SECOND)
        wall.append((time.perf_counter_ns() - before) / 1e6)
    for reader in readers:
        reader.close()
    return {"read_8_ranks_milliseconds": _summary(wall), "read_8_ranks_at_2_hz_cpu_ratio": _summary(cpu)}


def _nanoseconds(call: Callable[[int], object], count: int) -> float:
    before = time.perf_counter_ns()
    for number in range(count):
        call(number)
    return (time.perf_counter_ns() - before) / count


def _summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "quartile_low": low, "quartile_high": high, "min": min(values), "max": max(values)}


def _table(results: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':38} {'median':>10} {'quartiles':>23} {'min':>10} {'max':>10}"]
    for name, row in results.items():
        quartiles = f"{row['quartile_low']:.4g} … {row['quartile_high']:.4g}"
        lines.append(f"{name:38} {row['median']:10.4g} {quartiles:>23} {row['min']:10.4g} {row['max']:10.4g}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
