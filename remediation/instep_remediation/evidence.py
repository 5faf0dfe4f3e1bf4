"""Evidence for an alarm: the run's supervisors are asked first; when they are silent, or there are none, the agents.

Works by state, as the desk does: each call may be repeated, and after a restart comes to the same.
"""

from __future__ import annotations

from instep_collector.boards import RankBoard
from instep_collector.clock import Clock
from instep_collector.metrics import Metrics
from instep_collector.registry import RunState
from instep_collector.store import orders as order_queries
from instep_collector.store.models import Incident, OrderRow
from sqlalchemy.orm import Session

from instep_remediation.aftermath import end_order
from instep_remediation.node_orders import Asked, NodeOrders
from instep_remediation.orders import OrderHub, OrderRequest

SUPERVISORS_SECONDS = 1.0
"""So long the supervisors alone are waited for: they answer within 0.3 s when they live."""
DUMP_SECONDS = 2.0
"""How long the verdict of an alarm waits for evidence that nobody else can give."""
AGENTS_SECONDS = 2.0
"""How long it waits for agents, from the moment they were asked."""


class EvidenceDesk:
    """Asks for dumps, and knows when they have come or will not come."""

    def __init__(self, clock: Clock, hub: OrderHub, nodes: NodeOrders, metrics: Metrics) -> None:
        self._clock = clock
        self._hub = hub
        self._nodes = nodes
        self._metrics = metrics

    def ask(self, session: Session, run: RunState, board: RankBoard, row: Incident) -> None:
        """At the alarm: order a dump from the coordinator; of a run that has none, from the agents, if any listens."""
        if board.decision is not None:
            return
        if not run.is_controlled and not any(self._nodes.is_listening(node) for node in run.nodes()):
            return
        reason = "The job makes no progress: evidence is wanted."
        order, is_new = self._hub.make(session, OrderRequest(run.run, board.attempt, "dump", row.id, reason))
        self._metrics.orders.labels("dump").inc(is_new)
        if not run.is_controlled:
            self._nodes.ask(order, nodes_of(run, board))

    def is_settled(self, session: Session, run: RunState, board: RankBoard, row: Incident) -> bool:
        """Whether the evidence of an alarm has come or will not come; asks the agents when their time has come."""
        order = order_queries.find(session, row.id, board.attempt, "dump")
        if order is None or order.id in board.orders_dumped or order.outcome == "refused":
            return True
        age_seconds = self._clock.realtime() - order.created_at
        asked = None
        if not run.is_controlled or age_seconds >= SUPERVISORS_SECONDS:
            asked = self._nodes.ask(order, nodes_of(run, board))
        if asked is None:
            return age_seconds >= DUMP_SECONDS
        return self._is_answered(session, order, asked, board) or self._clock.monotonic() - asked.at >= AGENTS_SECONDS

    def _is_answered(self, session: Session, order: OrderRow, asked: Asked, board: RankBoard) -> bool:
        if asked.nodes - board.nodes_dumped.get(order.id, set()):
            return False
        detail = f"answered by the agents of {', '.join(sorted(asked.nodes)[:8])}"
        end_order(session, order, "done", detail, at=self._clock.realtime())
        return True


def nodes_of(run: RunState, board: RankBoard) -> list[str]:
    """Return the nodes of an attempt, those first that run a rank which is not merely waiting for others."""
    busy = {report.node for report, _ in board.reports.values() if report.phase != "wait"}
    known = run.nodes() | {report.node for report, _ in board.reports.values()}
    return sorted(known - {""}, key=lambda node: (node not in busy, node))
