"""Fatal facts about nodes: a part of the job's incident where there is one, an incident of their own where there is
none; and what ends them.

A fact may be told long after it happened: it opens its incident with its true onset all the same, and plans nothing,
since its age is the evidence's. One that was over before it was told is history: it is kept with the node's facts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.registry import Registry, RunState
from instep_collector.sink import Finding
from instep_collector.store import incidents as queries
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident
from instep_diagnosis.bundles import EvidenceBundle
from instep_diagnosis.detectors.gpu_fault import detect_gpu_faults
from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.facts import fault_now, recovery_of
from instep_diagnosis.verdict import Kind, Verdict
from sqlalchemy.orm import Session

from instep_remediation.latches import Ending, Latches, is_ended, sentence
from instep_remediation.openings import Announce, Opening, device, note, open_incident
from instep_remediation.repairs import end_fault, is_mended
from instep_remediation.verdict_json import verdict_from_json

SETTLE_SECONDS = 8.0
"""A fault waits this long for the crash or hang that it may cause: one cause is one incident. A late one waits as long
for what ended it, such as a reboot, which is told after it."""
NEAR_SECONDS = 30.0
"""A fault explains a stop within this; one told later than this is late."""
WAITING_MAX = 10_000
OPENED_PER_TICK_MAX = 6
"""New incidents in one look: each costs some milliseconds, with its plan and its message, and frames wait meanwhile."""
SEEN_NOTES_MAX = 5
"""Sentences in one incident about further lines of the same fault."""
KNOWN_MAX = 20_000
KNOWN_AT_START_MAX = 2000
"""The newest incidents with a verdict, from the store."""
SEEN = "Seen on node"

Conclude = Callable[[Session, Incident, Finding], None]
Key = tuple[tuple[str, str, str, str] | str, bool]
"""Node, GPU, class and boot of a fault (or the fact's id, where it names no device), and whether it is a drill."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One fatal fact that no incident holds yet."""

    fact: NodeFact
    verdict: Verdict
    run: RunState | None
    at: float
    """When it came here (monotonic)."""

    @property
    def key(self) -> Key:
        """The same for every line of one fault."""
        return (device(self.verdict) or self.fact.event_id, self.verdict.is_drill)

    @property
    def due_at(self) -> float:
        """When it is settled (monotonic): where no job runs and it is fresh there is nothing to wait for."""
        is_awaited = self.run is not None or self.fact.age_seconds > NEAR_SECONDS
        return self.at + (SETTLE_SECONDS if is_awaited else 0.0)


class NodeFaults:
    """Fatal facts that wait for a job's incident, and the faults that stand."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        registry: Registry,
        latches: Latches,
        conclude: Conclude,
        *,
        announce: Announce,
    ) -> None:
        self._clock = clock
        self._store = store
        self._registry = registry
        self._latches = latches
        self._conclude = conclude
        self._announce = announce
        self._waiting: deque[Waiting] = deque(maxlen=WAITING_MAX)
        self._asked: dict[tuple[str, str, bool], NodeFact] = {}
        """What GPUs ask for now, by node and UUID; what a drill has them ask for stands apart."""
        self._known: OrderedDict[Key, str] = OrderedDict()
        """Fault → the incident that tells of it, whatever its state."""
        self._endings: list[Ending] = []
        self._boots: dict[str, tuple[str, ...]] = {}
        """Boots of each node that the latches were told of, newest last."""
        with store.begin() as session:
            for row in reversed(queries.with_verdict(session, limit=KNOWN_AT_START_MAX)):
                if row.verdict:
                    self.hold(row, verdict_from_json(row.verdict))
            latches.seed(queries.active(session))

    def hold(self, row: Incident, verdict: Verdict) -> None:
        """Remember that an incident tells of a verdict's fault."""
        where = device(verdict)
        if where is not None:
            self._known[where, row.is_drill] = row.id
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    def add(self, run: RunState | None, facts: Sequence[NodeFact]) -> None:
        """Keep the fatal ones that are not over; a GPU that may still be given work is no incident."""
        now, realtime = self._clock.monotonic(), self._clock.realtime()
        for fact in facts:
            self._keep_asked(fact)
        for fact in facts:
            if fact.node in self._boots:
                self._mind_boot(fact.node, now, realtime)
            fault, happened_at = fault_now(fact, self._told(fact)), realtime - fact.age_seconds
            self._endings += self._latches.take(fact, fault, at=happened_at)
            if fault is not None and not self._latches.is_history(fact, fault, at=happened_at):
                self._waiting.extend(Waiting(fact, verdict, run, now) for verdict in detect_gpu_faults([fact]))

    def tick(self) -> None:
        """Settle what has waited long enough, and end what was ended."""
        now, realtime = self._clock.monotonic(), self._clock.realtime()
        for node in self._latches.nodes():
            self._mind_boot(node, now, realtime)
        if self._endings:
            self._end()
        due = [waiting for waiting in self._waiting if waiting.due_at <= now]
        if due:
            with self._store.begin() as session:
                settled = self._settle_all(session, due, now)
            self._waiting = deque((one for one in self._waiting if id(one) not in settled), maxlen=WAITING_MAX)

    # What is asked, booted, over --------------------------------------------------------------------------------------

    def _keep_asked(self, fact: NodeFact) -> None:
        asked = recovery_of(fact)
        if asked is None or not fact.gpu:
            return
        key = (fact.node, fact.gpu, fact.is_drill)
        self._asked.pop(key, None)
        if asked and len(self._asked) < WAITING_MAX:
            self._asked[key] = fact

    def _told(self, fact: NodeFact) -> tuple[NodeFact, ...]:
        """Return a fact, with what its GPU asks for where it does."""
        asked = self._asked.get((fact.node, fact.gpu, fact.is_drill))
        return (fact,) if asked is None or asked.boot_id != fact.boot_id else (fact, asked)

    def _mind_boot(self, node: str, now: float, realtime: float) -> None:
        """Tell the latches of a boot that they have not heard of."""
        live = self._registry.nodes.get(node)
        if live is None or live.booted_at is None or self._boots.get(node) == (*live.past_boots, live.boot_id):
            return
        self._endings += self._latches.boot(live, at=realtime - (now - live.booted_at))
        self._boots[node] = (*live.past_boots, live.boot_id)

    # Settling ---------------------------------------------------------------------------------------------------------

    def _settle_all(self, session: Session, due: Sequence[Waiting], now: float) -> set[int]:
        """Settle what is due, new incidents up to a limit; return which (by `id`)."""
        settled: set[int] = set()
        opened = 0
        for waiting in due:
            is_known = waiting.key in self._known
            if not is_known and opened >= OPENED_PER_TICK_MAX:
                continue
            opened += self._settle(session, waiting, now)
            settled.add(id(waiting))
        return settled

    def _settle(self, session: Session, waiting: Waiting, now: float) -> bool:
        """Bring one fact into the incident that it belongs to; return whether that is a new one."""
        fact, realtime = waiting.fact, self._clock.realtime()
        happened_at = realtime - fact.age_seconds - (now - waiting.at)
        told = self._told(fact)
        fault = fault_now(fact, told)
        if fault is None or self._latches.is_history(fact, fault, at=happened_at):  # Its end was told meanwhile.
            return False
        row = self._holder(session, waiting, happened_at)
        if row is not None:
            _note_seen(row, fact)
            self._known[waiting.key] = row.id
            return False
        return self._open(session, waiting, told, happened_at, realtime)

    def _open(
        self, session: Session, waiting: Waiting, told: tuple[NodeFact, ...], happened_at: float, realtime: float
    ) -> bool:
        run = waiting.run or RunState("", "")
        verdict = replace(
            detect_gpu_faults(told)[0],
            job=run.job,
            run=run.run,
            attempt=run.attempt,
            onset_age_seconds=realtime - happened_at,
        )
        where = device(verdict) or (waiting.fact.event_id,)
        row, is_new = open_incident(
            session,
            Opening(
                "/".join((*where, *(("drill",) if verdict.is_drill else ())))[:700],
                Kind.GPU_FAULT.value,
                run.job,
                run.run,
                run.attempt,
                verdict.summary,
                None,
                happened_at,
                verdict.is_drill,
                waiting.fact.node,
            ),
            state="open",
            now=realtime,
        )
        self._known[waiting.key] = row.id
        if is_new:
            waited = self._clock.monotonic() - waiting.at
            bundle = EvidenceBundle(facts=told)
            self._conclude(session, row, Finding(run, RankBoard(run.attempt), bundle, verdict, waited))
        return is_new

    def _holder(self, session: Session, waiting: Waiting, happened_at: float) -> Incident | None:
        """Return the incident that already tells of this fault, or of what it did to a job at that time."""
        id_ = self._known.get(waiting.key)
        known = queries.get(session, id_) if id_ is not None else None
        if known is not None and known.state not in ("withdrawn", "merged") and not is_mended(known, happened_at):
            return known
        if waiting.run is None:
            return None
        near = queries.stops_near(session, waiting.run.run, happened_at, within=NEAR_SECONDS)
        return next((row for row in near if _tells_of(row, waiting) and not is_mended(row, happened_at)), None)

    # Endings ----------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """End the incidents whose faults were ended; those of a stop that is not over end with it."""
        with self._store.begin() as session:
            for row in queries.active(session):
                verdict = verdict_from_json(row.verdict) if row.verdict else None
                if verdict is None:
                    continue
                found = (one for one in self._endings if is_ended(row, verdict, one))
                ending = min(found, key=lambda one: one.at, default=None)
                if ending is not None:
                    end_fault(session, row, sentence(verdict, ending), announce=self._announce, at=ending.at)
        self._endings = []


def _tells_of(row: Incident, waiting: Waiting) -> bool:
    suspects = (row.verdict or {}).get("suspects", ())
    return row.is_drill == waiting.verdict.is_drill and waiting.fact.node in {one.get("node") for one in suspects}


def _note_seen(row: Incident, fact: NodeFact) -> None:
    """Say that a further line of the fault was told; the line that opened the incident is in it already."""
    cited = {item.get("fields", {}).get("event_id") for item in (row.verdict or {}).get("evidence", ())}
    said = sum(done.startswith(SEEN) for done in row.done)
    if fact.event_id not in cited and said < SEEN_NOTES_MAX:
        note(row, f"{SEEN} {fact.node} as well: {fact.text.strip()[:300]}")
