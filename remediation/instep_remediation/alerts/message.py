"""One incident as a message: what, where, since when, how sure, on what evidence, what was done, what to do next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from instep_collector.store.models import Incident

from instep_remediation.advice import next_steps, runbook
from instep_remediation.verdict_json import verdict_from_json


def message(row: Incident, occasion: str, *, page_url: str, runbook_base: str) -> dict[str, Any]:
    """Return the body of a webhook; its fields are listed in docs/guide/server.md."""
    verdict = verdict_from_json(row.verdict) if row.verdict else None
    return {
        "version": 1,
        "id": f"{row.id}:{occasion}",
        "incident": row.id,
        "state": "resolved" if occasion == "resolved" else "open",
        "is_drill": row.is_drill,
        "labels": row.labels,
        "what": ("[DRILL] " if row.is_drill else "") + row.summary,
        "kind": row.kind,
        "where": {
            "job": row.job,
            "run": row.run,
            "attempt": row.attempt,
            "nodes": sorted({suspect.node for suspect in verdict.suspects}) if verdict else [],
            "ranks": [suspect.rank for suspect in verdict.suspects if suspect.rank is not None] if verdict else [],
            "gpus": sorted({suspect.gpu for suspect in verdict.suspects if suspect.gpu}) if verdict else [],
        },
        "since": moment(row.onset_at),
        "how_sure": round(verdict.confidence, 3) if verdict else None,
        "owner": verdict.owner.value if verdict else "unknown",
        "evidence": [evidence.text for evidence in verdict.evidence] if verdict else [],
        "done": row.done,
        "next": row.resolution if occasion == "resolved" else next_steps(verdict),
        "runbook": runbook(row.kind, runbook_base),
        "page": f"{page_url}/incidents/{row.id}",
    }


def moment(at: float | None) -> str | None:
    """Return a stored moment as ISO 8601 in UTC.

    >>> moment(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
