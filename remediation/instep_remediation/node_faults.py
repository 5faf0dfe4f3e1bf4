"""Fatal facts about nodes: a part of the job's incident where there is one, an incident of their own where there is
none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.registry import RunState
from instep_collector.sink import Finding
from instep_collector.store import incidents as queries
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident
from instep_diagnosis.bundles import EvidenceBundle
from instep_diagnosis.detectors.gpu_fault import detect_gpu_faults
from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.facts import recovery_of
from instep_diagnosis.verdict import Kind, Verdict
from sqlalchemy.orm import Session

from instep_remediation.openings import STOP, Opening, device, is_same_fault, note, open_incident
from instep_remediation.repairs import is_mended

SETTLE_SECONDS = 8.0
"""A fault waits this long for the crash or hang that it may cause: one cause is one incident."""
NEAR_SECONDS = 30.0
WAITING_MAX = 10_000

Conclude = Callable[[Session, Incident, Finding], None]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One fatal fact that no incident holds yet."""

    fact: NodeFact
    verdict: Verdict
    run: RunState | None
    at: float
    """When it came here (monotonic)."""


class NodeFaults:
    """Fatal facts that wait for a job's incident."""

    def __init__(self, clock: Clock, store: Store, conclude: Conclude) -> None:
        self._clock = clock
        self._store = store
        self._conclude = conclude
        self._waiting: deque[Waiting] = deque(maxlen=WAITING_MAX)
        self._asked: dict[tuple[str, str, bool], NodeFact] = {}
        """What GPUs ask for now, by node and UUID; what a drill has them ask for stands apart."""

    def add(self, run: RunState | None, facts: Sequence[NodeFact]) -> None:
        """Keep the fatal ones; a GPU that may still be given work is no incident."""
        now = self._clock.monotonic()
        for fact in facts:
            self._keep_asked(fact)
        for fact in facts:
            if fact.age_seconds <= NEAR_SECONDS:
                self._waiting.extend(Waiting(fact, verdict, run, now) for verdict in detect_gpu_faults([fact]))

    def _keep_asked(self, fact: NodeFact) -> None:
        asked = recovery_of(fact)
        if asked is None or not fact.gpu:
            return
        key = (fact.node, fact.gpu, fact.is_drill)
        self._asked.pop(key, None)
        if asked and len(self._asked) < WAITING_MAX:
            self._asked[key] = fact

    def tick(self) -> None:
        """Settle what has waited long enough; where no job runs there is nothing to wait for."""
        now = self._clock.monotonic()
        for waiting in list(self._waiting):
            if waiting.run is None or now - waiting.at >= SETTLE_SECONDS:
                self._waiting.remove(waiting)
                self._settle(waiting, now)

    def _settle(self, waiting: Waiting, now: float) -> None:
        fact, realtime = waiting.fact, self._clock.realtime()
        happened_at = realtime - fact.age_seconds - (now - waiting.at)
        asked = self._asked.get((fact.node, fact.gpu, fact.is_drill))
        told = (fact,) if asked is None else (fact, asked)
        with self._store.begin() as session:
            row = self._holder(session, waiting, happened_at)
            if row is not None:
                note(row, f"Seen on node {fact.node} as well: {fact.text.strip()[:300]}")
                return
            run = waiting.run or RunState("", "")
            verdict = replace(
                detect_gpu_faults(told)[0],
                job=run.job,
                run=run.run,
                attempt=run.attempt,
                onset_age_seconds=realtime - happened_at,
            )
            row, is_new = open_incident(
                session,
                Opening(
                    "/".join((*(device(verdict) or (fact.event_id,)), *(("drill",) if verdict.is_drill else ())))[:700],
                    Kind.GPU_FAULT.value,
                    run.job,
                    run.run,
                    run.attempt,
                    verdict.summary,
                    None,
                    happened_at,
                    verdict.is_drill,
                    fact.node,
                ),
                state="open",
                now=realtime,
            )
            if is_new:
                self._conclude(
                    session,
                    row,
                    Finding(run, RankBoard(run.attempt), EvidenceBundle(facts=told), verdict, now - waiting.at),
                )

    def _holder(self, session: Session, waiting: Waiting, happened_at: float) -> Incident | None:
        """Return the incident that already tells of this fault, or of what it did to a job at that time."""
        for row in queries.recent(session):
            if row.state in ("withdrawn", "merged") or is_mended(row, happened_at):
                continue
            suspects = (row.verdict or {}).get("suspects", ())
            is_near = (
                row.family == STOP
                and abs(row.onset_at - happened_at) <= NEAR_SECONDS
                and waiting.run is not None
                and row.run == waiting.run.run
            )
            if is_same_fault(row, waiting.verdict) or (
                is_near
                and row.is_drill == waiting.verdict.is_drill
                and waiting.fact.node in {suspect.get("node") for suspect in suspects}
            ):
                return row
        return None
