"""The incident desk: takes findings in, opens one incident for one cause, and has plans made and carried out.

It implements the collector's `Sink`. Every method works by state and may be called again with the same finding; what
belongs together (incident, plan, order, message, audit line) is committed together.
"""

from __future__ import annotations

from collections.abc import Sequence

from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.metrics import Metrics
from instep_collector.registry import Registry, RunState
from instep_collector.sink import Finding
from instep_collector.store import incidents as queries
from instep_collector.store import orders as order_queries
from instep_collector.store import plans as plan_queries
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident
from instep_diagnosis.detectors.stall import Stall
from instep_diagnosis.evidence import JobState, NodeFact
from instep_diagnosis.verdict import Certainty, Kind, Verdict
from sqlalchemy.orm import Session

from instep_remediation.aftermath import expire_orders
from instep_remediation.evidence import EvidenceDesk
from instep_remediation.executor import Executor
from instep_remediation.guards import JobBudget
from instep_remediation.latches import Latches
from instep_remediation.node_faults import NodeFaults
from instep_remediation.openings import (
    STOP,
    Announce,
    Opening,
    catch_up,
    fill_in,
    identity,
    is_hang,
    join_fault,
    merge,
    note,
    open_incident,
    resolve,
)
from instep_remediation.orders import OrderHub
from instep_remediation.plans import make_plan
from instep_remediation.policy import Policy
from instep_remediation.stragglers import StragglerDesk

LOCALISE_SECONDS = 1.0
"""Between tries while the verdict is only a suspicion."""
SETTLED_MAX = 4096


