"""Where findings go: the interface that remediation implements, so that the collector knows nothing of plans and
orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from instep_diagnosis.bundles import EvidenceBundle
from instep_diagnosis.detectors.stall import Stall
from instep_diagnosis.evidence import JobState, NodeFact
from instep_diagnosis.verdict import Verdict

from instep_collector.boards import RankBoard
from instep_collector.registry import RunState


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict with what it was drawn from."""

    run: RunState
    board: RankBoard
    bundle: EvidenceBundle
    verdict: Verdict
    alarm_age_seconds: float = 0.0
    """Since the first sign of it reached the server."""


class Sink(Protocol):
    """Takes findings in; every call may come again with the same finding and then changes nothing."""

    def wants_crash(self, run: RunState, board: RankBoard) -> bool:
        """Whether a failed exit of this attempt is news: no incident explains it and nobody asked for it."""

    def crashed(self, finding: Finding) -> None:
        """A rank's process ended badly."""

    def stalled(self, run: RunState, board: RankBoard, job: JobState, stall: Stall) -> None:
        """The attempt makes no progress, at this moment."""

    def wants_localisation(self, run: RunState, board: RankBoard) -> bool:
        """Whether an alarm waits for its verdict, and the evidence is there or will not come."""

    def localised(self, finding: Finding) -> None:
        """The verdict about an alarm."""

    def moving(self, run: RunState, board: RankBoard, step: int) -> None:
        """No stall is seen; `step` is what every rank is freshly known to have finished, -1 when some rank is not
        known.
        """

    def straggling(self, run: RunState, board: RankBoard, findings: Sequence[Finding]) -> None:
        """All stragglers of the attempt now; none is news as well."""

    def node_facts(self, run: RunState | None, facts: Sequence[NodeFact]) -> None:
        """New facts about nodes, each with the run whose attempt uses the node."""

    def tick(self) -> None:
        """Time has passed: expire what has a deadline."""
