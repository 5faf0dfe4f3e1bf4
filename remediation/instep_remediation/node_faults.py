"""Fatal facts about nodes: a part of the job's incident where there is one, an incident of their own where there is
none; and what ends them.

A fact may be told long after it happened: it opens its incident with its true onset all the same, and plans nothing,
since its age is the evidence's. One that was over before it was told is history: it is kept with the node's facts.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.metrics import Metrics
from instep_collector.registry import Registry, RunState
from instep_collector.sink import Finding
from instep_collector.store import incidents as queries
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident
from instep_diagnosis.bundles import EvidenceBundle
from instep_diagnosis.codec import from_builtins
from instep_diagnosis.detectors.gpu_fault import detect_gpu_faults, is_symptom, may_be_symptom
from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.facts import fault_now, is_line_of, is_of_before, recovery_of, tells_of_memory
from instep_diagnosis.gpu_readings import ECC_UNCORRECTED, KIND
from instep_diagnosis.kernel_faults import FATAL
from instep_diagnosis.verdict import Kind, Verdict
from sqlalchemy.orm import Session

from instep_remediation.counted_errors import CountedErrors
from instep_remediation.latches import Ending, Latches, is_ended, sentence
from instep_remediation.openings import STOP, Announce, Opening, device, device_of, fill_in, note, open_incident
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
PARTS_MAX = 16
"""Faults of one incident that tell of its own and would outlast it."""
SEEN = "Seen on node"
log = logging.getLogger(__name__)

Conclude = Callable[[Session, Incident, Finding], None]
Key = tuple[str, str, str, str, bool]
"""Node, GPU, class and boot of a fault, and whether it is a drill; one that no reboot ends has no boot."""


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
        found = key_of(self.verdict)
        assert found is not None, "a verdict about a GPU's fault has its class and its node"
        return found

    @property
    def is_symptom(self) -> bool:
        """Whether it may only tell of another fault, which has its own line."""
        return may_be_symptom(self.verdict.fault_class)

    @property
    def due_at(self) -> float:
        """When it is settled (monotonic): where no job runs and it is fresh there is nothing to wait for, but the fault
        behind a symptom."""
        is_awaited = self.run is not None or self.fact.age_seconds > NEAR_SECONDS or self.is_symptom
        return self.at + (SETTLE_SECONDS if is_awaited else 0.0)


def key_of(verdict: Verdict) -> Key | None:
    """Return what tells one fault from another, None where a verdict is about none."""
    where = device(verdict)
    if where is None:
        return None
    node, gpu, name, boot = where
    return node, gpu, name, boot if "reboot" in verdict.clears else "", verdict.is_drill


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
        metrics: Metrics,
    ) -> None:
        self._clock = clock
        self._store = store
        self._registry = registry
        self._latches = latches
        self._conclude = conclude
        self._announce = announce
        self._metrics = metrics
        self._waiting: deque[Waiting] = deque()
        self._is_storm = False
        """More faults are due than incidents are opened in one look; it was said."""
        self._is_full = False
        """More faults wait than there is room for; it was said."""
        self._asked: dict[tuple[str, str, bool], tuple[float, NodeFact]] = {}
        """What GPUs ask for now, and since when (0: nothing any more), by node and UUID; what a drill has them ask for
        stands apart."""
        self._memory: OrderedDict[tuple[str, str, bool], tuple[float, NodeFact]] = OrderedDict()
        """The driver's last line about an error of a GPU's memory, and when it was told, by the same."""
        self._known: OrderedDict[Key, str] = OrderedDict()
        """Fault → the incident that tells of it, whatever its state."""
        self._on_node: dict[str, dict[Key, None]] = {}
        """The same faults by node."""
        self._counted = CountedErrors()
        self._contained: list[tuple[float, NodeFact]] = []
        """Lines that say of errors that were counted that they were contained, and when they were told."""
        self._parts: OrderedDict[str, list[Waiting]] = OrderedDict()
        """Incident → faults that tell of its own, and that only a person ends."""
        self._endings: list[Ending] = []
        self._boots: dict[str, tuple[str, ...]] = {}
        """Boots of each node that the latches were told of, newest last."""
        with store.begin() as session:
            for row in reversed(queries.with_verdict(session, limit=KNOWN_AT_START_MAX)):
                if row.verdict:
                    self.hold(row, verdict_from_json(row.verdict))
                    self._seed_counted(row)
            latches.seed(queries.active(session))

    def hold(self, row: Incident, verdict: Verdict) -> None:
        """Remember that an incident tells of a verdict's fault."""
        key = key_of(verdict)
        if key is not None:
            self._remember((*key[:4], row.is_drill), row.id)

    def _seed_counted(self, row: Incident) -> None:
        """Remember the errors that an open incident of before stands for; where there were more, their times are lost,
        and a line about the first is none about all."""
        is_counted_only = row.verdict is not None and row.verdict.get("fault_class") == ECC_UNCORRECTED
        if row.state != "open" or not is_counted_only or not row.evidence or any(SEEN in done for done in row.done):
            return
        for fact in from_builtins(row.evidence, EvidenceBundle).facts:
            self._counted.add(fact, at=row.onset_at)

    def _remember(self, key: Key, id_: str) -> None:
        self._known[key] = id_
        self._on_node.setdefault(key[0], {})[key] = None
        if len(self._known) > KNOWN_MAX:
            gone, _ = self._known.popitem(last=False)
            del self._on_node[gone[0]][gone]
            if not self._on_node[gone[0]]:
                del self._on_node[gone[0]]

    def add(self, run: RunState | None, facts: Sequence[NodeFact]) -> None:
        """Keep the fatal ones that are not over; a GPU that may still be given work is no incident."""
        now, realtime = self._clock.monotonic(), self._clock.realtime()
        for fact in facts:
            self._keep_asked(fact, realtime - fact.age_seconds)
            self._keep_memory(fact, realtime - fact.age_seconds)
            self._counted.add(fact, at=realtime - fact.age_seconds)
        for fact in facts:
            if fact.node in self._boots:
                self._mind_boot(fact.node, now, realtime)
            happened_at = realtime - fact.age_seconds
            fault = fault_now(fact, self._told(fact, happened_at))
            is_contained = fault is not None and fault.severity != FATAL and tells_of_memory(fact)
            if is_contained and self._counted.explain(fact, at=happened_at):
                self._contained.append((happened_at, fact))
            self._endings += self._latches.take(fact, fault, at=happened_at)
            if fault is not None and not self._latches.is_history(fact, fault, at=happened_at):
                for verdict in detect_gpu_faults([fact]):
                    self._wait(Waiting(fact, verdict, run, now))

    def tick(self) -> None:
        """Settle what has waited long enough, and end what was ended."""
        now, realtime = self._clock.monotonic(), self._clock.realtime()
        for node in self._latches.nodes():
            self._mind_boot(node, now, realtime)
        if self._endings:
            self._end()
        if self._contained:
            self._correct(realtime)
        due = [waiting for waiting in self._waiting if waiting.due_at <= now]
        if due:
            with self._store.begin() as session:
                settled = self._settle_all(session, due, now)
            self._waiting = deque(one for one in self._waiting if id(one) not in settled)
            self._tell_storm(len(due) - len(settled))

    def _wait(self, waiting: Waiting) -> None:
        """Have a fault wait for its incident; where too many do, the oldest one gives way."""
        if len(self._waiting) >= WAITING_MAX:
            gone = self._waiting.popleft()
            self._metrics.faults_dropped.inc()
            if not self._is_full:
                log.warning("%d faults wait: the oldest open nothing, first %s", WAITING_MAX, gone.verdict.summary)
            self._is_full = True
        self._waiting.append(waiting)

    def _tell_storm(self, left: int) -> None:
        """Say how many faults are due and have no incident yet: once in the log when it begins."""
        self._metrics.faults_waiting.set(left)
        if left and not self._is_storm:
            log.warning(
                "%d more faults are due than are opened in one look (%d): their incidents follow with the next looks",
                left,
                OPENED_PER_TICK_MAX,
            )
        self._is_storm = left > 0
        self._is_full = self._is_full and self._is_storm

    # What is asked, booted, over --------------------------------------------------------------------------------------

    def _keep_asked(self, fact: NodeFact, at: float) -> None:
        asked = recovery_of(fact)
        if asked is None or not fact.gpu:
            return
        key = (fact.node, fact.gpu, fact.is_drill)
        before, _ = self._asked.get(key, (at, fact))
        if at < before:  # It came late.
            return
        self._asked.pop(key, None)
        self._asked[key] = (at, fact)
        if len(self._asked) > WAITING_MAX:
            del self._asked[next(iter(self._asked))]

    def _keep_memory(self, fact: NodeFact, at: float) -> None:
        if fact.gpu and tells_of_memory(fact):
            key = (fact.node, fact.gpu, fact.is_drill)
            self._memory.pop(key, None)
            self._memory[key] = (at, fact)
            if len(self._memory) > WAITING_MAX:
                self._memory.popitem(last=False)

    def _told(self, fact: NodeFact, at: float) -> tuple[NodeFact, ...]:
        """Return a fact that happened at `at`, with the driver's line about the same errors or what its GPU asks for,
        where there is such a thing."""
        line_at, line = self._memory.get((fact.node, fact.gpu, fact.is_drill), (0.0, None))
        if line is not None:
            line = replace(line, age_seconds=fact.age_seconds + at - line_at)
            if is_line_of(line, fact):
                return (fact, line)
        _, asked = self._asked.get((fact.node, fact.gpu, fact.is_drill), (0.0, None))
        if asked is None or asked.boot_id != fact.boot_id or not recovery_of(asked):
            return (fact,)
        return (asked,) if recovery_of(fact) is not None else (fact, asked)

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
        told = self._told(fact, happened_at)
        fault = fault_now(fact, told)
        is_over = fault is None or self._latches.is_history(fact, fault, at=happened_at)
        if is_over or not detect_gpu_faults(told):  # Its end, or what made it fatal, was told or taken back meanwhile.
            return False
        row = self._holder(session, waiting, happened_at)
        if row is not None:
            _note_seen(row, fact)
            self._remember(waiting.key, row.id)
            self._keep_part(row, waiting)
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
        symptom = self._symptom(session, waiting, happened_at)
        if symptom is not None:  # It keeps its id, its labels and its plan: the node is the same.
            finding = Finding(run, RankBoard(run.attempt), EvidenceBundle(facts=told), verdict)
            fill_in(symptom, finding, now=realtime)
            self._remember(waiting.key, symptom.id)
            self._announce(session, symptom, "verdict")
            return False
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
                severity=_alert_severity(told),
            ),
            state="open",
            now=realtime,
        )
        self._remember(waiting.key, row.id)
        if is_new:
            self._keep_part(row, waiting)
            waited = self._clock.monotonic() - waiting.at
            bundle = EvidenceBundle(facts=told)
            self._conclude(session, row, Finding(run, RankBoard(run.attempt), bundle, verdict, waited))
        return is_new

    def _symptom(self, session: Session, waiting: Waiting, happened_at: float) -> Incident | None:
        """Return the open incident that only told of this fault until now."""
        for key in self._on_node.get(waiting.fact.node, ()):
            row = queries.get(session, self._known[key]) if _is_symptom(key, waiting.key) else None
            is_open = row is not None and row.state == "open" and row.mended is None and row.family != STOP
            is_told_only = row is not None and (row.verdict or {}).get("fault_class") == key[2]
            if row is not None and is_open and is_told_only and abs(row.onset_at - happened_at) <= NEAR_SECONDS:
                return row
        return None

    def _holder(self, session: Session, waiting: Waiting, happened_at: float) -> Incident | None:
        """Return the incident that already tells of this fault, or of what it did to a job at that time."""
        id_ = self._known.get(waiting.key)
        known = queries.get(session, id_) if id_ is not None else None
        if known is not None and known.state in ("withdrawn", "merged"):
            known = None
        if known is not None and (not is_mended(known, happened_at) or _is_old_news(known, waiting.fact)):
            return known
        cause = self._cause(session, waiting) if waiting.is_symptom else None
        if cause is not None or waiting.run is None or is_of_before(waiting.fact):
            return cause
        near = queries.stops_near(session, waiting.run.run, happened_at, within=NEAR_SECONDS)
        return next((row for row in near if _tells_of(row, waiting) and not is_mended(row, happened_at)), None)

    def _cause(self, session: Session, waiting: Waiting) -> Incident | None:
        """Return the open incident of the fault that a symptom tells of."""
        for key in self._on_node.get(waiting.fact.node, ()):
            row = queries.get(session, self._known[key]) if _is_symptom(waiting.key, key) else None
            if row is not None and row.state == "open" and row.mended is None:
                return row
        return None

    def _keep_part(self, row: Incident, waiting: Waiting) -> None:
        """Remember a fault that outlasts the one of which it tells, should that be over first."""
        if not waiting.is_symptom or waiting.verdict.clears != ("person",):
            return
        parts = self._parts.setdefault(row.id, [])
        if len(parts) < PARTS_MAX and waiting.key not in {one.key for one in parts}:
            parts.append(waiting)
        if len(self._parts) > KNOWN_MAX:
            self._parts.popitem(last=False)

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
                    self._outlasting(row)
        self._endings = []

    def _outlasting(self, row: Incident) -> None:
        """Have what outlasts an ended incident wait for one of its own."""
        now = self._clock.monotonic()
        for part in self._parts.pop(row.id, ()):
            self._known.pop(part.key, None)
            self._on_node.get(part.fact.node, {}).pop(part.key, None)
            fact = replace(part.fact, age_seconds=part.fact.age_seconds + now - part.at)
            self._wait(replace(part, fact=fact, at=now))

    def _correct(self, realtime: float) -> None:
        """End the incidents of errors that were counted, and contained as the driver said afterwards."""
        with self._store.begin() as session:
            for at, line in self._contained:
                row = self._of_counted(session, line)
                if row is None or self._counted.is_open(line, since=row.onset_at):
                    continue
                self._latches.contained(line, ECC_UNCORRECTED)
                said = f"{line.text.strip()[:300]} The error was contained: it hit one program, and"
                end = f"{said} the GPU may be given further work. Reset it when convenient."
                end_fault(session, row, end, announce=self._announce, at=max(at, row.onset_at))
                self._outlasting(row)
        self._contained = []

    def _of_counted(self, session: Session, line: NodeFact) -> Incident | None:
        """Return the incident that stands for errors that were only counted on a line's GPU."""
        for boot_id in ("", line.boot_id):
            id_ = self._known.get((line.node, line.gpu, ECC_UNCORRECTED, boot_id, line.is_drill))
            row = queries.get(session, id_) if id_ is not None else None
            is_standing = row is not None and row.state == "open" and row.mended is None
            where = device_of(row) if row is not None and is_standing else None
            if where is not None and where[2] == ECC_UNCORRECTED:
                return row
        return None