class Desk:
    """Incidents of one server."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        registry: Registry,
        hub: OrderHub,
        executor: Executor,
        *,
        evidence: EvidenceDesk,
        policy: Policy,
        metrics: Metrics,
        announce: Announce,
        latches: Latches,
    ) -> None:
        self._clock = clock
        self._store = store
        self._registry = registry
        self._hub = hub
        self._executor = executor
        self._evidence = evidence
        self._policy = policy
        self._metrics = metrics
        self._announce = announce
        self._settled: dict[tuple[str, int], None] = {}
        self._localised_at: dict[str, float] = {}
        self._stragglers = StragglerDesk(clock, store, self.conclude)
        self._node_faults = NodeFaults(
            clock, store, registry, latches, self.conclude, announce=announce, metrics=metrics
        )
        with store.begin() as session:
            self._stalled = {row.run for row in queries.active(session) if is_hang(row)}

    # Crashes ---------------------------------------------------------------------------------------------------------

    def wants_crash(self, run: RunState, board: RankBoard) -> bool:
        """Whether a failed exit is news: no crash is known, no hang explains it, and nobody asked for a restart."""
        key = (run.run, board.attempt)
        if key in self._settled:
            return False
        with self._store.begin() as session:
            known = queries.of_attempt(session, *key)
            is_ordered = any(order.action in ("restart", "stop") for order in order_queries.of_attempt(session, *key))
        if is_ordered or any(row.family == STOP and not is_hang(row) for row in known):
            self._settled[key] = None
            if len(self._settled) > SETTLED_MAX:
                del self._settled[next(iter(self._settled))]
            return False
        return not any(is_hang(row) and row.state == "open" for row in known)

    def crashed(self, finding: Finding) -> None:
        """Open the attempt's one crash incident, with its plan and order."""
        run, board, verdict, now = finding.run, finding.board, finding.verdict, self._clock.realtime()
        with self._store.begin() as session:
            row, is_new = open_incident(
                session,
                Opening(
                    identity(run.run, board.attempt, "crash", None),
                    verdict.kind.value,
                    run.job,
                    run.run,
                    board.attempt,
                    verdict.summary,
                    verdict.onset_step,
                    now - verdict.onset_age_seconds,
                    verdict.is_drill,
                    _first_node(verdict),
                ),
                state="open",
                now=now,
            )
            if not is_new:
                return
            for suspected in queries.of_attempt(session, run.run, board.attempt):
                if is_hang(suspected) and suspected.state == "suspect":
                    merge(session, suspected, row, at=now)
            self.conclude(session, row, finding)
        self._hub.wake(run.run)

    # Hangs -----------------------------------------------------------------------------------------------------------

    def stalled(self, run: RunState, board: RankBoard, job: JobState, stall: Stall) -> None:
        """Show a suspect; alarm when it is confirmed, and ask for evidence."""
        now = self._clock.realtime()
        is_confirmed = stall.certainty is Certainty.CONFIRMED
        with self._store.begin() as session:
            row = (
                self._hang_of(session, run, board)
                or open_incident(
                    session,
                    Opening(
                        identity(run.run, board.attempt, "hang", stall.step),
                        Kind.HANG.value,
                        run.job,
                        run.run,
                        board.attempt,
                        _stall_words(run, stall),
                        stall.step,
                        now - stall.onset_age_seconds,
                    ),
                    state="suspect",
                    now=now,
                )[0]
            )
            self._stalled.add(run.run)
            if row.state != "suspect" or not is_confirmed:
                return
            row.state, row.alarm_at, row.summary = "open", now, _stall_words(run, stall)
            row.onset_at = now - stall.onset_age_seconds
            self._evidence.ask(session, run, board, row)
        self._hub.wake(run.run)

    def wants_localisation(self, run: RunState, board: RankBoard) -> bool:
        """Whether an alarm waits for its verdict, and its evidence has come or will not come."""
        if run.run not in self._stalled:
            return False
        now = self._clock.monotonic()
        with self._store.begin() as session:
            row = self._hang_of(session, run, board)
            if row is None or row.state != "open" or row.verdict_at is not None or row.alarm_at is None:
                return False
            is_settled = self._evidence.is_settled(session, run, board, row)
        if not is_settled and board.first_failure() is None:
            return False
        if now - self._localised_at.get(run.run, -LOCALISE_SECONDS) < LOCALISE_SECONDS:
            return False
        self._localised_at[run.run] = now
        return True

    def localised(self, finding: Finding) -> None:
        """Complete the verdict; a restart is ordered on confirmed ones only."""
        run, board = finding.run, finding.board
        with self._store.begin() as session:
            row = self._hang_of(session, run, board)
            if row is None or row.verdict_at is not None:
                return
            if finding.verdict.certainty is Certainty.CONFIRMED:
                self.conclude(session, row, finding)
            else:
                row.summary = finding.verdict.summary
        self._hub.wake(run.run)

    def moving(self, run: RunState, board: RankBoard, step: int) -> None:
        """Withdraw a suspect that was none; end a hang that went away by itself. Ranks not known prove nothing."""
        if run.run not in self._stalled or step < 0:
            return
        now = self._clock.realtime()
        with self._store.begin() as session:
            row = self._hang_of(session, run, board)
            if row is None:
                if not any(is_hang(other) for other in queries.active(session, run=run.run)):
                    self._stalled.discard(run.run)
            elif row.state == "suspect":
                resolve(session, row, "The job goes on: it was no hang.", at=now, state="withdrawn")
            elif step > (row.onset_step or 0) + 1 and not plan_queries.executing(session, run.run):
                note(row, "Nothing was done: the job went on by itself.")
                resolve(session, row, f"The job went on by itself to step {step}.", at=now)
                self._announce(session, row, "resolved")
        self._show_counts()

    # Others ----------------------------------------------------------------------------------------------------------

    def straggling(self, run: RunState, board: RankBoard, findings: Sequence[Finding]) -> None:
        """Open, renew and end straggler incidents; they restart nothing."""
        self._stragglers.straggling(run, board, findings)

    def node_facts(self, run: RunState | None, facts: Sequence[NodeFact]) -> None:
        """Remember fatal facts until it is clear whether a job's incident holds them."""
        self._node_faults.add(run, facts)

    def tick(self) -> None:
        """Expire orders, open what no job's incident has taken up, refresh the gauges."""
        expire_orders(self._clock, self._store)
        self._node_faults.tick()
        self._show_counts()

    # Conclusion ------------------------------------------------------------------------------------------------------

    def conclude(self, session: Session, row: Incident, finding: Finding) -> None:
        """Fill the verdict in, plan, execute, tell people: all in the caller's transaction."""
        now = self._clock.realtime()
        if row.family == STOP:
            row = join_fault(session, row, finding.verdict, now=now)
        fill_in(row, finding, now=now)
        self._node_faults.hold(row, finding.verdict)
        self._metrics.incidents.labels(row.kind, str(row.is_drill).lower()).inc()
        plan = make_plan(row.id, finding.verdict, self._policy, self._budget(session, finding))
        if plan is not None:
            order = self._executor.execute(session, plan, row)
            if order is not None:
                row.ordered_at = now
                self._metrics.orders.labels("restart").inc()
                place = f"without {', '.join(order.exclude)}" if order.exclude else "in place"
                note(row, f"A restart {place} was ordered (order {order.id}).")
        if row.kind == Kind.STRAGGLER:
            note(row, "Nothing: a straggler is reported, no job is restarted for it.")
        if row.family == STOP:
            catch_up(session, row, finding.run, finding.board, now=now)
        self._announce(session, row, "verdict")

    def _budget(self, session: Session, finding: Finding) -> JobBudget:
        run, board = finding.run, finding.board
        known = [report_age for _, report_age in board.ranks_now(self._clock.monotonic())]
        restarts = [
            order for order in order_queries.recent(session) if order.run == run.run and order.action == "restart"
        ]
        return JobBudget(
            max_restarts=run.max_restarts,
            restarts_used=run.restarts_used,
            is_controlled=run.is_controlled,
            is_current_attempt=board.attempt == run.attempt and not run.is_finished,
            standby=len(run.standby),
            has_plan_pending=bool(plan_queries.executing(session, run.run)),
            local_decision=board.decision.action if board.decision else "",
            evidence_age_seconds=_evidence_age_seconds(finding.verdict, known),
            nodes_proposed=plan_queries.nodes_proposed(session),
            last_restart_age_seconds=self._clock.realtime() - restarts[0].created_at if restarts else None,
        )

    def _hang_of(self, session: Session, run: RunState, board: RankBoard) -> Incident | None:
        """Return the attempt's active hang, if there is one."""
        return next(
            (row for row in queries.active(session, run=run.run) if row.attempt == board.attempt and is_hang(row)),
            None,
        )

    def _show_counts(self) -> None:
        with self._store.begin() as session:
            counts = queries.counts(session)
        for kind in Kind:
            self._metrics.incidents_open.labels(kind.value).set(counts.get((kind.value, "open"), 0))
        self._metrics.suspects_open.set(sum(number for (_, state), number in counts.items() if state == "suspect"))


def _evidence_age_seconds(verdict: Verdict, report_ages: Sequence[float]) -> float:
    """Return how old a verdict's evidence is: for a fault of a GPU its line, for a hang the newest report of a rank."""
    if verdict.kind is Kind.GPU_FAULT:
        return max(0.0, verdict.onset_age_seconds)
    return min(report_ages, default=0.0) if verdict.kind is Kind.HANG else 0.0


def _first_node(verdict: Verdict) -> str:
    return verdict.suspects[0].node if verdict.suspects else ""


def _stall_words(run: RunState, stall: Stall) -> str:
    """Return an alarm in words, before anybody is accused."""
    waiting = ", ".join(str(rank) for rank in stall.waiting[:8]) or "none"
    waited = f"{stall.waited_seconds:.1f} s (patience {stall.patience_seconds:.1f} s)"
    return f"Job {run.job} makes no progress after step {stall.step}: waiting ranks {waiting}, for {waited}."
