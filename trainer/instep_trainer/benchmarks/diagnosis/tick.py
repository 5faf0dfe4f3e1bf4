"""How long one tick of the detectors takes on one core, for a job and a fleet of the largest size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from instep_diagnosis.detectors.series import detect_series_events
from instep_diagnosis.detectors.series_watch import SeriesWatch, WatchSettings
from instep_diagnosis.detectors.straggler import detect_in_arrays, detect_stragglers
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.simulation.hangs import Fault, hang_case
from instep_diagnosis.simulation.steps import StepFault, arrays_of, step_case
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.judge import localise

RANKS = 8_192
NODES = 10_000
SERIES = 60
"""Of each node, watched tick by tick."""
WATCHED_TICKS = 40
WINDOW_STEPS = 64
SECONDS_MAX = 0.5
REPEATS = 3


def tick_lines() -> Iterator[str]:
    """One line a detector, with the processor seconds of its fastest run; the bar stands beside them."""
    steps = step_case(1, ranks=RANKS, fault=StepFault.SLOW, ratio=1.3, sigma=0.01)
    end = steps.onset + 20
    arrays = arrays_of(steps, end, window_steps=WINDOW_STEPS)
    names = JobSteps("simulated", "tick", 1, {}, {r: f"node-{r // 8}" for r in range(RANKS)})
    yield _line(f"slow ranks, {RANKS} ranks × {WINDOW_STEPS} steps as arrays", lambda: detect_in_arrays(names, arrays))
    reports = steps.reports(end, window_steps=WINDOW_STEPS)
    yield _line(f"slow ranks, {RANKS} ranks × {WINDOW_STEPS} steps as reports", lambda: detect_stragglers(reports))
    hang = next(
        case
        for seed in range(100)
        if (case := hang_case(seed, world_size_max=RANKS, fault=Fault.STOPPED, layout="ddp")).world_size == RANKS
    )
    history = assemble(hang.dumps)
    yield _line(f"hang, {RANKS} ranks, from dumps that are read", lambda: localise(history))
    random = np.random.default_rng(1)
    values_TN = np.exp(0.02 * random.standard_normal((60, NODES)))
    times_T, workers = np.arange(60.0), tuple(f"node-{n}" for n in range(NODES))
    yield _line(
        f"changes of level, {NODES} nodes × 60 samples of one series",
        lambda: detect_series_events(values_TN, times_T, workers),
    )
    yield _watch_line()


def _watch_line() -> str:
    """Every tick counts, the slowest too: in one of them a node changes its level in every series."""
    random = np.random.default_rng(1)
    watch = SeriesWatch(tuple(map(str, range(SERIES))), tuple(f"node-{n}" for n in range(NODES)))
    values_SN = np.exp(random.normal(0.0, 1.0, (SERIES, NODES))).astype(np.float32)
    noise_KSN = [0.02 * random.standard_normal((SERIES, NODES), dtype=np.float32) for _ in range(8)]
    warm_ticks = WatchSettings().window_ticks
    seconds, told = [], 0
    for tick in range(warm_ticks + WATCHED_TICKS):
        now_SN = values_SN * np.exp(random.permutation(noise_KSN[tick % 8], axis=1) + 0.1 * np.sin(tick / 9.0))
        if tick >= warm_ticks + WATCHED_TICKS // 2:
            now_SN[:, NODES // 2] *= 1.5
        began = time.process_time()
        told += len(watch.take(float(tick), now_SN))
        seconds.append(time.process_time() - began)
    low, median, high = np.quantile(seconds[warm_ticks:], (0.0, 0.5, 1.0))
    bar = "within" if high <= SECONDS_MAX else "over"
    return (
        f"changes of level, {NODES} nodes × {SERIES} series, one tick of a watch: {median:.3f} s "
        f"({low:.3f} to {high:.3f}, {told} of {SERIES} changes told; {bar} {SECONDS_MAX} s)"
    )


def _line(words: str, run: Callable[[], object]) -> str:
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    best = min(seconds)
    return f"{words}: {best:.3f} s ({'within' if best <= SECONDS_MAX else 'over'} {SECONDS_MAX} s)"
