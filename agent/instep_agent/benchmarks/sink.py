"""A server that takes frames as the real one does and remembers when each event came; it runs in the benchmark."""

from __future__ import annotations

import contextlib
import math
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from instep_agent.benchmarks.receiver import Stored
from instep_agent.wire import Dictionary, Event, Frame

_frames = msgspec.msgpack.Decoder(Frame)
_dictionaries = msgspec.msgpack.Decoder(Dictionary)


class Sink:
    """Acknowledges frames; `events` are those that came, with the moment on the monotonic clock."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.events: list[tuple[int, Event]] = []
        self.token = "bench"
        self.frames_total = 0
        self.bytes_total = 0
        self.series_total = 0
        self.values_counts: list[int] = []
        """Of each frame with values, how many of them are readings."""
        self._known: set[str] = set()
        self._stored: list[Stored] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> None:
        """Begin to take frames."""
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()

    def stored(self) -> list[Stored]:
        """Give every event that came, each as often as it did."""
        with self.changed:
            return list(self._stored)

    def wait_for_event(self, text: str, timeout_seconds: float, *, kind: str = "") -> int | None:
        """Give when the first event with this text came, in nanoseconds; None when none did within the time."""
        until_seconds = time.monotonic() + timeout_seconds
        with self.changed:
            while True:
                for at_ns, event in self.events:
                    if text in event.text and kind in ("", event.kind):
                        return at_ns
                left_seconds = until_seconds - time.monotonic()
                if left_seconds <= 0 or not self.changed.wait(left_seconds):
                    return None

    def take(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Give status and body of the answer."""
        now_ns = time.monotonic_ns()
        if path.endswith("/dictionary"):
            dictionary = _dictionaries.decode(body)
            self._known.add(dictionary.hash)
            self.series_total = len(dictionary.series)
            return 204, b""
        frame = _frames.decode(body)
        if frame.dictionary_hash and frame.dictionary_hash not in self._known:
            return 409, b"{}"
        with self.changed:
            self.frames_total += 1
            self.bytes_total += len(body)
            if frame.values:
                values = struct.unpack(f"<{len(frame.values) // 8}d", frame.values)
                self.values_counts.append(sum(not math.isnan(value) for value in values))
            self.events += [(now_ns, event) for event in frame.events]
            for one in frame.events:
                times = one.realtime_ns / 1e9, time.time()
                self._stored.append(Stored(one.id, one.kind, one.text, one.fields, frame.node, *times))
            self.changed.notify_all()
        return 200, b'{"acknowledged":%d}' % frame.sequence


def _handler(sink: Sink) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers POST; a request for orders waits as the real server lets it."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            """Take a frame or a dictionary."""
            status, body = sink.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(status, body)

        def do_GET(self) -> None:
            """Answer a request for orders: there are none."""
            time.sleep(20.0)
            with contextlib.suppress(ConnectionError):  # the agent has ended meanwhile
                self._answer(200, msgspec.json.encode({"orders": []}))

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler
