"""A small real HTTP server that gives orders to agents by long poll and takes their answers."""

import contextlib
import socket
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import msgspec
from instep_agent.wire import NodeDump, NodeOrder, NodeOrders

DEADLINE_SECONDS = 20.0


class OrderServer:
    """Lists orders until told otherwise; `answers` are statuses to give to dumps before behaving."""

    def __init__(self, port=0):
        self.orders, self.dumps, self.polls, self.answers = [], [], [], []
        self.poll_status = 200
        self._epoch = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._connections = []
        self._is_open = True
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self):
        """End as a killed server does."""
        with self._changed:
            self._is_open = False
            self._hang_up()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def replace(self, id):
        """Be at once another server at the same place: with a new store, and one order in it."""
        with self._changed:
            self._epoch = uuid.uuid4().hex
            self.orders[:] = [NodeOrder(id=id, run="run", attempt=0, action="dump")]
            self._hang_up()

    def _hang_up(self):
        self._changed.notify_all()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def order(self, id, run="run", attempt=0, action="dump"):
        with self._changed:
            self.orders.append(NodeOrder(id=id, run=run, attempt=attempt, action=action))
            self._changed.notify_all()

    def wait_for(self, condition):
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while not condition(self):
                assert self._changed.wait(max(0.0, deadline - time.monotonic())), "the server never saw it"

    def _poll(self, query):
        after = int(query["after"][0]) if query.get("epoch") == [self._epoch] else 0
        deadline = time.monotonic() + float(query["wait_seconds"][0])
        with self._changed:
            self.polls.append((query["node"][0], after))
            self._changed.notify_all()
            while self._is_open and self.poll_status == 200 and time.monotonic() < deadline:
                if found := [order for order in self.orders if order.id > after]:
                    return 200, NodeOrders(orders=tuple(found), epoch=self._epoch)
                self._changed.wait(deadline - time.monotonic())
            return self.poll_status, NodeOrders(orders=(), epoch=self._epoch) if self.poll_status == 200 else {
                "detail": "As told."
            }

    def _take(self, body):
        with self._changed:
            dump = msgspec.json.decode(body, type=NodeDump)
            status = self.answers.pop(0) if self.answers else 200
            if status == 200:
                self.dumps.append(dump)
            self._changed.notify_all()
            return status, {"acknowledged": dump.order} if status == 200 else {"detail": "As told."}

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                with server._changed:
                    server._connections.append(self.connection)
                    if not server._is_open:  # came while it was being killed
                        server._hang_up()

            def do_GET(self):
                parts = urlsplit(self.path)
                assert parts.path == "/control/v1/node-orders"
                self._answer(*server._poll(parse_qs(parts.query)))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert (self.path, self.headers["Content-Type"]) == ("/control/v1/node-dumps", "application/json")
                self._answer(*server._take(body))

            def _answer(self, status, said):
                data = msgspec.json.encode(said)
                with contextlib.suppress(OSError):  # whoever asked may be gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler
