"""Verdicts, evidence and incidents as JSON and back; unknown fields are ignored, so that versions can roll."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from instep_diagnosis.errors import EvidenceError

T = TypeVar("T")

DOCUMENT_BYTES_MAX = 64 << 20
"""Larger documents are refused before they are parsed: evidence crosses trust boundaries."""


def encode(value: object) -> bytes:
    """Any type of this part as JSON: a verdict, a job state, a bundle, an incident.

    >>> from instep_diagnosis.evidence import NodeFact
    >>> decode(encode(NodeFact("e", "node-a", "kernel_line", "text", 1.0)), NodeFact).node
    'node-a'
    """
    return msgspec.json.encode(value)


def decode(document: bytes | str, wanted: type[T]) -> T:
    """The value of type `wanted` in a JSON document. Raises `EvidenceError` with one sentence where it is none."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise EvidenceError(f"The document has {len(document)} bytes: at most {DOCUMENT_BYTES_MAX} are read.")
    try:
        return msgspec.json.decode(document, type=wanted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EvidenceError(f"Cannot read a {wanted.__name__} from JSON: {error}.") from error


def to_builtins(value: object) -> object:
    """The value as plain dictionaries, lists, text and numbers, for a response that is encoded elsewhere."""
    return msgspec.to_builtins(value)


def from_builtins(value: object, wanted: type[T]) -> T:
    """The inverse of `to_builtins`. Raises `EvidenceError`."""
    try:
        return msgspec.convert(value, type=wanted, strict=False)
    except msgspec.ValidationError as error:
        raise EvidenceError(f"Cannot read a {wanted.__name__}: {error}.") from error
