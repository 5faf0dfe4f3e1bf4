"""One incident as a zip of JSON files: everything its verdict was drawn from, to be looked at or judged again
elsewhere.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

from instep_collector.store import plans
from instep_collector.store.models import Incident
from sqlalchemy.orm import Session

from instep_remediation.server.views import incident_view, plan_view

FORMAT_VERSION = 1


def incident_bundle(session: Session, row: Incident, *, runbook_base: str) -> bytes:
    """Return the zip: `bundle.json`, `incident.json`, `verdict.json`, `job_state.json`, `plans.json`."""
    files: dict[str, Any] = {
        "bundle.json": {"format": "instep-incident", "version": FORMAT_VERSION, "incident": row.id, "kind": row.kind},
        "incident.json": incident_view(row, runbook_base=runbook_base),
        "plans.json": [
            plan_view(plan, list(plans.actions(session, plan.id))) for plan in plans.of_incident(session, row.id)
        ],
    }
    files |= {"verdict.json": row.verdict} if row.verdict else {}
    files |= {"job_state.json": row.evidence} if row.evidence else {}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in files.items():
            archive.writestr(
                zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), json.dumps(value, indent=1, ensure_ascii=False)
            )
    return out.getvalue()
