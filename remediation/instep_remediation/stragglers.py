"""Straggler incidents: opened once for a rank on its node, renewed while it lasts, ended when it is over. Nothing is
restarted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instep_collector import judging
from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.registry import RunState
from instep_collector.sink import Finding
from instep_collector.store import incidents as queries
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident
from instep_diagnosis.detectors.lasting import is_still_slow
from instep_diagnosis.verdict import Cause, Kind, Verdict
from sqlalchemy.orm import Session

from instep_remediation.openings import Opening, fill_in, identity, open_incident, resolve
from instep_remediation.verdict_json import verdict_from_json

CONFIRM_SECONDS = 0.9
CONFIRM_STEPS = 4
"""A finding must still stand this long and this many steps after it was first made: one moment's disturbance (another
process on the node, a burst of interrupts) looks like a slow rank for some steps, and is nobody's fault."""
COST_GPU_SECONDS_MIN = 0.3
"""Less lost than this is nothing to look at; in a job of real size one slow step costs more."""
CLEAR_SECONDS = 10.0
CLEAR_STEPS = 10
"""Not found for this long and this many steps, and no longer slow in its newest ones: over. A job that stands still
proves nothing."""
RENEW_SECONDS = 30.0

Conclude = Callable[[Session, Incident, Finding], None]
Key = tuple[str, int | None, str]


@dataclass(slots=True)
class Open:
    """One straggler that is known."""

    incident: str
    found_at: float
    found_step: int
    renewed_at: float
    cause: Cause
    ratio: float
    """How slow it was; 0 where that is not known."""


class StragglerDesk:
    """Open stragglers by (run, rank, node), across attempts: one slow rank stays one incident."""

    def __init__(self, clock: Clock, store: Store, conclude: Conclude) -> None:
        self._clock = clock
        self._store = store
        self._conclude = conclude
        self._open: dict[Key, Open] = {}
        self._seen: dict[Key, tuple[float, int]] = {}
        """Findings that are not confirmed yet: when and at which step they were first made."""
        now = clock.monotonic()
        with store.begin() as session:
            for row in queries.active(session):
                suspects = (row.verdict or {}).get("suspects") or [{}]
                if row.verdict is not None and row.kind == Kind.STRAGGLER and suspects[0]:
                    key = (row.run, suspects[0].get("rank"), suspects[0].get("node", ""))
                    cause, ratio = _cause_and_ratio(verdict_from_json(row.verdict))
                    self._open[key] = Open(row.id, now, row.onset_step or 0, now, cause, ratio)

    def straggling(self, run: RunState, board: RankBoard, findings: Sequence[Finding]) -> None:
        """Take in all stragglers of a run at this moment."""
        now, step = self._clock.monotonic(), board.step()
        found = {_key(run, finding): finding for finding in findings}
        self._seen = {
            key: seen
            for key, seen in self._seen.items()
            if key[0] != run.run or (key in found and found[key].verdict.is_ongoing)
        }
        for key, finding in found.items():
            known = self._open.get(key)
            if not finding.verdict.is_ongoing:
                if known is not None:
                    known.found_at = -math.inf  # It has recovered, and the detector knows it.
                continue
            if known is None:
                is_costly = finding.verdict.cost_gpu_seconds >= COST_GPU_SECONDS_MIN
                if self._is_confirmed(key, now, step) and is_costly:
                    cause, ratio = _cause_and_ratio(finding.verdict)
                    self._open[key] = Open(self._begin(finding, key), now, step, now, cause, ratio)
                continue
            known.found_at, known.found_step = now, step
            if now - known.renewed_at >= RENEW_SECONDS:
                known.renewed_at = now
                self._renew(known.incident, finding)
        for key, known in list(self._open.items()):
            if key[0] != run.run or not self._is_over(known, run, now, step):
                continue
            if self._lasts(key, known, run, board):
                known.found_at, known.found_step = now, step
                continue
            del self._open[key]
            self._end(known.incident, step)

    def _is_confirmed(self, key: Key, now: float, step: int) -> bool:
        first_at, first_step = self._seen.setdefault(key, (now, step))
        return now - first_at >= CONFIRM_SECONDS and step >= first_step + CONFIRM_STEPS

    def _is_over(self, known: Open, run: RunState, now: float, step: int) -> bool:
        return (
            run.is_finished
            or math.isinf(known.found_at)
            or (now - known.found_at >= CLEAR_SECONDS and step >= known.found_step + CLEAR_STEPS)
        )

    def _lasts(self, key: Key, known: Open, run: RunState, board: RankBoard) -> bool:
        """Whether a rank is slow still although no finding says so: the slowdown fills the detector's window."""
        if run.is_finished or math.isinf(known.found_at) or key[1] is None:
            return False
        return is_still_slow(judging.job_steps(run, board), key[1], known.cause, known.ratio)

    def _begin(self, finding: Finding, key: Key) -> str:
        run, verdict, now = finding.run, finding.verdict, self._clock.realtime()
        with self._store.begin() as session:
            name = identity(run.run, finding.board.attempt, "straggler", verdict.onset_step)
            row, is_new = open_incident(
                session,
                Opening(
                    f"{name}/{key[1]}",
                    Kind.STRAGGLER.value,
                    run.job,
                    run.run,
                    finding.board.attempt,
                    verdict.summary,
                    verdict.onset_step,
                    now - verdict.onset_age_seconds,
                    verdict.is_drill,
                    key[2],
                ),
                state="open",
                now=now,
            )
            if is_new:
                self._conclude(session, row, finding)
            elif row.state == "resolved":  # It came back from the same onset: the same incident goes on.
                row.state, row.resolved_at, row.resolution = "open", None, ""
            return row.id

    def _renew(self, incident: str, finding: Finding) -> None:
        with self._store.begin() as session:
            row = session.get(Incident, incident)
            if row is not None and row.state == "open":
                fill_in(row, finding, now=self._clock.realtime())

    def _end(self, incident: str, step: int) -> None:
        with self._store.begin() as session:
            row = session.get(Incident, incident)
            if row is not None and row.state == "open":
                resolve(
                    session, row, f"The rank is as fast as its peers again at step {step}.", at=self._clock.realtime()
                )


def _key(run: RunState, finding: Finding) -> Key:
    suspect = finding.verdict.suspects[0] if finding.verdict.suspects else None
    return (run.run, suspect.rank if suspect else None, suspect.node if suspect else "")


def _cause_and_ratio(verdict: Verdict) -> tuple[Cause, float]:
    """Why the rank is slow, and by how much, as its evidence says."""
    cause = (verdict.suspects[0].cause if verdict.suspects else None) or verdict.cause or Cause.UNKNOWN
    told = (evidence.fields.get("ratio") for evidence in verdict.evidence)
    return cause, next((float(ratio) for ratio in told if isinstance(ratio, int | float)), 0.0)
