"""Events are one storage under two API groups: kept in the core form, shown in the form that is asked for."""

from __future__ import annotations

from tests.cluster.api_server.errors import Object
from tests.cluster.api_server.kinds import Kind

NEW_NAME = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
CORE_NAME = {new: core for core, new in NEW_NAME.items()}


def to_stored(kind: Kind, value: Object) -> Object:
    """The form in which the storage keeps it."""
    if kind.kind != "Event" or not kind.group:
        return value
    return {CORE_NAME.get(key, key): inner for key, inner in value.items()} | {"apiVersion": "v1"}


def to_shown(kind: Kind, value: Object) -> Object:
    """The form that the caller asked for."""
    if kind.kind != "Event" or not kind.group:
        return value
    return {NEW_NAME.get(key, key): inner for key, inner in value.items()} | {"apiVersion": kind.api_version}
