"""Hangs of small real jobs: who is named by the live detectors, by the dumps alone, and by torch's own analyser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from instep_diagnosis.detectors.stall import Stall
from instep_diagnosis.files.dumps import read_dump_folder
from instep_diagnosis.simulation.alike import alike
from instep_diagnosis.simulation.hangs import is_held_up
from instep_diagnosis.simulation.programs import STEPS as PROGRAM_STEPS
from instep_diagnosis.simulation.programs import Program, Training, training
from instep_diagnosis.verdict import StuckAt, Verdict
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.judge import localise, localise_uncalibrated

from instep_trainer.benchmarks.diagnosis.campaign import KIND, PAIR_KIND, Case, Order
from instep_trainer.benchmarks.diagnosis.paced_rank import (
    CALL_FAULTS,
    Plan,
    PlannedFault,
)
from instep_trainer.benchmarks.diagnosis.real_jobs import RealJob, real_job
from instep_trainer.benchmarks.diagnosis.recorder_analyser import analyse

PAUSES = ("data", "checkpoint", "evaluation")
"""Phases in which one rank stays for a while, and comes back by itself: no fault."""
BENIGN_RATIO = 0.25
"""Of jobs: with a pause in one rank that is no fault."""
HEALTHY_STEPS = 30
"""Before the first fault of a job."""
BETWEEN_STEPS = 10
WORK_SECONDS = 0.01
"""Of a step: hangs need no long steps."""
DRAWS_MAX = 200
"""Of jobs, until one has the size that was ordered."""
_OTHER_OP = "another"
"""What a rank calls instead matches nothing that the others call."""

Jitter = Callable[[int, int, int], Any]
"""Seed, steps and ranks → factors of a step's work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whom one method names."""

    named: tuple[int, ...]
    is_tied: bool = False
    sure: tuple[float, ...] = ()
    """For each of the named."""


def real_hangs(order: Order, jitter: Jitter, *, dumps: Path | None = None) -> Iterator[Case]:
    """The cases of one job, as they come: a hang or a benign pause each. Dumps are kept in the folder, if one is given,
    each hang's in one of its own with the truth beside them."""
    random = Random(f"real hangs {order.seed}")
    job, programs = _job(random, order)
    faults = _faults(random, order, programs)
    if not faults:
        return
    steps = faults[-1].step + BETWEEN_STEPS
    work = WORK_SECONDS * jitter(random.randrange(1 << 30), steps, len(programs))
    plan = Plan(job.groups, programs, steps, work.tolist(), faults)
    kind = PAIR_KIND if len(programs) == 2 else KIND
    base: Case = {"kind": kind, "seed": order.seed, "layout": job.layout, "world_size": len(programs)}
    with real_job(plan) as running:
        for fault in (fault for fault in faults if fault.kind not in PAUSES):
            found = running.wait()
            if isinstance(found, str):
                # A rank that gloo has ended is a crash and no hang: another benchmark's.
                yield base | {"fault": fault.kind, "outcome": found, "truth": [fault.rank]}
                return
            case = _case(base, running, fault, found)
            if dumps is not None:
                _keep(dumps / f"{order.seed}-{faults.index(fault)}-{fault.kind}", running, case)
            yield case
            if fault is not faults[-1]:
                running.take_back(fault.kind, fault.rank)
    # Whoever came as far as a fault has passed the pauses before it without an alarm.
    for fault in faults:
        if fault.kind in PAUSES:
            yield base | {"fault": f"benign {fault.kind}", "outcome": "no alarm", "truth": []}


