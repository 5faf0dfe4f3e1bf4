"""What the nodes said of themselves while a rank was slow, joined to its verdict: the owner, the cause, the readings.

The join of the readings themselves is the collector's; what it comes to is kept in the evidence bundle, so that the
same verdict follows elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from instep_diagnosis.detectors.node_or_job import Attribution, RankNodeFacts, attribute
from instep_diagnosis.verdict import Cause, Evidence, Verdict


@dataclass(frozen=True, slots=True)
class Seen:
    """What stands out on a slow rank's node and GPU against its peers', over the slow stretch."""

    facts: RankNodeFacts = field(default_factory=RankNodeFacts)
    said: tuple[Evidence, ...] = ()
    """The readings that stand out, in words, with their values."""
    other: Attribution | None = None
    """What stands out that `RankNodeFacts` has no field for: the node's network, its memory."""


@dataclass(frozen=True, slots=True)
class NodeReadings:
    """What is seen of one rank's node: real readings and those of drills, judged apart."""

    real: Seen = field(default_factory=Seen)
    drill: Seen = field(default_factory=Seen)


def with_readings(verdict: Verdict, readings: Mapping[int, NodeReadings]) -> Verdict:
    """A slow rank's verdict with what its node says: owner, cause, whether the node is at fault, and the readings.

    The verdict's own advice is replaced where the node says more. What a drill shows is added as evidence that says
    so; it changes neither owner nor blame, since the slowness may be real.
    """
    suspect = verdict.suspects[0] if verdict.suspects else None
    found = readings.get(suspect.rank) if suspect is not None and suspect.rank is not None else None
    if found is None or not verdict.is_ongoing:
        return verdict
    drills = tuple(replace(item, text=f"[DRILL] {item.text}") for item in found.drill.said)
    joined = _joined(verdict, found.real)
    return replace(joined, evidence=(*joined.evidence, *drills)) if drills else joined


def _joined(verdict: Verdict, seen: Seen) -> Verdict:
    answer = attribute(verdict, seen.facts)
    if not answer.is_node_at_fault and seen.other is not None and not _is_explained(verdict, answer, seen.other):
        answer = replace(seen.other, cost_gpu_hours=answer.cost_gpu_hours)
    if not seen.said and answer.owner is verdict.owner:
        return verdict
    suspect = verdict.suspects[0]
    advice = Evidence(
        text=f"{answer.reason} {answer.fix}",
        node=suspect.node,
        rank=suspect.rank,
        source="node-readings",
        fields={"cost_gpu_hours": answer.cost_gpu_hours},
    )
    own = tuple(item for item in verdict.evidence if "cost_gpu_hours" not in item.fields)
    cause = _cause(seen.facts) or verdict.cause
    return replace(
        verdict,
        summary=f"{verdict.summary.rstrip('.')}. {answer.reason}",
        owner=answer.owner,
        cause=cause,
        suspects=(replace(suspect, cause=cause), *verdict.suspects[1:]),
        is_node_at_fault=verdict.is_node_at_fault or answer.is_node_at_fault,
        evidence=(*own, *seen.said, advice),
    )


def _is_explained(verdict: Verdict, answer: Attribution, other: Attribution) -> bool:
    """Whether what the rank itself does explains its slowness, so that a device that only looks idle is not accused: a
    GPU whose rank waits lowers the generation of its link to save power."""
    is_waiting = verdict.cause in (Cause.DATA, Cause.STARVED)
    is_pause = answer.reason != attribute(verdict, RankNodeFacts()).reason
    return other.is_node_at_fault and (is_waiting or is_pause)


def _cause(facts: RankNodeFacts) -> Cause | None:
    if facts.is_thermally_throttled:
        return Cause.THERMAL
    return Cause.POWER_CAP if facts.is_power_capped else None
