"""Faults on order: the next requests of a kind fail, are late, or lose their connection."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from tests.cluster.api_server.access import Call
from tests.cluster.api_server.errors import ApiError, conflict

REASONS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout", 403: "Forbidden"}


@dataclass
class Fault:
    """What befalls the next `count` requests that match. An empty verb or resource matches every one."""

    verb: str = ""
    resource: str = ""
    subresource: str | None = None
    code: int | None = None
    closes: bool = False
    """The connection is closed instead of an answer."""
    is_after: bool = False
    """The request takes effect before its answer is lost: the caller cannot know."""
    latency_seconds: float = 0.0
    retry_after_seconds: int | None = None
    count: int = 1
    hits: int = 0

    def matches(self, call: Call) -> bool:
        """Whether it is this request's turn."""
        return (
            self.hits < self.count
            and self.verb in ("", call.verb)
            and self.resource in ("", call.resource)
            and self.subresource in (None, call.subresource)
        )

    def error(self, call: Call) -> ApiError | None:
        """The answer, if one is ordered."""
        if self.code is None:
            return None
        if self.code == 409:
            return conflict(call.resource, call.name, group=call.group)
        details = {} if self.retry_after_seconds is None else {"retryAfterSeconds": self.retry_after_seconds}
        return ApiError(self.code, REASONS.get(self.code, "Unknown"), "injected by the test", details=details)


class Faults:
    """The faults that are in force."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: list[Fault] = []

    def order(self, fault: Fault) -> Fault:
        """From now on; its `hits` count."""
        with self._lock:
            self._ordered.append(fault)
        return fault

    def next(self, call: Call) -> Fault | None:
        """The fault of this request, which is used up by it."""
        with self._lock:
            for fault in self._ordered:
                if fault.matches(call):
                    fault.hits += 1
                    return fault
            return None

    def clear(self) -> None:
        """Everything works again."""
        with self._lock:
            self._ordered.clear()
