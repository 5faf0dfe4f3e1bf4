"""Stands between the agent and the real server, passes everything on, and remembers what the server acknowledged."""

from __future__ import annotations

import http.client
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from instep_agent.benchmarks.real_server import RealServer
from instep_agent.benchmarks.receiver import Stored
from instep_agent.wire import Frame

ANSWER_SECONDS_MAX = 60.0
_HEADERS = ("Authorization", "Content-Type")
_frames = msgspec.msgpack.Decoder(Frame)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A frame that the server has acknowledged; `number` counts the starts of the agent from 0."""

    number: int
    sequence: int
    has_samples: bool
    size_bytes: int

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands among all frames that the agent made."""
        return self.number, self.sequence


class Relay:
    """A receiver for the agent; `server` may be killed and started meanwhile, which shows as no answer."""

    def __init__(self, server: RealServer) -> None:
        self.server = server
        self.acknowledged: list[Acknowledged] = []
        self._epochs: dict[str, int] = {}
        self._listens = False
        self._http = _Listener(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def token(self) -> str:
        """The server's."""
        return self.server.token

    def start(self) -> None:
        """Start the server, and pass on."""
        self.server.start()
        self._listens = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End both."""
        if self._listens:  # it would wait for ever for the end of a loop that was never begun
            self._http.shutdown()
        self._http.server_close()
        self.server.close()

    def wait_for_event(self, text: str, timeout_seconds: float, *, kind: str = "") -> int | None:
        """As the server's."""
        return self.server.wait_for_event(text, timeout_seconds, kind=kind)

    def stored(self) -> list[Stored]:
        """As the server's."""
        return self.server.stored()

    def note(self, path: str, body: bytes) -> None:
        """Remember a request that the server answered with 200."""
        if path.endswith("/frames"):
            frame = _frames.decode(body)
            number = self._epochs.setdefault(frame.agent_epoch, len(self._epochs))
            has_samples = bool(frame.values or frame.ranks or frame.gpus or not frame.events)
            self.acknowledged.append(Acknowledged(number, frame.sequence, has_samples, len(body)))


class _Listener(ThreadingHTTPServer):
    """Listens; that an agent is killed amid a request is what the benchmark does, and no news."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell any other error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler(relay: Relay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Passes a request on; where the server is away, the connection ends without an answer."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            """Prepare this connection's own line to the server."""
            super().setup()
            address = relay.server.url.removeprefix("http://")
            self._line = http.client.HTTPConnection(address, timeout=ANSWER_SECONDS_MAX)

        def finish(self) -> None:
            """Let go of it."""
            self._line.close()
            super().finish()

        def do_POST(self) -> None:
            """Pass a frame, a dictionary or evidence on."""
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def do_GET(self) -> None:
            """Pass a request for orders on."""
            self._pass_on(b"")

        def _pass_on(self, body: bytes) -> None:
            headers = {name: self.headers[name] for name in _HEADERS if name in self.headers}
            try:
                self._line.request(self.command, self.path, body or None, headers)
                answer = self._line.getresponse()
                data = answer.read()
                if answer.status == 200 and self.command == "POST":
                    relay.note(self.path, body)
                self._answer(answer.status, data)
            except (OSError, http.client.HTTPException):  # the server, or the agent, has gone meanwhile
                self._line.close()
                self.close_connection = True

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler
