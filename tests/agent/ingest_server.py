"""A small real HTTP server that speaks the ingest protocol, for the uplink to meet."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
from instep_agent.wire import Dictionary, Frame

DEADLINE_SECONDS = 15.0


class IngestServer:
    """Keeps acknowledged frames and dictionaries; `answers` are statuses to give before behaving."""

    def __init__(self, port=0, *, token="secret", tls=None):
        self.token = token
        self.frames, self.dictionaries, self.answers, self.requests = [], {}, [], []
        self._changed = threading.Condition()
        self._connections = []
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        if tls is not None:  # the handshake is the handler's: one that fails must not end the server
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
            self._http.handle_error = lambda *_: None  # a client that does not trust it hangs up
        self.port = self._http.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self):
        """End as a killed server does: connections that were kept open are gone too."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        with self._changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def wait_for(self, condition):
        """Wait until `condition(self)` holds; fail after the deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while not condition(self):
                assert self._changed.wait(max(0.0, deadline - time.monotonic())), "the server never saw it"

    def answer(self, path, token, body):
        """Give status and JSON for one request."""
        with self._changed:
            self.requests.append(path)
            try:
                return self._answer(path, token, body)
            finally:
                self._changed.notify_all()

    def _answer(self, path, token, body):
        if token != f"Bearer {self.token}":
            return 401, {"detail": "The token is not known."}
        if self.answers:
            return self.answers.pop(0), {"detail": "As told."}
        if path == "/ingest/v1/dictionary":
            dictionary = msgspec.msgpack.decode(body, type=Dictionary)
            self.dictionaries[dictionary.hash] = dictionary
            return 204, None
        frame = msgspec.msgpack.decode(body, type=Frame)
        if frame.dictionary_hash and frame.dictionary_hash not in self.dictionaries:
            return 409, {"detail": "The dictionary is not known."}
        self.frames.append(frame)
        return 200, {"acknowledged": frame.sequence}

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                with server._changed:
                    server._connections.append(self.connection)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = server.answer(self.path, self.headers["Authorization"], body)
                data = b"" if answer is None else msgspec.json.encode(answer)
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler
