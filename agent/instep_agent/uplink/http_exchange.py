"""Requests and answers of HTTP/1.1 over one kept-alive socket, as little as the agent needs of it.

The standard library's client reads an answer's head with the parser for mail: that was half of what a frame cost.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

HEAD_BYTES_MAX = 65_536
_RECEIVE_BYTES = 1 << 15
"""More than almost every answer, and less than what the C library asks the kernel for each time."""
_STATUS = re.compile("[1-5][0-9]{2}(?![^ ])")
_WITHOUT_BODY = (204, 304)


class NotHttp(ConnectionError):
    """What came is no answer of HTTP."""


class HttpSocket:
    """Connects at the first request. One thread exchanges; `close` it."""

    def __init__(self, host: str, port: int, timeout_seconds: float, context: ssl.SSLContext | None = None) -> None:
        """With a `context` it speaks TLS. The time limit is that of connecting, and of each wait for bytes."""
        self._address = (host, port)
        self._timeout_seconds = timeout_seconds
        self._context = context
        self._rest = b""
        bracketed = f"[{host}]" if ":" in host else host
        self._host = bracketed if port == (443 if context else 80) else f"{bracketed}:{port}"
        self.sock: socket.socket | None = None

    def exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, answer_bytes_max: int
    ) -> tuple[int, bytes]:
        """Give status and body of the answer, of which no more is read than `answer_bytes_max`.

        Raise `OSError` when the connection does not hold; `NotHttp` is one.
        """
        sock = self.sock = self.sock or self._connect()
        size = {} if body is None else {"Content-Length": str(len(body))}
        fields = {"Host": self._host, "Accept-Encoding": "identity", **size, **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        sock.sendall("\r\n".join(lines).encode("ascii") + (body or b""))
        status, answered = self._head(sock)
        while status // 100 == 1:
            status, answered = self._head(sock)
        data = b"" if status in _WITHOUT_BODY else self._body(sock, answered, answer_bytes_max)
        if answered.get("connection", "").lower() == "close" or self._rest:
            self.close()
        return status, data

    def close(self) -> None:
        """Close; the next request connects again."""
        sock, self.sock, self._rest = self.sock, None, b""
        if sock is not None:
            sock.close()

    def _connect(self) -> socket.socket:
        host, port = self._address
        asked = host.encode() if host.isascii() else host  # text would load the codec for other alphabets, 0.2 MiB
        sock = socket.create_connection((asked, port), self._timeout_seconds)  # type: ignore[arg-type]
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._context.wrap_socket(sock, server_hostname=host) if self._context else sock
        except BaseException:  # also an interrupt; it goes on to whoever called
            sock.close()
            raise

    def _head(self, sock: socket.socket) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._rest:
            if len(self._rest) > HEAD_BYTES_MAX:
                raise NotHttp("the head of its answer does not end")
            self._receive(sock)
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not _STATUS.match(rest):
            raise NotHttp("it does not speak HTTP")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if version == "HTTP/1.0":
            fields.setdefault("connection", "close")
        return int(rest[:3]), fields

    def _body(self, sock: socket.socket, fields: Mapping[str, str], bytes_max: int) -> bytes:
        if "chunked" in fields.get("transfer-encoding", "").lower():
            return self._chunks(sock, bytes_max)
        length = fields.get("content-length")
        if length is None:
            return self._until_closed(sock, bytes_max)
        if not (length.isdecimal() and length.isascii()):
            raise NotHttp("the length of its answer is no number")
        wanted = int(length)
        data = self._take(sock, min(wanted, bytes_max))
        if wanted > bytes_max:  # the rest of it is not worth reading
            self.close()
        return data

    def _chunks(self, sock: socket.socket, bytes_max: int) -> bytes:
        found = b""
        while True:
            size = self._line(sock).split(b";")[0].strip()
            try:
                wanted = int(size, 16)
            except ValueError as error:
                raise NotHttp("the size of a chunk is no number") from error
            if wanted < 0 or len(found) + wanted > bytes_max:
                self.close()
                return found
            if wanted == 0:
                while self._line(sock):  # what may stand behind the last chunk
                    pass
                return found
            found += self._take(sock, wanted)
            self._line(sock)

    def _line(self, sock: socket.socket) -> bytes:
        while b"\r\n" not in self._rest:
            if len(self._rest) > HEAD_BYTES_MAX:
                raise NotHttp("a line of its answer does not end")
            self._receive(sock)
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _until_closed(self, sock: socket.socket, bytes_max: int) -> bytes:
        while len(self._rest) < bytes_max and (received := sock.recv(_RECEIVE_BYTES)):
            self._rest += received
        data = self._rest[:bytes_max]
        self.close()
        return data

    def _take(self, sock: socket.socket, wanted: int) -> bytes:
        while len(self._rest) < wanted:
            self._receive(sock)
        data, self._rest = self._rest[:wanted], self._rest[wanted:]
        return data

    def _receive(self, sock: socket.socket) -> None:
        received = sock.recv(_RECEIVE_BYTES)
        if not received:
            raise ConnectionResetError("it closed the connection before its answer was there")
        self._rest += received
