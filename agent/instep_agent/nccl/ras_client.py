"""Asks one NCCL RAS service for its status: the line protocol over TCP, with a bound on time and on bytes.

The service is a thread in every NCCL process (NCCL 2.24 and later, `NCCL_RAS_ADDR`, usually localhost:28028). It
answers `SET FORMAT json` from 2.28.7 on; an older one refuses that line, and its text is taken instead.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from instep_agent.errors import SourceFailed

PORT = 28028
PROTOCOL = 2
LEG_SECONDS = 3
"""How long the service itself waits for other processes; it then answers with what it has."""
CONNECT_SECONDS_MAX = 1.0
LINE_BYTES_MAX = 1024
ANSWER_BYTES_MAX = 16 << 20
"""About 500 bytes a rank and communicator: some 30,000 of them."""
_RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RasAddress:
    """Where a service listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_address(text: str) -> RasAddress:
    """Give the address in `HOST:PORT`; raise ValueError with one sentence.

    >>> parse_address("localhost:28028")
    RasAddress(host='localhost', port=28028)
    >>> parse_address("[::1]:28028").host
    '::1'
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address of NCCL RAS: write HOST:PORT, such as localhost:{PORT}.")
    return RasAddress(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class RasReply:
    """What a service answered, as it came."""

    body: bytes
    is_json: bool


def ask(address: RasAddress, *, until_seconds: float, bytes_max: int = ANSWER_BYTES_MAX) -> RasReply | None:
    """Give the status, or None when nothing listens there; `until_seconds` is a moment of `time.monotonic`.

    Raise SourceFailed when something listens and does not give a whole answer in time and size.
    """
    try:
        left_seconds = max(0.05, min(CONNECT_SECONDS_MAX, until_seconds - time.monotonic()))
        connection = socket.create_connection((address.host, address.port), left_seconds)
    except ConnectionRefusedError:
        return None
    except OSError as error:
        raise SourceFailed(f"Cannot connect to NCCL RAS at {address} ({error}).") from error
    with connection:
        return _Conversation(connection, address, until_seconds, bytes_max).status()


class _Conversation:
    """One connection: lines out, lines back, and at last everything up to the end."""

    def __init__(self, connection: socket.socket, address: RasAddress, until_seconds: float, bytes_max: int) -> None:
        self._connection = connection
        self._address = address
        self._until_seconds = until_seconds
        self._bytes_max = bytes_max
        self._rest = bytearray()

    def status(self) -> RasReply:
        greeting = self._say(f"CLIENT PROTOCOL {PROTOCOL}")
        if not greeting.upper().startswith(b"SERVER PROTOCOL"):
            raise SourceFailed(
                f"What listens at {self._address} is not NCCL RAS (it answers {greeting[:40]!r}): set "
                "nccl_ras_addresses to where NCCL_RAS_ADDR of the job points."
            )
        self._say(f"TIMEOUT {LEG_SECONDS}")
        is_json = self._say("SET FORMAT json").strip().upper() == b"OK"
        self._send("VERBOSE STATUS")
        while self._receive():
            pass
        if not self._rest.strip():
            raise SourceFailed(f"NCCL RAS at {self._address} closed the connection before it gave its status.")
        return RasReply(bytes(self._rest), is_json)

    def _say(self, line: str) -> bytes:
        """Send a line and give the one that comes back."""
        self._send(line)
        while b"\n" not in self._rest:
            if len(self._rest) > LINE_BYTES_MAX:
                raise SourceFailed(f"What listens at {self._address} is not NCCL RAS (it answers without lines).")
            if not self._receive():
                raise SourceFailed(f"NCCL RAS at {self._address} closed the connection before it answered {line!r}.")
        answer, _, rest = bytes(self._rest).partition(b"\n")
        self._rest = bytearray(rest)
        return answer

    def _send(self, line: str) -> None:
        self._limit()
        try:
            self._connection.sendall(line.encode() + b"\n")
        except OSError as error:
            raise self._failure(error) from error

    def _receive(self) -> bool:
        """Take what comes; give whether there may be more."""
        self._limit()
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise self._failure(error) from error
        self._rest += data
        if len(self._rest) > self._bytes_max:
            raise SourceFailed(
                f"NCCL RAS at {self._address} said more than {self._bytes_max} bytes: nothing of it counts."
            )
        return bool(data)

    def _limit(self) -> None:
        left_seconds = self._until_seconds - time.monotonic()
        if left_seconds <= 0:
            raise self._failure(TimeoutError())
        self._connection.settimeout(left_seconds)

    def _failure(self, error: OSError) -> SourceFailed:
        if isinstance(error, TimeoutError):
            return SourceFailed(
                f"NCCL RAS at {self._address} took the connection and did not finish its answer in time: the "
                "process that answers is stopped, or its RAS thread is stuck."
            )
        return SourceFailed(f"NCCL RAS at {self._address} closed the connection before its answer was whole ({error}).")