def _alert_severity(told: tuple[NodeFact, ...]) -> str:
    """Return the severity of a fault's alert where it is not its kind's: what hurts no running work wakes nobody."""
    fault = fault_now(told[0], told)
    return "warning" if fault is not None and fault.workload == "survives" else ""


def _is_symptom(key: Key, of: Key) -> bool:
    """Whether a fault only tells of another one; either may have no boot of its own."""
    boot = key[3] or of[3]
    return is_symptom((*key[:3], boot, key[4]), (*of[:3], of[3] or boot, of[4]))


def _is_old_news(row: Incident, fact: NodeFact) -> bool:
    """Whether a reading says again, in the same boot, what a person has called mended: to a server that starts again
    each reading is new."""
    is_same_boot = (row.verdict or {}).get("boot_id") == fact.boot_id
    return is_same_boot and fact.kind == KIND and is_of_before(fact)


def _tells_of(row: Incident, waiting: Waiting) -> bool:
    suspects = (row.verdict or {}).get("suspects", ())
    return row.is_drill == waiting.verdict.is_drill and waiting.fact.node in {one.get("node") for one in suspects}


def _note_seen(row: Incident, fact: NodeFact) -> None:
    """Say that a further line of the fault was told; the line that opened the incident is in it already."""
    cited = {item.get("fields", {}).get("event_id") for item in (row.verdict or {}).get("evidence", ())}
    said = sum(done.startswith(SEEN) for done in row.done)
    if fact.event_id not in cited and said < SEEN_NOTES_MAX:
        note(row, f"{SEEN} {fact.node} as well: {fact.text.strip()[:300]}")
