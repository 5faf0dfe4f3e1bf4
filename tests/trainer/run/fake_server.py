"""A server that speaks docs/designs/001 to supervisors and does as the test says."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.trainer.run.supervisors import EVENT_SECONDS_MAX

TOKEN = "the-token-of-this-test"


class FakeServer:
    """Takes reports, hands out orders by long poll. Everything it holds is guarded by one condition."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.reports: list[dict[str, Any]] = []
        self.orders: list[dict[str, Any]] = []
        self.answers: list[tuple[int, dict[str, Any]]] = []
        """Answers for the next reports, instead of taking them."""
        self.refusal: tuple[int, str] | None = None
        """Answer to every request."""
        self.polls = 0
        self.is_open = True
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def options(self) -> tuple[str, ...]:
        return ("--server", f"http://127.0.0.1:{self._http.server_address[1]}")

    def order(self, id_: int, *, attempt: int, action: str = "restart", run: str = "run-1", times: int = 1) -> None:
        row = {"id": id_, "run": run, "attempt": attempt, "action": action, "exclude": [], "reason": "as ordered",
               "incident": "i-1", "deadline_seconds": 30.0}  # fmt: skip
        with self.changed:
            self.orders += [row] * times
            self.changed.notify_all()

    def told(self, kind: str, **body: Any) -> list[dict[str, Any]]:
        """Reports of a kind so far, whose bodies hold these values."""
        with self.changed:
            return [
                report for report in self.reports if report["kind"] == kind and body.items() <= report["body"].items()
            ]

    def hears(self, kind: str, *, times: int = 1, **body: Any) -> list[dict[str, Any]]:
        """Wait until so many reports of a kind have come, and return them."""
        with self.changed:
            heard = self.changed.wait_for(lambda: len(self.told(kind, **body)) >= times, EVENT_SECONDS_MAX)
        kinds = [(report["kind"], report["attempt"], report["body"]) for report in self.reports]
        assert heard, f"no {kind} {body} ({times} times) in {kinds}"
        return self.told(kind, **body)

    def close(self) -> None:
        with self.changed:
            self.is_open = False
            self.changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def take(self, report: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.changed:
            if self.answers:
                self.changed.notify_all()
                return self.answers.pop(0)
            if all(known["id"] != report["id"] for known in self.reports):
                self.reports.append(report)
                if report["kind"] == "order_acknowledged":
                    self._acknowledged(report["body"]["order"])
            self.changed.notify_all()
        return 200, {"acknowledged": report["id"]}

    def wait(self, run: str, after: int, wait_seconds: float) -> list[dict[str, Any]]:
        def listed() -> list[dict[str, Any]]:
            return [order for order in self.orders if order["id"] > after]

        with self.changed:
            self.polls += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: listed() or not self.is_open, wait_seconds)
            return listed()

    def _acknowledged(self, id_: int) -> None:
        """Stays listed until acknowledged; of a duplicated order each acknowledgement takes one away."""
        for order in self.orders:
            if order["id"] == id_:
                self.orders.remove(order)
                return

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*(self._refused() or server.take(body)))

            def do_GET(self) -> None:
                query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
                refused = self._refused()
                if refused is None:
                    wait = float(query["wait_seconds"])
                    refused = (200, {"orders": server.wait(query["run"], int(query["after"]), wait)})
                self._answer(*refused)

            def _refused(self) -> tuple[int, dict[str, Any]] | None:
                if server.refusal is not None:
                    return server.refusal[0], {"detail": server.refusal[1]}
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    return 401, {"detail": "The token is not known here: give the one that the server wrote."}
                return None

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                raw = json.dumps(body).encode()
                with contextlib.suppress(OSError):  # the supervisor has gone meanwhile
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextlib.contextmanager
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    try:
        yield server
    finally:
        server.close()
