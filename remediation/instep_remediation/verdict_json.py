"""Verdicts and evidence as JSON values for the store, and back: through diagnosis's own codec."""

from __future__ import annotations

from typing import Any

from instep_diagnosis.codec import from_builtins, to_builtins
from instep_diagnosis.verdict import Verdict


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON values."""
    return as_json(verdict)


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    """Return a verdict from its JSON values; raises EvidenceError when it is none."""
    return from_builtins(data, Verdict)


def as_json(value: object) -> dict[str, Any]:
    """Return a value of diagnosis as JSON values that every database can keep."""
    data: dict[str, Any] = without_nul(with_text_keys(to_builtins(value)))
    return data


def with_text_keys(value: Any) -> Any:
    """Return JSON values whose objects have text keys only, as JSON has it.

    >>> with_text_keys({1: [{2: "x"}]})
    {'1': [{'2': 'x'}]}
    """
    if isinstance(value, dict):
        return {str(key): with_text_keys(inner) for key, inner in value.items()}
    return [with_text_keys(inner) for inner in value] if isinstance(value, list | tuple) else value


def without_nul(value: Any) -> Any:
    """Return JSON values without NUL in any text, which PostgreSQL does not store.

    >>> without_nul({"a": ["x\\0y", 1]})
    {'a': ['xy', 1]}
    """
    if isinstance(value, str):
        return value.replace("\0", "") if "\0" in value else value
    if isinstance(value, dict):
        return {without_nul(key): without_nul(inner) for key, inner in value.items()}
    return [without_nul(inner) for inner in value] if isinstance(value, list | tuple) else value
