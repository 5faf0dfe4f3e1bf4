"""Hangs of small real jobs: who is named by the live detectors, by the dumps alone, and by torch's own analyser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from instep_diagnosis.detectors.stall import Stall
from instep_diagnosis.files.dumps import read_dump_folder
from instep_diagnosis.simulation.programs import STEPS as PROGRAM_STEPS
from instep_diagnosis.simulation.programs import Program, training
from instep_diagnosis.verdict import StuckAt, Verdict
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.judge import localise, localise_uncalibrated

from instep_trainer.benchmarks.diagnosis.paced_rank import (
    BENIGN_PHASES,
    CALL_FAULTS,
    WAITING_FAULTS,
    Plan,
    PlannedFault,
)
from instep_trainer.benchmarks.diagnosis.real_jobs import RealJob, real_job
from instep_trainer.benchmarks.diagnosis.recorder_analyser import analyse

HEALTHY_STEPS = 30
"""Before the first fault of a job."""
BETWEEN_STEPS = 10
REUSED_MAX = 6
"""Faults taken back in one job, before one of its calls is wrong and it ends."""
LAYOUTS = ("ddp", "fsdp", "tp", "tp-dp", "pp", "ep", "pp-dp-tp")
WORK_SECONDS = 0.01
"""Of a step: hangs need no long steps."""

Case = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """Whom one method names."""

    named: tuple[int, ...]
    is_tied: bool = False
    sure: tuple[float, ...] = ()
    """For each of the named."""


def real_hangs(seed: int, jitter: Any) -> Iterator[Case]:
    """The cases of one job, as they come: a hang or a benign pause each."""
    random = Random(f"real hangs {seed}")
    job = training(random, world_size_max=8 if random.random() < 0.4 else 4, layout=random.choice(LAYOUTS))
    programs = tuple(program[: len(program) // PROGRAM_STEPS] for program in job.programs)
    faults = _faults(random, programs)
    steps = faults[-1].step + BETWEEN_STEPS
    work = WORK_SECONDS * jitter(random.randrange(1 << 30), steps, len(programs))
    plan = Plan(job.groups, programs, steps, work.tolist(), faults)
    base: Case = {"seed": seed, "layout": job.layout, "world_size": len(programs)}
    with real_job(plan) as running:
        for fault in (fault for fault in faults if fault.kind not in BENIGN_PHASES):
            found = running.wait()
            if isinstance(found, str):
                # A rank that gloo has ended is a crash and no hang: another benchmark's.
                yield base | {"kind": "hang-real", "fault": fault.kind, "outcome": found, "truth": [fault.rank]}
                return
            yield _case(base, running, fault, found)
            running.take_back(fault.kind, fault.rank)
    # Whoever came as far as a fault has passed the pauses before it without an alarm.
    for fault in faults:
        if fault.kind in BENIGN_PHASES:
            yield base | {"kind": "hang-real", "fault": f"benign {fault.kind}", "outcome": "no alarm", "truth": []}


def _faults(random: Random, programs: tuple[Program, ...]) -> tuple[PlannedFault, ...]:
    kinds = [random.choice(WAITING_FAULTS) for _ in range(REUSED_MAX)] + [random.choice(CALL_FAULTS)]
    pause = random.randrange(2) if random.random() < 0.5 else -1
    if pause >= 0:
        kinds.insert(pause, random.choice(BENIGN_PHASES))
    found = []
    step = HEALTHY_STEPS
    for kind in kinds:
        rank = random.randrange(len(programs))
        places = _places(programs[rank], kind)
        if places:
            found.append(PlannedFault(kind, rank, step, random.choice(places)))
        step += BETWEEN_STEPS + random.randrange(5)
    return tuple(found)


def _places(program: Program, kind: str) -> list[int]:
    """Where in a program a fault of this kind can be."""
    if kind not in CALL_FAULTS:
        return list(range(len(program)))
    calls = [place for place, item in enumerate(program) if not item[0].is_transfer]
    if kind != "swap":
        return calls
    return [
        place
        for place in calls
        if place + 1 in calls and program[place][0].signature != program[place + 1][0].signature
    ]


def _case(base: Case, job: RealJob, fault: PlannedFault, stall: Stall) -> Case:
    onset = job.onset_age_seconds()
    verdict = job.verdict(stall)
    live = _of_verdict(verdict)
    folder = job.folder / "dumps"
    folder.mkdir()
    for rank, dump in job.dumps().items():
        (folder / f"rank_{rank}").write_bytes(dump)
    on_file, kind, strength = _from_files(folder)
    torch_says = analyse(folder)
    shutil.rmtree(folder)
    return base | {
        "kind": "hang-real",
        "fault": fault.kind,
        "outcome": "alarm",
        "truth": [fault.rank],
        "alarm_seconds": round(onset, 3),
        "class_right": verdict.stuck_at is StuckAt.HOST,
        "answers": {
            "instep": _row(live),
            "instep flight-recorder": _row(on_file)
            | {"class_right": kind is StuckAt.HOST, "strength": [strength] * len(on_file.named)},
            "torchfrtrace": _row(Answer(torch_says or ())),
        },
        "cause": verdict.suspects[0].cause.value if verdict.suspects else "",
    }


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
