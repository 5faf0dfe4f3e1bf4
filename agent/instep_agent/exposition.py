"""The agent's /metrics: its last readings for Prometheus, with labels bounded by what the node holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from instep_agent.errors import ConfigurationInvalid

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT_SECONDS = 5.0


class Exposition:
    """An HTTP server with one page; `close` it."""

    def __init__(self, address: str, page: Callable[[], bytes]) -> None:
        """Listen on `HOST:PORT` and show what `page` gives; raise ConfigurationInvalid when that cannot be."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigurationInvalid(f"The address {address!r} is not HOST:PORT.")
        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), _handler(page))
        except (OSError, OverflowError) as error:
            raise ConfigurationInvalid(
                f"Cannot listen on {address} ({getattr(error, 'strerror', error)}): choose another "
                "--listen address, or stop what uses it."
            ) from error
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, name="metrics", kwargs={"poll_interval": 0.5}, daemon=True
        ).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _handler(page: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET /metrics."""

        timeout = REQUEST_TIMEOUT_SECONDS

        def do_GET(self) -> None:
            """Send the page, or 404."""
            is_metrics = self.path.split("?")[0] == "/metrics"
            body = page() if is_metrics else b"The agent has one page: /metrics.\n"
            self.send_response(200 if is_metrics else 404)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A scrape is not worth a line."""

    return Handler
