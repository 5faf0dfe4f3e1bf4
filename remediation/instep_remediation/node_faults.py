"""Fatal facts about nodes: a part of the job's incident where there is one, an incident of their own where there is
none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.registry import RunState
from instep_collector.sink import Finding
from instep_collector.store import incidents as queries
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident
from instep_diagnosis.evidence import JobState, NodeFact
from instep_diagnosis.facts import kernel_fault
from instep_diagnosis.kernel_faults import FATAL, KernelFault
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Kind, Owner, Suspect, Verdict
from sqlalchemy.orm import Session

from instep_remediation.openings import JOB_KINDS, Opening, note, open_incident

SETTLE_SECONDS = 8.0
"""A fault waits this long for the crash or hang that it may cause: one cause is one incident."""
NEAR_SECONDS = 30.0
WAITING_MAX = 10_000
CONFIDENCE = 0.95

Conclude = Callable[[Session, Incident, Finding], None]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One fatal fact that no incident holds yet."""

    fact: NodeFact
    fault: KernelFault
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

    def add(self, run: RunState | None, facts: Sequence[NodeFact]) -> None:
        """Keep the fatal ones; what may still be given work is no incident."""
        now = self._clock.monotonic()
        for fact in facts:
            fault = kernel_fault(fact)
            if fault is not None and fault.severity == FATAL and fact.age_seconds <= NEAR_SECONDS:
                self._waiting.append(Waiting(fact, fault, run, now))

    def tick(self) -> None:
        """Settle what has waited long enough."""
        now = self._clock.monotonic()
        while self._waiting and now - self._waiting[0].at >= SETTLE_SECONDS:
            self._settle(self._waiting.popleft(), now)

    def _settle(self, waiting: Waiting, now: float) -> None:
        fact, realtime = waiting.fact, self._clock.realtime()
        age_seconds = fact.age_seconds + now - waiting.at
        with self._store.begin() as session:
            row = self._holder(session, waiting, realtime - age_seconds)
            if row is not None:
                note(row, f"Seen on node {fact.node} near it: {fact.text.strip()[:300]}")
                return
            device = fact.gpu or "-"
            run, board = waiting.run or RunState("", ""), RankBoard(waiting.run.attempt if waiting.run else 0)
            verdict = fault_verdict(waiting, age_seconds)
            row, is_new = open_incident(
                session,
                Opening(
                    f"{fact.node}/{device}/{waiting.fault.fault_class}/{boot_of(fact)}",
                    Kind.GPU_FAULT.value,
                    run.job,
                    run.run,
                    board.attempt,
                    verdict.summary,
                    None,
                    realtime - age_seconds,
                    fact.is_drill,
                    fact.node,
                ),
                state="open",
                now=realtime,
            )
            if is_new:
                job = JobState(run.job, run.run, board.attempt, run.world_size, (), (), (fact,))
                self._conclude(session, row, Finding(run, board, job, verdict, now - waiting.at))

    def _holder(self, session: Session, waiting: Waiting, happened_at: float) -> Incident | None:
        """Return the job's incident near the fact that already names the node."""
        if waiting.run is None:
            return None
        return next(
            (
                row
                for row in queries.recent(session)
                if row.run == waiting.run.run
                and row.kind in JOB_KINDS
                and abs(row.onset_at - happened_at) <= NEAR_SECONDS
                and row.state != "withdrawn"
                and waiting.fact.node in {s.get("node") for s in (row.verdict or {}).get("suspects", ())}
            ),
            None,
        )


def fault_verdict(waiting: Waiting, age_seconds: float) -> Verdict:
    """Return a node's fault as a verdict of its own: nothing failed over it yet."""
    fact, fault = waiting.fact, waiting.fault
    gpu = f" GPU {fact.gpu_index}" if fact.gpu_index is not None else ""
    code = (
        f"{'SXid' if fault.line.kind == 'sxid' else 'Xid'} {fault.line.code}: " if fault.line.code is not None else ""
    )
    return Verdict(
        kind=Kind.GPU_FAULT,
        certainty=Certainty.CONFIRMED,
        summary=f"{fact.node}{gpu}: {code}{fault.text}.",
        suspects=(Suspect(None, fact.node, fact.gpu, Cause.GPU_FAULT, CONFIDENCE),),
        owner=Owner.NODE,
        evidence=(
            Evidence(
                text=f"The kernel of {fact.node} logged: {fact.text.strip()}",
                node=fact.node,
                source="kernel-log",
                age_seconds=age_seconds,
            ),
        ),
        job=waiting.run.job if waiting.run else "",
        run=waiting.run.run if waiting.run else "",
        attempt=waiting.run.attempt if waiting.run else 0,
        onset_age_seconds=age_seconds,
        is_node_at_fault=True,
        is_drill=fact.is_drill,
    )


def boot_of(fact: NodeFact) -> str:
    """Return what tells this boot's fault from the next one's: the event's id begins with the boot id."""
    return fact.event_id.partition(":")[0].partition("/")[0][:100]
