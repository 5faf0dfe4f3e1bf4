"""The webhook: one POST for each incident, kept in the outbox until the receiver has taken it."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from instep_collector.clock import Clock
from instep_collector.metrics import Metrics
from instep_collector.store import outbox
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident, Webhook
from sqlalchemy.orm import Session

from instep_remediation.alerts.direct import UNREACHABLE, send
from instep_remediation.alerts.message import message
from instep_remediation.errors import DeliveryError

TRIES_MAX = 60
BACKOFF_SECONDS_MAX = 300.0
TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 1.0

Post = Callable[[str, str, dict[str, Any]], None]
"""Delivers (url, idempotency key, body); raises DeliveryError."""

log = logging.getLogger(__name__)


def post(url: str, key: str, body: dict[str, Any]) -> None:
    """POST a message as JSON. The receiver may use the `Idempotency-Key` to take it once."""
    request = urllib.request.Request(
        url,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Idempotency-Key": key, "User-Agent": "instep"},
        method="POST",
    )
    try:
        send(request, timeout_seconds=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise DeliveryError(f"The receiver answered {error.code}.") from error
    except UNREACHABLE as error:
        raise DeliveryError(f"The receiver cannot be reached ({error}).") from error


class WebhookOutbox:
    """Queues messages in the caller's transaction, and delivers them in the background."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        metrics: Metrics,
        *,
        url: str,
        page_url: str,
        runbook_base: str,
        is_told_on_resolve: bool,
        send: Post = post,
    ) -> None:
        self._clock = clock
        self._store = store
        self._metrics = metrics
        self._url = url
        self.page_url = page_url
        self._runbook_base = runbook_base
        self._is_told_on_resolve = is_told_on_resolve
        self._send = send

    def announce(self, session: Session, row: Incident, occasion: str) -> None:
        """Queue a message about an incident, once for each occasion; without a webhook nothing is queued."""
        if not self._url or (occasion == "resolved" and (not self._is_told_on_resolve or row.verdict_at is None)):
            return
        body = message(row, occasion, page_url=self.page_url, runbook_base=self._runbook_base)
        outbox.put(session, row.id, occasion, body, at=self._clock.realtime())

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                await self.deliver()
            except Exception:
                log.exception("A look into the webhook outbox failed.")
            await asyncio.sleep(POLL_SECONDS)

    async def deliver(self) -> int:
        """Try everything that is due once; returns how many were delivered."""
        if not self._url:
            return 0
        with self._store.begin() as session:
            waiting = list(outbox.due(session, now=self._clock.realtime(), tries_max=TRIES_MAX))
        return sum([await self._try(entry) for entry in waiting])

    async def _try(self, entry: Webhook) -> bool:
        error = ""
        try:
            await asyncio.to_thread(self._send, self._url, entry.id, entry.body)
        except DeliveryError as failure:
            error = str(failure)
        self._metrics.webhooks.labels("failed" if error else "delivered").inc()
        now = self._clock.realtime()
        with self._store.begin() as session:
            row = session.get(Webhook, entry.id)
            if row is not None:
                row.tries, row.error = row.tries + 1, error
                row.next_at = now + min(2.0 ** (row.tries - 1), BACKOFF_SECONDS_MAX)
                row.delivered_at = None if error else now
        return not error
