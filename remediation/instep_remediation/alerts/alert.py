"""One incident as an alert of Alertmanager's API v2: labels that never change, annotations that tell what is known now.

The API is described in https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml.
"""

from __future__ import annotations

from typing import Any

from instep_collector.store.models import Incident

from instep_remediation.alerts.message import message, moment

ENDED = ("resolved", "withdrawn", "merged")
EVIDENCE_MAX = 8
"""Sentences of evidence in one alert; the incident's page has them all."""
HOLD_SECONDS = 900.0
"""A firing alert holds for this long without news: a server that starts again must not resolve what still stands."""


def alert(row: Incident, *, now: float, page_url: str, runbook_base: str) -> dict[str, Any]:
    """Return an incident as Alertmanager takes it; times in ISO 8601, UTC."""
    is_over = row.state in ENDED
    ends_at = (row.resolved_at or now) if is_over else now + HOLD_SECONDS
    said = message(row, "resolved" if is_over else "verdict", page_url=page_url, runbook_base=runbook_base)
    return {
        "labels": dict(row.labels),
        "annotations": describe(said),
        "startsAt": moment(row.onset_at),
        "endsAt": moment(max(ends_at, row.onset_at)),
        "generatorURL": said["page"],
    }


def describe(said: dict[str, Any]) -> dict[str, str]:
    """Return what a person reads, from a message: one fact to an annotation; what is not known is left out."""
    found = {
        "summary": said["what"],
        "where": _where(said["where"]),
        "since": said["since"],
        "how_sure": "" if said["how_sure"] is None else f"{said['how_sure']:.2f}",
        "owner": said["owner"],
        "evidence": _lines(said["evidence"]),
        "done": _lines(said["done"]) or "Nothing was done.",
        "next": said["next"],
        "runbook_url": said["runbook"],
        "page": said["page"],
    }
    return {name: text for name, text in found.items() if text}


def _where(where: dict[str, Any]) -> str:
    """Return the place in words.

    >>> _where({"job": "gpt", "run": "r1", "attempt": 0, "nodes": ["node-b"], "ranks": [2], "gpus": []})
    'job gpt, run r1, attempt 0, rank 2, node node-b'
    """
    parts = [f"job {where['job']}", f"run {where['run']}", f"attempt {where['attempt']}"] if where["job"] else []
    for word, key in (("rank", "ranks"), ("node", "nodes"), ("GPU", "gpus")):
        if where[key]:
            plural = "s" if len(where[key]) > 1 else ""
            parts.append(f"{word}{plural} {', '.join(str(each) for each in where[key])}")
    return ", ".join(parts)


def _lines(sentences: list[str]) -> str:
    shown = sentences[:EVIDENCE_MAX]
    if len(sentences) > EVIDENCE_MAX:
        shown = [*shown, f"… and {len(sentences) - EVIDENCE_MAX} more on the page."]
    return "\n".join(f"- {sentence}" for sentence in shown)
