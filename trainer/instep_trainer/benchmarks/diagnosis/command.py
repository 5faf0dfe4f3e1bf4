"""`instep bench diagnosis`: are hangs and slow ranks named rightly, on simulated jobs and on small real ones?

Every case is a line of `cases.jsonl` in the folder given with --resume: a run that is ended loses none, the next one
goes on where it stopped. The figures are of all cases in the folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from instep_agent.benchmarks.scratch import scratch_folder
from instep_diagnosis.simulation.alarms import healthy_case
from instep_diagnosis.simulation.fitting import fit, fit_lines
from instep_diagnosis.simulation.hangs import hang_case
from instep_diagnosis.simulation.jitter import GPU_SIGMA, scaled_noise
from instep_diagnosis.simulation.report import report_lines, within_bars
from instep_diagnosis.simulation.scoring import Case, degraded, judge_hang, watch_case
from instep_diagnosis.simulation.steps import step_case

from instep_trainer.benchmarks.diagnosis.campaign import (
    EPISODES,
    KIND,
    PAIR_KIND,
    Order,
    StragglerOrder,
    carry_out,
    next_order,
    pair_order,
    table_lines,
)
from instep_trainer.benchmarks.diagnosis.tick import tick_lines

FINE, FOUND, WRONG_USE, COULD_NOT = 0, 1, 2, 3
CASES = "cases.jsonl"
LARGE_EVERY = 100
"""One simulated hang in so many is of a job of up to 8,192 ranks."""
LARGE_RANKS = 8_192
SIMULATED_RANKS = (4, 8, 16, 32)
"""Of the jobs whose steps are simulated: their reports are judged at every step."""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 within the bars, 1 not, 2 used wrongly, 3 could not measure."""
    options = _parser().parse_args(list(arguments))
    if options.record_jitter:
        return _recorded(options.record_jitter)
    if options.tick:
        print(*tick_lines(), sep="\n")
        return FINE
    with scratch_folder() as folder:
        journal = Journal((options.resume or folder) / CASES)
        try:
            journal.open()
            _run(journal, options)
        except OSError as error:
            print(f"instep bench diagnosis: cannot keep cases in {journal.path} ({error.strerror}).", file=sys.stderr)
            return COULD_NOT
        except KeyboardInterrupt:
            print("instep bench diagnosis: stopped; the figures are of the cases so far.", file=sys.stderr)
        return _report(journal.cases, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep bench diagnosis", description=__doc__)
    parser.add_argument("--hangs", type=int, default=20, metavar="N", help="hangs of real jobs (default 20)")
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="hangs of real jobs of two ranks (default 0)")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="real jobs beside one another; computing ones run alone"
    )
    parser.add_argument(
        "--keep-dumps", type=Path, default=None, metavar="DIR", help="keep the dumps of real hangs there"
    )
    parser.add_argument(
        "--stragglers",
        type=int,
        default=8,
        metavar="N",
        help="episodes of real paced jobs, slow or healthy (default 8)",
    )
    parser.add_argument(
        "--computing", type=int, default=None, metavar="N", help="episodes of jobs that compute (default half as many)"
    )
    parser.add_argument(
        "--work-seconds", type=float, default=None, metavar="S", help="work of a paced step (default 0.2)"
    )
    parser.add_argument(
        "--healthy-hours", type=float, default=0.0, metavar="H", help="training of simulated healthy jobs (default 0)"
    )
    parser.add_argument("--simulated", type=int, default=200, metavar="N", help="simulated hangs (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the first case of each kind (default 1)")
    parser.add_argument("--minutes", type=float, default=None, metavar="M", help="begin nothing new after so long")
    parser.add_argument("--resume", type=Path, default=None, metavar="DIR", help="keep cases there and go on")
    parser.add_argument("--fit", type=Path, default=None, metavar="OUT", help="fit confidence on one half of the cases")
    parser.add_argument("--tick", action="store_true", help="only time the detectors on a large job")
    parser.add_argument(
        "--record-jitter", type=Path, default=None, metavar="OUT", help="only record how unevenly real ranks work"
    )
    parser.add_argument("--json", action="store_true", help="print the cases as JSON lines instead of figures")
    return parser


