"""A server that speaks the part of Grafana's HTTP API that publishing needs, as its documentation states it.

It refuses what Grafana refuses (no token, an unknown folder, an older version) and what no client of ours should send
(an unknown field, a wrong type); it keeps the requests for the test to look at.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "glsa_0123456789"
SAVE_FIELDS = {"dashboard": dict, "folderUid": str, "message": str, "overwrite": bool}
FOLDER_FIELDS = {"title": str, "uid": str}


@dataclass
class StandIn:
    """One Grafana: what it holds and what it was asked."""

    url: str = ""
    prefix: str = ""
    folders: list[dict[str, Any]] = field(default_factory=list)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """uid → {"dashboard", "folderUid", "messages"}"""
    requests: list[tuple[str, str]] = field(default_factory=list)
    fail_with: tuple[int, dict[str, Any] | str] | None = None
    """Answer everything so."""
    change_before_save: bool = False
    """Somebody saves the dashboard between our reading and our writing."""

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [request for request in self.requests if request[0] != "GET"]

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, path))
        if self.fail_with is not None:
            return self.fail_with
        if not path.startswith(f"{self.prefix}/api/"):
            return 404, "<html>not here</html>"
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        path = path.removeprefix(f"{self.prefix}/api")
        if (method, path) == ("GET", "/folders"):
            return 200, self.folders
        if (method, path) == ("POST", "/folders"):
            return self._make_folder(body)
        if method == "GET" and path.startswith("/dashboards/uid/"):
            return self._read(path.rpartition("/")[2])
        if (method, path) == ("POST", "/dashboards/db"):
            return self._save(body)
        return 404, {"message": "Not found"}

    def _make_folder(self, body: Any) -> tuple[int, Any]:
        if wrong := wrong_fields(body, FOLDER_FIELDS):
            return 400, {"message": wrong}
        if any(folder["uid"] == body["uid"] for folder in self.folders):
            return 409, {"message": "a folder with the same uid already exists"}
        self.folders.append({"id": len(self.folders) + 1, **body})
        return 200, self.folders[-1]

    def _read(self, uid: str) -> tuple[int, Any]:
        kept = self.dashboards.get(uid)
        if kept is None:
            return 404, {"message": "Dashboard not found"}
        meta = {"folderUid": kept["folderUid"], "version": kept["dashboard"]["version"], "slug": uid}
        return 200, {"dashboard": kept["dashboard"], "meta": meta}

    def _save(self, body: Any) -> tuple[int, Any]:
        if wrong := wrong_fields(body, SAVE_FIELDS):
            return 400, {"message": wrong}
        if all(folder["uid"] != body["folderUid"] for folder in self.folders):
            return 400, {"message": "folder not found", "status": "not-found"}
        ours, uid = body["dashboard"], body["dashboard"].get("uid")
        if not ours.get("title") or not uid or len(uid) > 40:
            return 400, {"message": "Dashboard title and uid are needed"}
        if self.change_before_save and uid in self.dashboards:
            self.dashboards[uid]["dashboard"]["version"] += 1
        kept = self.dashboards.get(uid)
        if kept is None:
            if ours.get("id") is not None:
                return 404, {"message": "Dashboard not found", "status": "not-found"}
            if self._has_name(ours["title"], body["folderUid"]) and not body["overwrite"]:
                return 412, {"message": "A dashboard with the same name already exists", "status": "name-exists"}
        elif not body["overwrite"] and ours.get("version") != kept["dashboard"]["version"]:
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        version = kept["dashboard"]["version"] + 1 if kept else 1
        number = kept["dashboard"]["id"] if kept else len(self.dashboards) + 1
        messages = [*(kept["messages"] if kept else ()), body["message"]]
        self.dashboards[uid] = {
            "dashboard": {**ours, "id": number, "version": version},
            "folderUid": body["folderUid"],
            "messages": messages,
        }
        return 200, {"id": number, "uid": uid, "url": f"/d/{uid}/x", "status": "success", "version": version}

    def _has_name(self, title: str, folder: str) -> bool:
        held = self.dashboards.values()
        return any(one["dashboard"]["title"] == title and one["folderUid"] == folder for one in held)


def wrong_fields(body: Any, fields: dict[str, type]) -> str:
    """What is wrong with a body, or nothing."""
    if not isinstance(body, dict) or set(body) != set(fields):
        return f"the fields are {sorted(body) if isinstance(body, dict) else body}, not {sorted(fields)}"
    wrong = [name for name, kind in fields.items() if not isinstance(body[name], kind)]
    return f"wrong type: {wrong}" if wrong else ""


@contextmanager
def grafana(prefix: str = "") -> Iterator[StandIn]:
    """A stand-in on a free port of the loopback interface."""
    state = StandIn(prefix=prefix)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def _answer(self, method: str) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if raw and self.headers.get("Content-Type") != "application/json":
                status, said = 415, {"message": "bad content type"}
            else:
                token = self.headers.get("Authorization", "")
                status, said = state.answer(method, self.path, token, json.loads(raw) if raw else None)
            data = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing to log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}{prefix}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
