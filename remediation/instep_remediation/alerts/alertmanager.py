"""Alertmanager: one alert for each incident, sent again while it stands, ended when it is over.

What has to be sent is derived from the store at every look, so a server that was killed goes on where it stood. Only
the end of an alert needs a receipt of its own: an address that has taken it is told no more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instep_collector.clock import Clock
from instep_collector.metrics import Metrics
from instep_collector.store import incidents, outbox
from instep_collector.store.engine import Store
from instep_collector.store.models import Incident

from instep_remediation.alerts.alert import ENDED, alert
from instep_remediation.alerts.direct import UNREACHABLE, send
from instep_remediation.errors import DeliveryError, DeliveryRefused

POLL_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS_MAX = 60.0
ALERTS_PER_POST_MAX = 100
INCIDENTS_MAX = 1000
ENDED_SECONDS_MAX = 3600.0
"""The end of an alert is told to an address that was away for up to this long; by then it has ended there by itself."""

TOKEN = re.compile(rb"[!-~]+")
"""What a bearer token is made of."""

Post = Callable[[str, str, list[dict[str, Any]]], None]
"""Delivers (address, bearer token, alerts); raises DeliveryError, or DeliveryRefused where trying again cannot help."""

log = logging.getLogger(__name__)


def post(address: str, token: str, alerts: list[dict[str, Any]]) -> None:
    """POST alerts to one Alertmanager."""
    headers = {"Content-Type": "application/json", "User-Agent": "instep"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(
        f"{address.rstrip('/')}/api/v2/alerts", json.dumps(alerts).encode(), headers, method="POST"
    )
    try:
        send(request, timeout_seconds=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(2_000).decode("utf-8", "replace").strip()
        kind = DeliveryRefused if error.code in (400, 422) else DeliveryError
        raise kind(f"Alertmanager at {address} answered {error.code} ({said[:300]}).") from error
    except UNREACHABLE as error:
        raise DeliveryError(f"Alertmanager at {address} cannot be reached ({error}).") from error


@dataclass(slots=True)
class _Receiver:
    """One address, and what it was told by this server."""

    address: str
    told: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Incident → (its version, when)."""
    failures: int = 0
    next_at: float = 0.0
    """Not sooner than this (monotonic), after failures."""

    @property
    def mark(self) -> str:
        """Names it in receipts."""
        return "am-" + hashlib.sha256(self.address.encode()).hexdigest()[:12]


class Alertmanagers:
    """Every configured Alertmanager: each is told everything, as its documentation asks."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        metrics: Metrics,
        *,
        addresses: Sequence[str],
        token_file: Path | None,
        resend_seconds: float,
        page_url: str,
        runbook_base: str,
        send: Post = post,
    ) -> None:
        self._clock = clock
        self._store = store
        self._metrics = metrics
        self._receivers = [_Receiver(address) for address in addresses]
        self._token_file = token_file
        self._resend_seconds = resend_seconds
        self.page_url = page_url
        self._runbook_base = runbook_base
        self._send = send

    async def run(self) -> None:
        """Look until cancelled."""
        while self._receivers:
            try:
                await self.look()
            except Exception:
                log.exception("A look at the alerts failed.")
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> int:
        """Send what is due to each address once; return how many alerts were taken."""
        return sum([await self._serve(receiver) for receiver in self._receivers])

    async def _serve(self, receiver: _Receiver) -> int:
        now = self._clock.monotonic()
        due = self._due(receiver, now)
        self._metrics.alerts_pending.labels(receiver.address).set(len(due))
        if not due or now < receiver.next_at:
            return 0
        rows = self._rows(due[:ALERTS_PER_POST_MAX])
        error = await self._try(receiver, [self._alert(row) for row in rows])
        self._metrics.alerts_sent.labels(receiver.address, "failed" if error else "delivered").inc(len(rows))
        if error:
            return 0
        for row in rows:
            receiver.told[row.id] = (row.version, now)
        self._receipt(receiver, [row for row in rows if row.state in ENDED])
        self._metrics.alerts_pending.labels(receiver.address).set(len(due) - len(rows))
        return len(rows)

    def _due(self, receiver: _Receiver, now: float) -> list[str]:
        """Return the incidents that are new to this address, have changed, or want to be said again.

        It is looked for every second, so only ids and versions are read: a thousand alerts take a second to write.
        """
        since = self._clock.realtime() - ENDED_SECONDS_MAX
        with self._store.begin() as session:
            told = incidents.told(session, ended_after=since, limit=INCIDENTS_MAX)
            ended = [row.id for row in told if row.state in ENDED]
            known = outbox.receipts(session, ended, receiver.mark)
        rows = [row for row in told if row.id not in known]
        receiver.told = {row.id: receiver.told[row.id] for row in rows if row.id in receiver.told}
        return [row.id for row in rows if self._is_due(receiver, row, now)]

    def _is_due(self, receiver: _Receiver, row: incidents.Told, now: float) -> bool:
        version, at = receiver.told.get(row.id, (0, 0.0))
        return row.id not in receiver.told or version != row.version or now - at >= self._resend_seconds

    def _rows(self, ids: list[str]) -> list[Incident]:
        with self._store.begin() as session:
            return list(incidents.of_ids(session, ids))

    def _alert(self, row: Incident) -> dict[str, Any]:
        return alert(row, now=self._clock.realtime(), page_url=self.page_url, runbook_base=self._runbook_base)

    async def _try(self, receiver: _Receiver, alerts: list[dict[str, Any]]) -> str:
        """Send; return why it failed. What is refused for good counts as said: again would be refused again."""
        try:
            await asyncio.to_thread(self._send, receiver.address, self._token(), alerts)
        except DeliveryRefused as refused:
            log.error("%s Alertmanager keeps the alerts it understands; the others are not sent again.", refused)
        except DeliveryError as error:
            receiver.failures += 1
            wait = min(2.0 ** (receiver.failures - 1), BACKOFF_SECONDS_MAX) * random.uniform(0.5, 1.0)
            receiver.next_at = self._clock.monotonic() + wait
            if receiver.failures == 1:
                log.warning("%s It is tried again until it answers.", error)
            return str(error)
        receiver.failures = 0
        return ""

    def _token(self) -> str:
        """Return the bearer token, read anew each time: it may be rotated."""
        if self._token_file is None:
            return ""
        try:
            token = self._token_file.read_bytes().strip()
        except OSError as error:
            raise DeliveryError(f"Cannot read {self._token_file} ({error.strerror}).") from error
        if not TOKEN.fullmatch(token):  # As a header it would be refused by a sentence that repeats it.
            raise DeliveryError(f"{self._token_file} holds no token: one line without blanks is needed.")
        return token.decode("ascii")

    def _receipt(self, receiver: _Receiver, ended: list[Incident]) -> None:
        """Keep that an address knows of an alert's end."""
        if not ended:
            return
        with self._store.begin() as session:
            for row in ended:
                outbox.keep_receipt(session, row.id, receiver.mark, at=self._clock.realtime())
