"""torch's own evidence server in a rank, and asking it: it answers from C++, so a held GIL does not silence it."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path

SOCKET_PATH_BYTES_MAX = 107
"""The kernel's limit for a Unix socket's path."""
ANSWER_BYTES_MAX = 8 << 20


def worker_socket(attempt_folder: Path, rank: int) -> Path:
    """Return where rank's socket is; it lies beside its record."""
    return attempt_folder / f"{rank}.sock"


def open_worker_server(attempt_folder: Path, rank: int) -> object | None:
    """Start the server; None where torch has none or the path is too long for a socket."""
    from instep_trainer.observe.torch_adapter import start_worker_server

    path = worker_socket(attempt_folder, rank)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        return None
    return start_worker_server(str(path))  # type: ignore[no-any-return]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_worker(path: Path, handler: str, timeout_seconds: float) -> str:
    """Return a handler's answer. Raise OSError (also on a timeout) or HTTPException when there is none."""
    connection = _UnixConnection(path, timeout_seconds)
    try:
        connection.request("POST", f"/handler/{handler}")
        response = connection.getresponse()
        text = response.read(ANSWER_BYTES_MAX).decode(errors="replace")
    finally:
        connection.close()
    if response.status != 200:
        raise http.client.HTTPException(f"handler {handler} answered {response.status}")
    return text