@dataclass(slots=True)
class Journal:
    """The cases of this run and of those before it in the same folder."""

    path: Path
    cases: list[Case]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cases = []

    def open(self) -> None:
        """Read what is there. A last line that was cut off is left out, and ended, so that the next stands alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                self.cases.append(json.loads(line))
            except ValueError:
                print(f"instep bench diagnosis: a damaged line of {self.path} was left out.", file=sys.stderr)
        if text and not text.endswith("\n"):
            self._write("\n")

    def add(self, case: Case) -> None:
        """Keep one more."""
        self.cases.append(case)
        self._write(json.dumps(case) + "\n")

    def _write(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def seeds(self, kind: str) -> set[int]:
        """Seeds of which there are cases of a kind."""
        return {int(case["seed"]) for case in self.cases if case["kind"] == kind}

    def count(self, kind: str) -> int:
        """Cases of a kind that came to a judgement."""
        return sum(case["kind"] == kind and "answers" in case for case in self.cases)


def _run(journal: Journal, options: argparse.Namespace) -> None:
    """All kinds, until there are as many cases as were asked for, or time is up."""
    end = None if options.minutes is None else time.monotonic() + 60.0 * options.minutes
    _one_after_another(journal, "hang-simulated", options.simulated, _simulated_hang, options.seed, end)
    _one_after_another(journal, "straggler-simulated", options.simulated // 4, _simulated_steps, options.seed, end)
    _healthy_hours(journal, options, end)
    _hang_campaign(journal, options, end)
    _stragglers(journal, "paced", options.stragglers, options, end)
    computing = options.stragglers // 2 if options.computing is None else options.computing
    _stragglers(journal, "cpu", computing, options, end)


def _one_after_another(
    journal: Journal, kind: str, wanted: int, make: Callable[[int], Iterable[Case]], seed: int, end: float | None
) -> None:
    done = journal.seeds(kind)
    while journal.count(kind) < wanted and (end is None or time.monotonic() < end):
        if seed not in done:
            for case in make(seed):
                journal.add(case)
        seed += 1
    print(f"{kind}: {journal.count(kind)} cases", file=sys.stderr)


def _healthy_hours(journal: Journal, options: argparse.Namespace, end: float | None) -> None:
    """Simulated healthy jobs, until so much training was looked at."""
    done = journal.seeds("healthy-simulated")
    hours = sum(case["healthy_seconds"] for case in journal.cases if case["kind"] == "healthy-simulated") / 3600
    for seed in itertools.count(options.seed):
        if hours >= options.healthy_hours or (end is not None and time.monotonic() >= end):
            return
        if seed not in done:
            journal.add(healthy_case(seed))
            hours += journal.cases[-1]["healthy_seconds"] / 3600


def _stragglers(journal: Journal, work: str, wanted: int, options: argparse.Namespace, end: float | None) -> None:
    """Real jobs with slow ranks: those that wait beside one another, those that compute each alone."""
    kind = f"straggler-{work}"
    if journal.count(kind) >= wanted:
        return
    done = journal.seeds(kind)
    seeds = (seed for seed in itertools.count(options.seed) if seed not in done)

    def order(running: Sequence[StragglerOrder]) -> StragglerOrder | None:
        if end is not None and time.monotonic() >= end:
            return None
        return StragglerOrder(next(seeds)) if journal.count(kind) + EPISODES * len(running) < wanted else None

    job = partial(_real_stragglers, kind=work, work_seconds=options.work_seconds if work == "paced" else None)
    for case in carry_out(order, job, workers=options.workers if work == "paced" else 1):
        journal.add(case)
    print(f"{kind}: {journal.count(kind)} cases", file=sys.stderr)


def _hang_campaign(journal: Journal, options: argparse.Namespace, end: float | None) -> None:
    """Hangs of real jobs, several jobs beside one another; in which layout and of which kind is planned from those
    there are."""
    if journal.count(KIND) >= options.hangs and journal.count(PAIR_KIND) >= options.pairs:
        return
    seeds = itertools.count(max([options.seed - 1, *journal.seeds(KIND), *journal.seeds(PAIR_KIND)]) + 1)

    def order(running: Sequence[Order]) -> Order | None:
        if end is not None and time.monotonic() >= end:
            return None
        under_way = Counter(one.ranks_max == 2 for one in running for _ in one.kinds)
        if journal.count(KIND) + under_way[False] < options.hangs:
            return next_order(next(seeds), journal.cases, running)
        return pair_order(next(seeds)) if journal.count(PAIR_KIND) + under_way[True] < options.pairs else None

    began = time.monotonic()
    before = journal.count(KIND) + journal.count(PAIR_KIND)
    for case in carry_out(order, partial(_real_hangs, dumps=options.keep_dumps), workers=options.workers):
        journal.add(case)
    judged = journal.count(KIND) + journal.count(PAIR_KIND) - before
    minutes = (time.monotonic() - began) / 60.0
    print(f"{KIND}: {judged} more cases, {judged / max(minutes, 1e-9):.1f} a minute", file=sys.stderr)


def _simulated_hang(seed: int) -> Iterator[Case]:
    case = hang_case(seed, world_size_max=LARGE_RANKS if seed % LARGE_EVERY == 0 else 64)
    yield judge_hang(case)
    if case.world_size <= 64:
        yield judge_hang(degraded(case), kind="hang-degraded")


def _simulated_steps(seed: int) -> Iterator[Case]:
    yield watch_case(step_case(seed, ranks=SIMULATED_RANKS[seed % len(SIMULATED_RANKS)]))


# torch is imported by those who start real jobs only.
def _real_hangs(order: Order, *, dumps: Path | None = None) -> Iterator[Case]:
    from instep_trainer.benchmarks.diagnosis.real_hangs import real_hangs

    return real_hangs(order, _jitter, dumps=dumps)


def _real_stragglers(order: StragglerOrder, *, kind: str, work_seconds: float | None) -> Iterator[Case]:
    from instep_trainer.benchmarks.diagnosis.real_stragglers import real_stragglers

    return real_stragglers(order.seed, kind, _jitter, work_seconds)


def _jitter(seed: int, steps: int, ranks: int) -> Any:
    """Factors of a step's work: of the form that was recorded, and as large as on GPUs."""
    return np.exp(scaled_noise(np.random.default_rng(seed), steps, ranks, sigma=GPU_SIGMA))


def _report(cases: list[Case], options: argparse.Namespace) -> int:
    if options.json:
        print(*(json.dumps(case) for case in cases), sep="\n")
    else:
        print(*report_lines(cases, seed=options.seed), *table_lines(cases), sep="\n")
    if options.fit:
        try:
            tables = fit(cases, command="instep bench diagnosis --fit OUT --resume DIR")
        except ValueError as error:
            print(f"instep bench diagnosis: {error}", file=sys.stderr)
            return COULD_NOT
        options.fit.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
        print(*fit_lines(cases), sep="\n", file=sys.stderr if options.json else sys.stdout)
    return FINE if within_bars(cases) else FOUND


def _recorded(path: Path) -> int:
    from instep_trainer.benchmarks.diagnosis.recording import record_jitter

    try:
        record_jitter(path)
    except RuntimeError as error:
        print(f"instep bench diagnosis: {error}", file=sys.stderr)
        return COULD_NOT
    return FINE
