"""Questions to the evidence server that a rank under `instep run` has beside its record, over its Unix socket.

Imported when an order comes: the standard library's HTTP client takes 1.8 MiB, and an agent without orders none of it.
"""

from __future__ import annotations

import http.client
import socket
import struct
import time


class _Server(http.client.HTTPConnection):
    """An evidence server on a Unix socket, which must be of that user's process."""

    def __init__(self, path: str, owner: int, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path, self._owner = path, owner

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
        _, uid, _ = struct.unpack("3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != self._owner:
            raise ConnectionRefusedError(f"it is a process of user {uid}")


def ask(path: str, owner: int, handler: str, *, timeout_seconds: float, bytes_max: int) -> str:
    """Give the answer of a handler, whole within the time, however slowly its bytes come; raise `OSError` if none."""
    try:
        return _ask(_Server(path, owner, timeout_seconds), handler, time.monotonic() + timeout_seconds, bytes_max)
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error


def _ask(server: _Server, handler: str, until_seconds: float, bytes_max: int) -> str:
    try:
        server.request("POST", f"/handler/{handler}")
        response = server.getresponse()
        body = bytearray()
        while len(body) <= bytes_max and (data := response.read1(1 << 16)):
            body += data
            if time.monotonic() > until_seconds:
                raise TimeoutError("timed out")
    finally:
        server.close()
    if response.status != 200:
        raise http.client.HTTPException(f"handler {handler} answered {response.status}")
    return bytes(body[:bytes_max]).decode("utf-8", "replace")
