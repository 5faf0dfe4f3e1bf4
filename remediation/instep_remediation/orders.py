"""Orders to coordinators: kept in the store, listed until acknowledged, delivered by long poll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from instep_collector.clock import Clock
from instep_collector.store import orders as queries
from instep_collector.store.engine import Store
from instep_collector.store.models import OrderRow
from sqlalchemy.orm import Session

from instep_remediation.waiting import Waiting

DEADLINE_SECONDS = {"dump": 5.0, "checkpoint": 30.0, "restart": 30.0, "stop": 30.0}
"""Beyond its deadline an order is not listed any more: carried out late, it would surprise."""


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """An order to be made."""

    run: str
    attempt: int
    action: str
    incident: str
    reason: str
    exclude: tuple[str, ...] = ()


class OrderHub:
    """Makes orders and wakes the coordinators that wait for them."""

    def __init__(self, clock: Clock, store: Store) -> None:
        self._clock = clock
        self._store = store
        self._waiting = Waiting()

    def make(self, session: Session, request: OrderRequest) -> tuple[OrderRow, bool]:
        """Return the order and whether it is new. One of each kind is made for an incident and attempt, ever."""
        known = queries.find(session, request.incident, request.attempt, request.action)
        if known is not None:
            return known, False
        row = OrderRow(
            run=request.run,
            attempt=request.attempt,
            action=request.action,
            exclude=list(request.exclude),
            reason=request.reason,
            incident=request.incident,
            created_at=self._clock.realtime(),
            ended_at=None,
            deadline_seconds=DEADLINE_SECONDS[request.action],
            outcome="",
            detail="",
        )
        session.add(row)
        session.flush()
        return row, True

    def wake(self, run: str) -> None:
        """Answer whoever waits for this run's orders; to be called after the commit."""
        self._waiting.wake(run)

    def listed(self, run: str, after: int) -> list[dict[str, Any]]:
        """Return what the run's coordinator has still to acknowledge, oldest first, with the time that is left for
        it.
        """
        now = self._clock.realtime()
        with self._store.begin() as session:
            rows = queries.listed(session, run, after=after)
            return [as_order(row, now) for row in rows if now <= row.created_at + row.deadline_seconds]

    async def wait(self, run: str, after: int, wait_seconds: float) -> list[dict[str, Any]]:
        """Return orders at once when there are any, else as soon as one is made, else nothing when the wait is over."""
        return await self._waiting.until(run, lambda: self.listed(run, after), wait_seconds)

    def waiting(self, run: str) -> int:
        """Return how many coordinators wait for this run's orders."""
        return self._waiting.count(run)

    def release(self) -> None:
        """Answer everybody who waits: the server ends."""
        self._waiting.release()


def as_order(row: OrderRow, now: float) -> dict[str, Any]:
    """Return an order as it goes over the wire."""
    left = max(0.0, row.created_at + row.deadline_seconds - now)
    return {
        "id": row.id,
        "run": row.run,
        "attempt": row.attempt,
        "action": row.action,
        "exclude": row.exclude,
        "reason": row.reason,
        "incident": row.incident,
        "deadline_seconds": round(left, 3),
    }
