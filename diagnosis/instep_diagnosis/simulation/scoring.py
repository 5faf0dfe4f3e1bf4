"""How a detector does on one case, step after step, as one plain record; ours and the baselines alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any

from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.detectors.work import step_arrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.settings import StragglerSettings
from instep_diagnosis.simulation.baselines import BASELINES
from instep_diagnosis.simulation.hangs import CALL_FAULTS, HOST_FAULTS, Fault, HangCase
from instep_diagnosis.simulation.steps import StepCase
from instep_diagnosis.verdict import StuckAt
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.history import Progress
from instep_diagnosis.wait_graph.judge import localise, localise_uncalibrated
from instep_diagnosis.wait_graph.recorder import RecorderDump

Case = dict[str, Any]
"""One case and every method's answer to it: a line of `cases.jsonl`."""

BOUND_STEPS = 20
"""A slow rank is to be named within so many steps."""
WINDOW_STEPS = StragglerSettings().window_steps
SIMULATED_HEALTHY_EVERY = 4
"""Of the steps without a fault, so many are watched in simulated jobs, which are many; in real ones all."""
FIRST_STEPS = 16
"""Steps before anybody is asked: no method knows a job by fewer."""


def watch_steps(job: JobSteps, steps: Iterable[int], *, onset: int, rank: int | None) -> Case:
    """The answers of all methods at every step of one episode; they stop at the first one each gives. Each may look at
    what the job did before, as the server can."""
    numbers = list(steps)

    def upto(end: int) -> JobSteps:
        begin = end - WINDOW_STEPS
        kept = {r: tuple(row for row in found if begin < row.step <= end) for r, found in job.steps.items()}
        return JobSteps(job.job, job.run, job.attempt, kept, job.nodes)

    healthy = {step for step in numbers[FIRST_STEPS:] if rank is None or step < onset}
    walls = [row.wall_seconds for row in next(iter(job.steps.values()), ()) if row.step in healthy]
    return _watch(upto, numbers, onset=onset, rank=rank, healthy_every=1) | {
        "healthy_steps": len(walls),
        "healthy_seconds": round(sum(walls), 3),
    }


def watch_case(case: StepCase) -> Case:
    """A simulated job: the same, with who has to mend it."""
    numbers = list(range(len(case.own_TR)))
    found = _watch(
        lambda end: case.reports(end + 1, window_steps=WINDOW_STEPS),
        numbers,
        onset=case.onset,
        rank=case.rank,
        healthy_every=SIMULATED_HEALTHY_EVERY,
    )
    owner = found["answers"]["instep"].pop("owner")
    return {
        "kind": "straggler-simulated", "seed": case.seed, "layout": case.layout, "fault": case.fault.value,
        "world_size": case.own_TR.shape[1], "ratio": case.ratio, "sigma": case.sigma,
        "truth": [] if case.rank is None else [case.rank],
        "owner_right": owner == case.owner.value if case.rank is not None and owner else None,
        **found,
    }  # fmt: skip


def _watch(
    upto: Callable[[int], JobSteps], numbers: list[int], *, onset: int, rank: int | None, healthy_every: int
) -> Case:
    answers: dict[str, Case] = {"instep": _none() | {"owner": ""}, **{name: _none() for name in BASELINES}}
    for end in numbers[FIRST_STEPS:]:
        if all(answer["at"] is not None for answer in answers.values()):
            break
        # Before its onset a fault cannot be found: some steps tell of false alarms.
        if (rank is None or end < onset) and end % healthy_every:
            continue
        _ask(answers, upto(end), end, onset)
    return {"onset": onset, "answers": answers}


def _none() -> Case:
    return {"named": [], "at": None, "delay_steps": None, "sure": []}


def _ask(answers: dict[str, Case], job: JobSteps, end: int, onset: int) -> None:
    if answers["instep"]["at"] is None:
        verdicts = [verdict for verdict in detect_stragglers(job) if verdict.is_ongoing]
        if verdicts:
            answers["instep"] = {
                "named": [v.suspects[0].rank for v in verdicts], "at": end, "delay_steps": end - onset + 1,
                "sure": [v.suspects[0].confidence for v in verdicts], "owner": verdicts[0].owner.value,
                "strength": [v.evidence[0].fields["z"] for v in verdicts], "causes": [v.cause.value for v in verdicts],
            }  # fmt: skip
    arrays = step_arrays(job, window_steps=WINDOW_STEPS)
    if arrays is None:
        return
    for name, baseline in BASELINES.items():
        if answers[name]["at"] is None and (named := baseline(arrays.own_seconds_TR)):
            ranks = [arrays.ranks[column] for column in sorted(named)]
            answers[name] = {"named": ranks, "at": end, "delay_steps": end - onset + 1, "sure": []}


def is_hit(case: Case, answer: Case) -> bool:
    """Exactly the slow rank, within the bound."""
    delay = answer["delay_steps"]
    return bool(case["truth"]) and answer["named"] == case["truth"] and 0 < delay <= BOUND_STEPS


def is_false(case: Case, answer: Case) -> bool:
    """Somebody was named who is not slow, or before he was."""
    return bool(answer["named"]) and (answer["named"] != case["truth"] or answer["delay_steps"] <= 0)


def judge_hang(case: HangCase, *, kind: str = "hang-simulated") -> Case:
    """A simulated hang, judged from its dumps."""
    history = assemble(case.dumps)
    finding, raw = localise(history), localise_uncalibrated(history)
    is_device = case.fault.value.startswith("device") or case.fault.value == "symmetric"
    expected = StuckAt.DEVICE if is_device else StuckAt.HOST
    tied = len(finding.culprits) if finding.is_tied else 1
    return {
        "kind": kind, "seed": case.seed, "layout": case.layout, "fault": case.fault.value,
        "world_size": case.world_size, "truth": list(case.culprits), "outcome": "judged",
        "class_right": finding.kind is expected if case.fault.value != "healthy" else None,
        "answers": {
            "instep flight-recorder": {
                "named": list(finding.culprits),
                "is_tied": finding.is_tied,
                "sure": [finding.confidence] * len(finding.culprits),
                "strength": [round(raw.confidence * tied, 4)] * len(finding.culprits),
            }
        },
    }  # fmt: skip


def degraded(case: HangCase) -> HangCase:
    """The same hang with worse evidence: dumps that are missing, or gloo's, which shows no transfers."""
    random = Random(f"degraded {case.seed}")
    dumps = dict(case.dumps)
    if random.random() < 0.5:
        for rank in list(dumps):
            if random.random() < 0.15 and len(dumps) > 1:
                del dumps[rank]
        return replace(case, dumps=dumps)
    is_gloo = case.fault in (*HOST_FAULTS, *CALL_FAULTS, Fault.HEALTHY)
    return replace(case, dumps={rank: _as_gloo(dump) if is_gloo else dump for rank, dump in dumps.items()})


def _as_gloo(dump: RecorderDump) -> RecorderDump:
    """What gloo's recorder would have of it: no transfers, no device, and nothing after the call that does not end, as
    a gloo rank waits in it."""
    batches = {(e.name, e.seq): e.progress for e in dump.entries if e.is_last_of_batch}
    open_at = next(
        (
            place
            for place, e in enumerate(dump.entries)
            if (batches.get((e.name, e.seq), e.progress) if e.is_transfer else e.progress) < Progress.COMPLETED
        ),
        len(dump.entries),
    )
    kept = tuple(entry for entry in dump.entries[: open_at + 1] if not entry.is_transfer)
    return replace(dump, entries=kept, statuses={}, is_gloo=True)
