"""The coordinator's line to the server: reports go out in order and at least once, orders come in by long poll.

The server may be away for as long as it likes; what was not delivered waits in a bounded queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import random
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from instep_trainer.run.coordination import Order
from instep_trainer.run.daemon_thread import in_daemon_thread

log = logging.getLogger("instep.run")
REPORTS_WAITING_MAX = 2_000
"""Beyond this the oldest heartbeats go first, then the oldest reports; a day of a quiet run is far below."""
REQUEST_SECONDS_MAX = 5.0
POLL_SECONDS = 20.0
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.2, 2.0
HEARTBEAT_SECONDS = 2.0


class ServerLink:
    """Delivers reports and fetches orders for one run."""

    def __init__(
        self, *, url: str, token: str, job: str, run: str, node: str, on_order: Callable[[Order], None]
    ) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._token = token
        self._identity = {"job": job, "run": run, "node": node}
        self._on_order = on_order
        self._waiting: deque[dict[str, Any]] = deque()
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._tasks: list[asyncio.Task[None]] = []
        self.answered_at = time.monotonic()
        """When the server last answered."""
        self.refusal = ""
        """The sentence with which the server refused this run for good; empty while it does not."""

    def open(self) -> None:
        """Begin to deliver and to poll."""
        self._tasks = [
            asyncio.create_task(self._deliver()),
            asyncio.create_task(self._poll()),
            asyncio.create_task(self._beat()),
        ]

    def tell(self, kind: str, body: dict[str, Any], attempt: int) -> None:
        """Queue one report."""
        if len(self._waiting) >= REPORTS_WAITING_MAX:
            self._make_room()
        self._waiting.append({"id": uuid.uuid4().hex, **self._identity, "attempt": attempt, "kind": kind, "body": body})
        self._drained.clear()
        self._wake.set()

    async def close(self, drain_seconds: float) -> None:
        """Give what is queued a last chance, then end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), drain_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def silence_seconds(self) -> float:
        """Since the server last answered anything."""
        return time.monotonic() - self.answered_at

    def _make_room(self) -> None:
        victim = next((report for report in self._waiting if report["kind"] == "heartbeat"), self._waiting[0])
        self._waiting.remove(victim)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if not self._waiting:
                self.tell("heartbeat", {}, self._attempt)

    _attempt = 0

    def at_attempt(self, attempt: int) -> None:
        """Heartbeats speak of this attempt from now on."""
        self._attempt = attempt

    async def _deliver(self) -> None:
        pause = RETRY_SECONDS_MIN
        while True:
            if not self._waiting:
                self._drained.set()
                self._wake.clear()
                await self._wake.wait()
            report = self._waiting[0]
            try:
                status, answer = await in_daemon_thread(
                    self._request, "POST", "/control/v1/reports", report, REQUEST_SECONDS_MAX
                )
            except (OSError, http.client.HTTPException, ValueError) as error:
                log.debug("the server did not answer: %s", error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, RETRY_SECONDS_MAX)
                continue
            pause = RETRY_SECONDS_MIN
            self._answered(report, status, answer)

    def _answered(self, report: dict[str, Any], status: int, answer: dict[str, Any]) -> None:
        self.answered_at = time.monotonic()
        if self._waiting and self._waiting[0] is report:
            self._waiting.popleft()
        if status in (401, 403, 409):
            self.refusal = str(answer.get("detail", f"The server answered {status}."))
        elif status >= 400:
            log.warning("the server refused a report (%s): %s", status, answer.get("detail", status))

    async def _poll(self) -> None:
        after = 0
        while True:
            query = urllib.parse.urlencode({"run": self._identity["run"], "after": after, "wait_seconds": POLL_SECONDS})
            try:
                status, answer = await in_daemon_thread(
                    self._request, "GET", f"/control/v1/orders?{query}", None, POLL_SECONDS + 5
                )
            except (OSError, http.client.HTTPException, ValueError) as error:
                log.debug("no orders: %s", error)
                await asyncio.sleep(RETRY_SECONDS_MAX * random.uniform(0.2, 0.6))
                continue
            if status != 200:
                await asyncio.sleep(RETRY_SECONDS_MAX)
                continue
            self.answered_at = time.monotonic()
            for row in answer.get("orders", []):
                after = max(after, int(row["id"]))
                self._on_order(
                    Order(
                        id=int(row["id"]),
                        run=row["run"],
                        attempt=int(row["attempt"]),
                        action=row["action"],
                        exclude=tuple(row.get("exclude", ())),
                        reason=row.get("reason", ""),
                        incident=str(row.get("incident") or ""),
                    )
                )

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_seconds: float
    ) -> tuple[int, dict[str, Any]]:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=timeout_seconds)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request(method, self._url.path + path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return response.status, json.loads(text) if text else {}
