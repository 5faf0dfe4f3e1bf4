"""Orders to the agents of nodes, by long poll: for evidence about a run whose supervisors give none.

They are held in memory: the incident desk asks again by state after a restart, and beyond its deadline nobody waits
for an answer.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from instep_agent.wire import NodeDump, NodeOrder
from instep_collector.clock import Clock
from instep_collector.errors import Refused
from instep_collector.store.models import OrderRow

from instep_remediation.waiting import Waiting

LISTENING_SECONDS = 5.0
"""An agent that asked within this, and carries out an order or reconnects, is still there."""
NODES_ASKED_MAX = 256
"""By one order: the stacks of more say no more, and would all arrive together."""
ORDERS_MAX = 1024
NODES_MAX = 20_000
WAITING_PER_NODE_MAX = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """One order as the agents got it."""

    order: int
    run: str
    attempt: int
    nodes: frozenset[str]
    at: float
    deadline_at: float


class NodeOrders:
    """What the agents of the nodes are asked, and who of them listens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked: OrderedDict[int, Asked] = OrderedDict()
        self._heard_at: OrderedDict[str, float] = OrderedDict()
        self._waiting = Waiting()
        self.epoch = uuid.uuid4().hex
        """Of this server's life: another one may number its orders from 1 again."""

    def is_listening(self, node: str) -> bool:
        """Whether the node's agent waits for orders, or did a moment ago."""
        heard_at = self._heard_at.get(node)
        is_fresh = heard_at is not None and self._clock.monotonic() - heard_at <= LISTENING_SECONDS
        return self._waiting.count(node) > 0 or is_fresh

    def ask(self, order: OrderRow, nodes: Iterable[str]) -> Asked | None:
        """Put an order to those of the nodes whose agents listen; None when none does. Asked once, it stays as it
        was.
        """
        known = self._asked.get(order.id)
        if known is not None:
            return known
        listening = [node for node in nodes if self.is_listening(node)][:NODES_ASKED_MAX]
        if not listening:
            return None
        now = self._clock.monotonic()
        asked = Asked(order.id, order.run, order.attempt, frozenset(listening), now, now + order.deadline_seconds)
        self._asked[order.id] = asked
        if len(self._asked) > ORDERS_MAX:
            self._asked.popitem(last=False)
        for node in listening:
            self._waiting.wake(node)
        return asked

    def is_asked(self, dump: NodeDump) -> bool:
        """Whether this is an answer to an order that was put to its node and is not too late."""
        asked = self._asked.get(dump.order)
        return (
            asked is not None
            and dump.node in asked.nodes
            and (dump.run, dump.attempt) == (asked.run, asked.attempt)
            and self._clock.monotonic() <= asked.deadline_at
        )

    def listed(self, node: str, after: int) -> list[dict[str, Any]]:
        """Return what a node's agent is asked, oldest first."""
        now = self._clock.monotonic()
        return [
            msgspec.to_builtins(
                NodeOrder(
                    id=asked.order,
                    run=asked.run,
                    attempt=asked.attempt,
                    action="dump",
                    deadline_seconds=round(asked.deadline_at - now, 3),
                )
            )
            for asked in self._asked.values()
            if asked.order > after and node in asked.nodes and now <= asked.deadline_at
        ]

    async def wait(self, node: str, after: int, wait_seconds: float) -> list[dict[str, Any]]:
        """Return orders at once when there are any, else as soon as one is made, else nothing when the wait is over."""
        if self._waiting.count(node) >= WAITING_PER_NODE_MAX:
            raise Refused(429, f"{WAITING_PER_NODE_MAX} agents of node {node[:40]!r} wait already: run one a node.")
        try:
            return await self._waiting.until(node, lambda: self.listed(node, after), wait_seconds)
        finally:
            self._hear(node)

    def waiting(self, node: str) -> int:
        """Return how many agents of a node wait."""
        return self._waiting.count(node)

    def release(self) -> None:
        """Answer everybody who waits: the server ends."""
        self._waiting.release()

    def _hear(self, node: str) -> None:
        self._heard_at[node] = self._clock.monotonic()
        self._heard_at.move_to_end(node)
        if len(self._heard_at) > NODES_MAX:
            self._heard_at.popitem(last=False)