def _job(random: Random, order: Order) -> tuple[Training, tuple[Program, ...]]:
    """A job of the size and layout that were ordered, and one step of each rank."""
    for _ in range(DRAWS_MAX):
        job = training(random, world_size_max=order.ranks_max, layout=order.layout)
        if len(job.programs) >= order.ranks_min:
            return job, tuple(program[: len(program) // PROGRAM_STEPS] for program in job.programs)
    raise ValueError(f"No job of layout {order.layout} has {order.ranks_min} to {order.ranks_max} ranks: take others.")


def _faults(random: Random, order: Order, programs: tuple[Program, ...]) -> tuple[PlannedFault, ...]:
    kinds = list(order.kinds)
    if random.random() < BENIGN_RATIO:
        kinds.insert(random.randrange(len(kinds)), random.choice(PAUSES))
    found = []
    step = HEALTHY_STEPS
    for kind in kinds:
        rank = random.randrange(len(programs))
        places = _places(programs, rank, kind)
        if places:
            found.append(PlannedFault(kind, rank, step, random.choice(places)))
        step += BETWEEN_STEPS + random.randrange(5)
    return tuple(found)


def _places(programs: tuple[Program, ...], rank: int, kind: str) -> list[int]:
    """Where in a rank's program a fault of this kind can be, so that others are held up by it."""
    program = programs[rank]
    if kind not in CALL_FAULTS:
        return list(range(len(program)))
    calls = [place for place, item in enumerate(program) if not item[0].is_transfer]
    changed = {place: _changed(program, place, kind) for place in calls}
    later = [one * (PROGRAM_STEPS - 1) for one in programs]
    return [
        place
        for place, wrong in changed.items()
        if wrong
        and is_held_up([one + rest for one, rest in zip(programs, later, strict=True)], rank, wrong + later[rank])
    ]


def _changed(program: Program, place: int, kind: str) -> Program:
    """The step as the rank calls it with a fault at this place; empty where there can be none."""
    before, item, after = program[:place], program[place], program[place + 1 :]
    if kind == "skip":
        return (*before, *after)
    if kind == "extra":
        return (*before, item, item, *after)
    if kind == "wrong-op":
        return (*before, tuple(replace(part, op=_OTHER_OP) for part in item), *after)
    is_swap = after and not after[0][0].is_transfer and after[0][0].signature != item[0].signature
    return (*before, after[0], item, *after[1:]) if is_swap else ()


def _case(base: Case, job: RealJob, fault: PlannedFault, stall: Stall) -> Case:
    onset = job.onset_age_seconds()
    verdict = job.verdict(stall)
    live = _of_verdict(verdict)
    folder = job.folder / "dumps"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    dumps = job.dumps()
    for rank, dump in dumps.items():
        (folder / f"rank_{rank}").write_bytes(dump)
    on_file, kind, strength = _from_files(folder)
    torch_says = analyse(folder)
    programs = job.plan.programs
    silent = [rank for rank in range(len(programs)) if rank not in dumps]
    is_call = fault.kind in CALL_FAULTS
    same = [fault.rank] if is_call else list(alike(programs, fault.rank, fault.item, silent=silent))
    return base | {
        "fault": fault.kind,
        "outcome": "alarm",
        "truth": [fault.rank],
        "alarm_seconds": round(onset, 3),
        "class_right": verdict.stuck_at is StuckAt.HOST,
        "alike_in_dumps": same,
        "answers": {
            "instep": _row(live),
            "instep flight-recorder": _row(on_file)
            | {"class_right": kind is StuckAt.HOST, "strength": [strength] * len(on_file.named)},
            "torchfrtrace": _row(Answer(torch_says or ())),
        },
        "cause": verdict.suspects[0].cause.value if verdict.suspects else "",
    }


def _keep(folder: Path, job: RealJob, case: Case) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(job.folder / "dumps", folder / "flight-recorder")
    (folder / "truth.json").write_text(json.dumps(case, indent=1) + "\n", encoding="utf-8")


def _row(answer: Answer) -> Case:
    return {"named": list(answer.named), "is_tied": answer.is_tied, "sure": list(answer.sure)}


def _of_verdict(verdict: Verdict) -> Answer:
    ranks = [suspect for suspect in verdict.suspects if suspect.rank is not None]
    sure = tuple(suspect.confidence for suspect in ranks)
    is_tied = len(ranks) > 1 and max(sure) < 0.5
    return Answer(tuple(suspect.rank for suspect in ranks if suspect.rank is not None), is_tied, sure)


def _from_files(folder: Path) -> tuple[Answer, StuckAt, float]:
    """As `instep diagnose flight-recorder` does; with how strong the evidence is."""
    read = read_dump_folder(folder)
    history = assemble(read.dumps, read.unreadable, read.notes)
    finding, raw = localise(history), localise_uncalibrated(history)
    sure = (finding.confidence,) * len(finding.culprits)
    tied = len(finding.culprits) if finding.is_tied else 1
    return Answer(finding.culprits, finding.is_tied, sure), finding.kind, round(raw.confidence * tied, 4)
