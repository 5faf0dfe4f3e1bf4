"""Verdicts and job states as JSON values for the store, and back: through diagnosis's own codec."""

from __future__ import annotations

from typing import Any

import msgspec
from instep_diagnosis.evidence import JobState
from instep_diagnosis.verdict import Verdict


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON values."""
    data: dict[str, Any] = without_nul(msgspec.to_builtins(verdict))
    return data


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    """Return a verdict from its JSON values; raises msgspec.ValidationError when it is none."""
    return msgspec.convert(data, Verdict)


def job_to_json(job: JobState) -> dict[str, Any]:
    """Return a job's state as JSON values."""
    data: dict[str, Any] = without_nul(msgspec.to_builtins(job))
    return data


def without_nul(value: Any) -> Any:
    """Return JSON values without NUL in any text, which PostgreSQL does not store.

    >>> without_nul({"a": ["x\\0y", 1]})
    {'a': ['xy', 1]}
    """
    if isinstance(value, str):
        return value.replace("\0", "") if "\0" in value else value
    if isinstance(value, dict):
        return {without_nul(key): without_nul(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nul(inner) for inner in value]
    return value
