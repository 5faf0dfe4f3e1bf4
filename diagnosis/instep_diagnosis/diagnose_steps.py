"""`instep diagnose steps CASES.jsonl`: why the steps of each job are slow, from sums per rank and step."""

from __future__ import annotations

import argparse
import json

from instep_diagnosis.detectors.step_sums.hypotheses import StepCause
from instep_diagnosis.detectors.step_sums.judge import StepsVerdict, judge_steps
from instep_diagnosis.detectors.step_sums.sums import StepSums
from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.files.cases import read_cases


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser(
        "steps",
        help="say why a job's steps are slow, from sums per rank and step",
        description="Which cause costs the steps of each job most, where it sits, and how much it costs.",
    )
    parser.add_argument("file", metavar="CASES.jsonl", help="one job a line, plain or gzip")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print one line per job. Raises `EvidenceError` where the file cannot be read."""
    is_any = False
    for sums in read_cases(options.file):
        verdict = judge_steps(sums)
        is_any = is_any or verdict.cause is not StepCause.HEALTHY
        caveat = _caveat(verdict, sums)
        print(json.dumps(_fields(verdict, caveat), ensure_ascii=False) if options.json else _text(verdict, caveat))
    return FOUND if is_any else FINE


def _caveat(verdict: StepsVerdict, sums: StepSums) -> str:
    """What two ranks cannot say of themselves: neither is the majority."""
    if verdict.cause is not StepCause.SLOW_WORKER or sums.shape[1] * sums.shape[2] != 2:
        return ""
    return (
        "Of two ranks neither is the majority: that one is slower than the other is sure, that its node is at fault is "
        "not. While the job runs nobody is named for what was so from the first step on."
    )


def _fields(verdict: StepsVerdict, caveat: str) -> dict[str, object]:
    return {
        "id": verdict.id,
        "cause": verdict.cause.value,
        "stage": verdict.stage,
        "dp": verdict.dp,
        "slowdown": round(verdict.slowdown, 4),
        "confidence": verdict.confidence,
        "rank": verdict.rank,
        "owner": verdict.owner.value,
        "onset_step": verdict.onset_step,
        "cost_gpu_seconds": round(verdict.cost_gpu_seconds, 3),
        "cost_gpu_hours": round(verdict.cost_gpu_seconds / 3600.0, 6),
        "evidence": verdict.evidence,
        "fix": verdict.fix,
        "caveat": caveat,
        "ends": list(verdict.ends),
        "uniform_slowdown": round(verdict.uniform_slowdown, 4),
        "also": [
            {"cause": c.cause.value, "stage": c.stage, "dp": c.dp, "slowdown": round(c.slowdown, 4)}
            for c in verdict.also
        ],
    }


def _text(verdict: StepsVerdict, caveat: str) -> str:
    if verdict.cause is StepCause.HEALTHY:
        return f"{verdict.id}: healthy ({verdict.confidence:.2f} sure). {verdict.evidence} {verdict.fix}".rstrip()
    where = "" if verdict.stage is None else f" at stage {verdict.stage}"
    where += "" if verdict.dp is None else f", dp {verdict.dp}"
    where += "" if verdict.rank is None else f" (rank {verdict.rank})"
    cost = f"owner {verdict.owner.value}; {verdict.cost_gpu_seconds:.4g} rank-seconds lost"
    return (
        f"{verdict.id}: {verdict.cause.value}{where}, steps {verdict.slowdown:.3f} times as long "
        f"({verdict.confidence:.2f} sure; {cost}). {verdict.evidence} {verdict.fix} {caveat}"
    ).rstrip()
