"""The server's API, as the demo and the benchmarks need it."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any

ANSWER_SECONDS_MAX = 10.0


class Client:
    """Asks one server."""

    def __init__(self, url: str, token: str) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._token = token

    def get(self, path: str) -> Any:
        """Return the JSON at a path. Raise OSError when the server does not answer, ValueError when it refuses."""
        connection = http.client.HTTPConnection(self._url.hostname or "", self._url.port, timeout=ANSWER_SECONDS_MAX)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"GET {path} answered {response.status}: {text[:200].decode(errors='replace')}")
        return json.loads(text)

    def incidents(self, run: str) -> list[dict[str, Any]]:
        """Return the run's incidents with all their details, oldest first; incidents of nodes belong to every run."""
        rows = self.get("/api/v1/incidents")["incidents"]
        mine = [row for row in rows if row["run"] in (run, "", None) and row["merged_into"] is None]
        return sorted(
            (plain(self.get(f"/api/v1/incidents/{row['id']}")) for row in mine), key=lambda row: row["alarm_at"] or 0
        )


def plain(incident: dict[str, Any]) -> dict[str, Any]:
    """Return the incident with the moments (seconds since 1970) and the verdict's fields beside the others."""
    verdict = incident.get("verdict") or {}
    moments = {
        name: incident["timeline"].get(f"{name}_realtime") for name in ("onset", "alarm", "verdict", "step_kept")
    }
    return {
        **incident,
        **{f"{name}_at": at for name, at in moments.items()},
        "evidence": verdict.get("evidence", []),
        "cost_gpu_seconds": verdict.get("cost_gpu_seconds", 0.0),
    }
