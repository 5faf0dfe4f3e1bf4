"""The agent's /metrics: its last readings for Prometheus, with labels bounded by what the node holds.

Read and answered by hand: the standard library's server brings the parser for mail along, 2.8 MiB of the agent's
memory, and looks twice a second whether it should end.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable

from instep_agent.errors import ConfigurationInvalid

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT_SECONDS = 5.0
REQUEST_BYTES_MAX = 65_536
REQUESTS_AT_ONCE = 16
"""Who comes beyond waits until one of them has its answer."""
_OTHER_PAGE = b"The agent has one page: /metrics.\n"

log = logging.getLogger("instep.agent")


class Exposition:
    """An HTTP server with one page; `close` it."""

    def __init__(self, address: str, page: Callable[[], bytes]) -> None:
        """Listen on `HOST:PORT` and show what `page` gives; raise ConfigurationInvalid when that cannot be."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigurationInvalid(f"The address {address!r} is not HOST:PORT.")
        try:
            self._listener = _listen(host.strip("[]"), int(port))
        except (OSError, OverflowError) as error:
            raise ConfigurationInvalid(
                f"Cannot listen on {address} ({getattr(error, 'strerror', error)}): choose another "
                "--listen address, or stop what uses it."
            ) from error
        self._page = page
        self._places = threading.BoundedSemaphore(REQUESTS_AT_ONCE)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self, timeout_seconds: float = 0.5) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would leave `accept` waiting
        self._thread.join(timeout_seconds)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            self._places.acquire()
            try:
                peer, _ = self._listener.accept()
            except ConnectionAbortedError:  # it went away again while it waited
                self._places.release()
                continue
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), name="scrape", daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        try:
            with peer:
                peer.settimeout(REQUEST_TIMEOUT_SECONDS)
                self._exchange(peer)
        except OSError as error:  # it went away, or did not say what it wants in time
            log.debug("a reader of /metrics: %s", error)
        finally:
            self._places.release()

    def _exchange(self, peer: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            received = peer.recv(REQUEST_BYTES_MAX)
            head += received
            if not received or len(head) > REQUEST_BYTES_MAX:
                return
        method, _, rest = head.split(b"\n")[0].rstrip().partition(b" ")
        if method not in (b"GET", b"HEAD"):
            status, body = "405 Method Not Allowed", _OTHER_PAGE
        elif rest.split(b" ")[0].split(b"?")[0] == b"/metrics":
            status, body = "200 OK", self._page()
        else:
            status, body = "404 Not Found", _OTHER_PAGE
        allow = "Allow: GET, HEAD\r\n" if status.startswith("405") else ""
        answer = (
            f"HTTP/1.1 {status}\r\nContent-Type: {_CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n{allow}"
            "Connection: close\r\n\r\n"
        )
        peer.sendall(answer.encode() + (body if method != b"HEAD" else b""))


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(REQUESTS_AT_ONCE)
    except BaseException:  # also an interrupt; it goes on to whoever called
        listener.close()
        raise
    return listener
