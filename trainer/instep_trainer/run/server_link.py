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
from collections.abc import Callable, Coroutine
from typing import Any

from instep_trainer.run.coordination import Order
from instep_trainer.run.daemon_thread import in_daemon_thread

log = logging.getLogger("instep.run")
REPORTS_WAITING_MAX = 2_000
"""Beyond this the oldest heartbeats go first, then the oldest reports; a day of a quiet run is far below."""
REQUEST_SECONDS_MAX = 5.0
ADMISSION_SECONDS_MAX = 3.0
"""How long the start waits for the server's first answer; a server that is away refuses nobody."""
POLL_SECONDS = 20.0
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.2, 2.0
HEARTBEAT_SECONDS = 2.0
REFUSALS = frozenset({401, 403, 409})
"""Wrong token, another node's token, a job name that another run holds."""
RETRIED = REFUSALS | {408, 425, 429}
"""Statuses below 500 after which the same report may yet be taken: the token is put right, the other run ends."""


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
        self._tried = asyncio.Event()
        self._attempt = 0
        self._is_admitted = True
        self._said = ""
        self.answered_at = time.monotonic()
        """When the server last did what it was asked; one that only refuses is as good as away."""
        self.refusal = ""
        """The sentence with which the server refused this run at its start; empty when it did not. A run that has been
        under way is never ended by a refusal."""

    def open(self) -> None:
        """Begin to deliver and to poll."""
        work = (self._deliver, self._poll, self._beat)
        self._tasks = [asyncio.create_task(self._for_ever(one)) for one in work]

    async def ask_admission(self) -> str:
        """Return the sentence with which the server refuses this run, before any rank is started; empty otherwise."""
        self._is_admitted = False
        self.tell("heartbeat", {}, self._attempt)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), ADMISSION_SECONDS_MAX)
        self._is_admitted = not self.refusal
        return self.refusal

    def tell(self, kind: str, body: dict[str, Any], attempt: int) -> None:
        """Queue one report."""
        if len(self._waiting) >= REPORTS_WAITING_MAX:
            self._make_room()
        self._waiting.append({"id": uuid.uuid4().hex, **self._identity, "attempt": attempt, "kind": kind, "body": body})
        self._drained.clear()
        self._wake.set()

    async def close(self, drain_seconds: float) -> None:
        """Give what is queued a last chance, then end."""
        if not self.refusal:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), drain_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def silence_seconds(self) -> float:
        """Since the server last did what it was asked."""
        return time.monotonic() - self.answered_at

    def _make_room(self) -> None:
        victim = next((report for report in self._waiting if report["kind"] == "heartbeat"), self._waiting[0])
        self._waiting.remove(victim)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if not self._waiting:
                self.tell("heartbeat", {}, self._attempt)

    def at_attempt(self, attempt: int) -> None:
        """Heartbeats speak of this attempt from now on."""
        self._attempt = attempt

    async def _for_ever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Keep one of the link's three loops alive: without it the run would be deaf or mute and nobody would know."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("the line to the server failed; it is taken up again")
                await asyncio.sleep(RETRY_SECONDS_MAX)

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
                is_over = self._answered(report, status, answer)
            except (OSError, http.client.HTTPException) as error:
                log.debug("the server did not answer: %s", error)
                is_over = False
            self._tried.set()
            if is_over:
                pause = RETRY_SECONDS_MIN
                continue
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, RETRY_SECONDS_MAX)

    def _answered(self, report: dict[str, Any], status: int, answer: dict[str, Any]) -> bool:
        """Note the answer; return whether this report is done with."""
        if status in REFUSALS and not self._is_admitted:
            self.refusal = _sentence(status, answer)
        elif status >= 400:
            self._say_once(f"the server refused a report ({status}): {_sentence(status, answer)}")
        else:
            self.answered_at, self._said = time.monotonic(), ""
        if status in RETRIED or status >= 500:
            return False
        if self._waiting and self._waiting[0] is report:
            self._waiting.popleft()
        return True

    def _say_once(self, sentence: str) -> None:
        if sentence != self._said:
            log.warning("%s", sentence)
            self._said = sentence

    async def _poll(self) -> None:
        after = 0
        while True:
            query = urllib.parse.urlencode({"run": self._identity["run"], "after": after, "wait_seconds": POLL_SECONDS})
            try:
                status, answer = await in_daemon_thread(
                    self._request, "GET", f"/control/v1/orders?{query}", None, POLL_SECONDS + 5
                )
            except (OSError, http.client.HTTPException) as error:
                log.debug("no orders: %s", error)
                status, answer = 0, {}
            if status != 200:
                # A server that comes back may have lost its numbering; what is listed twice is carried out once.
                after = 0
                await asyncio.sleep(RETRY_SECONDS_MAX * random.uniform(0.2, 0.6))
                continue
            self.answered_at = time.monotonic()
            orders = _orders(answer)
            for order in orders:
                self._on_order(order)
            newest = max((order.id for order in orders), default=after)
            if orders and newest <= after:
                await asyncio.sleep(RETRY_SECONDS_MIN)  # the same again: never a storm of requests
            after = max(after, newest)

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
        return response.status, _object(text)


def _object(text: bytes) -> dict[str, Any]:
    """An answer's JSON object; a proxy's page in its place says nothing."""
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _sentence(status: int, answer: dict[str, Any]) -> str:
    return str(answer.get("detail") or f"The server answered {status}.")


def _orders(answer: dict[str, Any]) -> list[Order]:
    """The orders of an answer; what is none is passed over, so that it never keeps the others away."""
    orders = []
    for row in answer.get("orders", []):
        try:
            orders.append(
                Order(
                    id=int(row["id"]),
                    run=row["run"],
                    attempt=int(row["attempt"]),
                    action=row["action"],
                    exclude=tuple(row.get("exclude") or ()),
                    reason=row.get("reason") or "",
                    incident=str(row.get("incident") or ""),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            log.warning("the server sent something that is no order: %s", error)
    return orders
