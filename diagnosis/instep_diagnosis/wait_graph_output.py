"""A finding about a hang as it is printed, for a person and for a program; the same for every source on file."""

from __future__ import annotations

import json

from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.wait_graph.finding import Finding
from instep_diagnosis.wait_graph.history import History


def print_finding(finding: Finding, history: History, *, as_json: bool) -> int:
    """Print a finding; the exit status says whether a hang was seen."""
    print(json.dumps(finding_fields(finding, history), ensure_ascii=False) if as_json else finding_text(finding))
    return FOUND if finding.is_hang else FINE


def finding_fields(finding: Finding, history: History) -> dict[str, object]:
    """A finding as plain values."""
    return {
        "culprits": list(finding.culprits),
        "kind": finding.kind.value,
        "verdict": finding.verdict,
        "confidence": finding.confidence,
        "evidence": list(finding.evidence),
        "cause": finding.cause.value,
        "is_hang": finding.is_hang,
        "is_tied": finding.is_tied,
        "waiting": list(finding.waiting),
        "group": finding.group,
        "members": list(finding.members),
        "seq": finding.seq,
        "op": finding.op,
        "world_size": len(history.world),
        "silent": sorted(history.silent),
        "source": history.source,
    }


def finding_text(finding: Finding) -> str:
    """A finding for a person: the sentence, who is blamed and how surely, and why."""
    lines = [finding.verdict]
    if finding.is_hang:
        who = ", ".join(map(str, finding.culprits)) or "nobody"
        tied = " (one of them)" if finding.is_tied else ""
        place = f"stuck at: {finding.kind.value}; cause: {finding.cause.value}"
        lines.append(f"  blamed: {who}{tied}; {place}; {finding.confidence:.2f} sure")
    return "\n".join([*lines, *(f"  - {line}" for line in finding.evidence)])
