"""One incident as a zip of JSON: diagnosis's own evidence bundle, with the incident and its plans beside it."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

from instep_collector.store import plans
from instep_collector.store.models import Incident
from instep_diagnosis.bundles import EvidenceBundle
from instep_diagnosis.codec import from_builtins
from instep_diagnosis.files.bundle import packed
from sqlalchemy.orm import Session

from instep_remediation.server.views import incident_view, plan_answer
from instep_remediation.verdict_json import verdict_from_json

EPOCH = (1980, 1, 1, 0, 0, 0)


def incident_bundle(session: Session, row: Incident, *, runbook_base: str) -> bytes:
    """Return the zip. `instep diagnose bundle` comes to the same verdict from it, where a verdict was drawn here."""
    made = [plan_answer(session, plan) for plan in plans.of_incident(session, row.id)]
    files: dict[str, Any] = {"incident.json": incident_view(row, runbook_base=runbook_base), "plans.json": made}
    out = io.BytesIO()
    if row.verdict and row.evidence:
        out.write(packed(from_builtins(row.evidence, EvidenceBundle), [verdict_from_json(row.verdict)]))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, value in files.items():
            archive.writestr(
                zipfile.ZipInfo(name, EPOCH), json.dumps(value, indent=1, ensure_ascii=False), zipfile.ZIP_DEFLATED
            )
    return out.getvalue()
