"""Who is told of alerts, and how Alertmanager routes to them in tests."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "deploy/alertmanager/example.yml"


class People:
    """Who is told: keeps every notification, by the path it was sent to."""

    def __init__(self):
        self.told, people = [], self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                people.told.append((self.path.strip("/"), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def states_at(self, receiver):
        """The states that one receiver was told, in their order; of Instep's own webhook, each is of an incident."""
        return [body["state"] for path, body in self.told if path == receiver]

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def hear(self, receiver, status, *, incidents=1):
        """Wait for a notification; return the labels of its alerts."""
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            for path, body in self.told:
                alerts = body["alerts"] if path == receiver else []
                ids = {alert["labels"]["incident"] for alert in alerts if alert["status"] == status}
                if len(ids) >= incidents:
                    return body
            time.sleep(0.05)
        raise AssertionError(f"{receiver} heard of nothing that is {status}: {self.told}")


def routing(people: People) -> str:
    """The example that people copy, with these receivers and without its patience."""
    text = EXAMPLE.read_text().replace("127.0.0.1:9999", people.address)
    return text.replace("group_wait: 5s", "group_wait: 1s").replace("group_interval: 1m", "group_interval: 1s")
