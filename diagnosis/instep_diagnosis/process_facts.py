"""What the kernel, the job's log and NCCL say of one rank's process: why it ended, or what it complained of.

A line counts for the rank that it names, by rank or by process, and for nobody else on its node. None of them puts the
node at fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from instep_diagnosis.catalogues.patterns import kernel_patterns
from instep_diagnosis.evidence import JobState, NodeFact, RankState
from instep_diagnosis.kernel_faults import KernelFault, assess
from instep_diagnosis.kernel_line import read_kernel_line
from instep_diagnosis.verdict import Cause, Evidence, Kind, Owner, Verdict

LINES_CITED_MAX = 6
"""Of job logs and of NCCL in one verdict, newest first; of one sort and rank the newest only."""
LINE_LETTERS_MAX = 300

_REASONS = {
    "oom-kill-cgroup": ("the kernel killed rank {rank} for want of memory: its container reached its limit", (-9, 137)),
    "oom-kill": ("the kernel killed rank {rank} for want of memory on its node", (-9, 137)),
    "oom-kill-choice": ("the kernel killed rank {rank} for want of memory", (-9, 137)),
    "libnccl-crash": ("rank {rank} crashed inside NCCL", (-11, 139)),
}
"""Fault of a process → what it did to the rank, and the exit codes that it explains; what tells most comes first."""


def join_process_facts(verdict: Verdict, job: JobState, *, fact_window_seconds: float) -> Verdict:
    """The verdict with what was said of its ranks' processes since shortly before the onset."""
    since_seconds = verdict.onset_age_seconds + fact_window_seconds
    facts = [fact for fact in job.facts if fact.age_seconds <= since_seconds]
    with_reason = _with_reason(verdict, job, facts)
    return replace(with_reason, evidence=(*with_reason.evidence, *_lines(job, facts)))


def names_another(fact: NodeFact, state: RankState, job: JobState) -> bool:
    """Whether the agent says of a line that it is about a process that is another rank."""
    return "rank" in fact.fields and not is_of_rank(fact, state, job)


def is_of_rank(fact: NodeFact, state: RankState, job: JobState) -> bool:
    """Whether a kernel line is about this rank's process: by the rank that the agent found, else by its number."""
    if fact.node != state.report.node:
        return False
    if "rank" in fact.fields:
        told = tuple(fact.fields.get(name, "") for name in ("run", "attempt", "rank"))
        return told == (job.run, str(job.attempt), str(state.rank))
    pid = fact.fields.get("pid") or str(read_kernel_line(fact.text).pid or "")
    return state.report.pid > 0 and pid == str(state.report.pid)


def _with_reason(verdict: Verdict, job: JobState, facts: list[NodeFact]) -> Verdict:
    """A crash with the kernel's reason for the death of a suspect; whoever is blamed stays."""
    if verdict.kind is not Kind.CRASH:
        return verdict
    accused = {suspect.rank for suspect in verdict.suspects}
    found = [pair for state in job.ranks if state.rank in accused for pair in _reasons(state, job, facts)]
    if not found:
        return verdict
    joined = replace(verdict, evidence=(*verdict.evidence, *(evidence for _, evidence in found)))
    if verdict.cause is not Cause.DEAD:
        return joined
    fault, first = min(found, key=lambda pair: list(_REASONS).index(pair[0].line.text))
    words = first.text.partition(" (")[0].rstrip(".")
    return replace(
        joined,
        summary=f"{verdict.summary.rstrip('.')}; {words[0].lower()}{words[1:]}.",
        owner=Owner(kernel_patterns().rows[fault.line.text].owner),
        is_drill=verdict.is_drill or bool(first.fields["is_drill"]),
    )


def _reasons(state: RankState, job: JobState, facts: list[NodeFact]) -> Iterator[tuple[KernelFault, Evidence]]:
    for fact in facts:
        fault = assess(read_kernel_line(fact.text)) if fact.kind == "kernel_line" else None
        words, codes = _REASONS.get(fault.line.text if fault else "", ("", ()))
        if fault is None or state.exit_code not in codes or not is_of_rank(fact, state, job):
            continue
        said = words.format(rank=state.rank)
        drill = " (a drill)" if fact.is_drill else ""
        yield (
            fault,
            Evidence(
                text=f"{said[0].upper()}{said[1:]}{drill}.",
                node=fact.node,
                rank=state.rank,
                source="kernel-log",
                age_seconds=fact.age_seconds,
                fields={
                    "line": fact.text,
                    "action": fault.action,
                    "event_id": fact.event_id,
                    "is_drill": fact.is_drill,
                },
            ),
        )


def _lines(job: JobState, facts: list[NodeFact]) -> tuple[Evidence, ...]:
    """Lines of the ranks' logs and what NCCL says of them."""
    lines: dict[tuple[int, str], Evidence] = {}
    for fact in sorted(facts, key=lambda fact: (fact.age_seconds, fact.event_id)):
        if len(lines) >= LINES_CITED_MAX:
            break
        for state in job.ranks if _is_cited(fact) else ():
            sort = fact.fields.get("pattern", fact.kind)
            if (state.rank, sort) not in lines and _speaks_of(fact, state):
                lines[state.rank, sort] = _line(fact, state.rank)
                break
    return tuple(lines.values())


def _is_cited(fact: NodeFact) -> bool:
    return fact.kind == "log_line" or (fact.kind.startswith("nccl_") and fact.kind != "nccl_rank_back")


def _speaks_of(fact: NodeFact, state: RankState) -> bool:
    """Whether a line is of this rank. The number that NCCL gives a rank counts in its communicator only, so its lines
    are told by their process."""
    fields, report = fact.fields, state.report
    is_log = fact.kind == "log_line"
    node = fact.node if is_log else fields.get("host") or fact.node
    if node != report.node:
        return False
    if "pid" in fields:
        return report.pid > 0 and fields["pid"] == str(report.pid)
    if not is_log or fields.get("pattern", "").startswith("nccl_"):
        return False
    if "rank" in fields:
        return fields["rank"] == str(report.rank)
    return report.local_rank >= 0 and fields.get("local_rank") == str(report.local_rank)


def _line(fact: NodeFact, rank: int) -> Evidence:
    is_log = fact.kind == "log_line"
    drill = " (a drill)" if fact.is_drill else ""
    text = " ".join(fact.text.split())[:LINE_LETTERS_MAX]
    return Evidence(
        text=f"The log of rank {rank}{drill}: {text}" if is_log else f"NCCL of rank {rank}{drill}: {text}",
        node=fact.node,
        rank=rank,
        source="job-log" if is_log else "nccl-ras",
        age_seconds=fact.age_seconds,
        fields={"sort": fact.fields.get("pattern", fact.kind), "event_id": fact.event_id},
    )
