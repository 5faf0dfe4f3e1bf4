"""What the evidence on file says about a hang: the answer, and its words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from instep_diagnosis.detectors.words import have, ranks_words, span_words
from instep_diagnosis.verdict import Cause, StuckAt
from instep_diagnosis.wait_graph.graph import OpenOp, WaitGraph
from instep_diagnosis.wait_graph.history import Group, History

EVIDENCE_LINES_MAX = 24
"""Lines of each kind of evidence; the counts behind them are said in words."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Who is to blame for a hang; nobody, where the evidence cannot tell."""

    culprits: tuple[int, ...]
    kind: StuckAt
    cause: Cause
    verdict: str
    """One sentence."""
    confidence: float
    evidence: tuple[str, ...]
    is_hang: bool = True
    """False where nothing is seen to wait."""
    is_tied: bool = False
    """The culprit is among those named, and nothing tells which."""
    is_by_absence: bool = False
    """Nothing speaks against those named but that they left no evidence."""
    waiting: tuple[int, ...] = ()
    group: str = ""
    members: tuple[int, ...] = ()
    seq: int | None = None
    op: str = ""


def group_words(group: Group) -> str:
    """A group as a person says it: `group dp (0-3)`, or `the transfer 2 → 3 in pp`."""
    if group.is_transfer:
        sender, receiver = group.members
        return f"the transfer {sender} → {receiver}" + (f" in {group.description}" if group.description else "")
    members = f" ({span_words(group.members)})" if group.members else ""
    return f"group {group.description or group.key}{members}"


def op_words(op: OpenOp) -> str:
    """An operation as a person says it: `all_reduce seq 511 of group dp (0-3)`."""
    return f"{op.op or 'operation'} seq {op.seq} of {group_words(op.group)}"


def wait_line(op: OpenOp) -> str:
    """One line about an open operation: who waits in it, and for whom."""
    waiting = f"{ranks_words(op.waiting, is_start=True)} {have(len(op.waiting))} entered {op_words(op)}"
    parts = []
    if op.behind:
        parts.append(f"{ranks_words(op.behind)} {have(len(op.behind))} not")
    if op.unseen:
        parts.append(f"nothing is known of {ranks_words(op.unseen)}")
    if op.is_completed_elsewhere:
        parts.append("its other members have completed it")
    return f"{waiting}; {', '.join(parts) or 'all members have, and it does not complete'}."


def in_short(lines: Sequence[str], what: str) -> tuple[str, ...]:
    """The first lines, and how many there are beyond them."""
    more = len(lines) - EVIDENCE_LINES_MAX
    return (*lines[:EVIDENCE_LINES_MAX], *([f"{more} more {what}."] if more > 0 else []))


def placed(finding: Finding, op: OpenOp | None, graph: WaitGraph) -> Finding:
    """The finding with where the others wait."""
    finding = replace(finding, waiting=waiting(graph, finding.culprits))
    if op is None:
        return finding
    group = op.group.description or op.group.key
    return replace(finding, group=group, members=op.group.members, seq=op.seq, op=op.op)


def wait_lines(graph: WaitGraph, ops: Iterable[OpenOp] | None = None) -> tuple[str, ...]:
    """A line for each open operation, the ones with most waiting first."""
    chosen = sorted(graph.ops.values() if ops is None else ops, key=lambda op: (-len(op.waiting), op.group.key, op.seq))
    return in_short([wait_line(op) for op in chosen], "open operations")


def wait_verb(ranks: Sequence[int]) -> str:
    """The verb that agrees with so many ranks."""
    return "waits" if len(ranks) == 1 else "wait"


def waiting(graph: WaitGraph, culprits: Iterable[int]) -> tuple[int, ...]:
    """Ranks that wait, without those that are blamed."""
    return tuple(sorted(set(graph.waits) - set(culprits)))


def about(history: History) -> tuple[str, ...]:
    """What a reader should know of the evidence itself."""
    silent: dict[str, list[int]] = {}
    for rank, why in history.silent.items():
        silent.setdefault(why, []).append(rank)
    return (*(f"{ranks_words(ranks, is_start=True)}: {why}." for why, ranks in sorted(silent.items())), *history.notes)


def known_share(history: History) -> float:
    """The share of the job that there is evidence of, less where the source is less to be trusted."""
    return history.trust * len(history.ranks) / max(1, len(history.world))


def ops_on(graph: WaitGraph, culprits: Iterable[int]) -> list[OpenOp]:
    """Open operations that culprits are missing from or stand in, the ones with most waiting first."""
    blamed = set(culprits)
    found = [op for op in graph.ops.values() if blamed & {*op.behind, *op.unseen}]
    found = found or [op for op in graph.ops.values() if blamed & set(op.waiting)]
    return sorted(found, key=lambda op: (-len(op.waiting), op.group.key, op.seq))
