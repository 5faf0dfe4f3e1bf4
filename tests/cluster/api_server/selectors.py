"""Which objects a list or a watch asks for: label selectors and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.cluster.api_server.errors import Object, bad_request
from tests.cluster.api_server.kinds import Kind

Matches = Callable[[Object], bool]
SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<how>in|notin)\s*\((?P<values>[^()]*)\)\s*$")
EQUAL = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s*(?P<how>==|=|!=)\s*(?P<value>[^\s,()]*)\s*$")
EXISTS = re.compile(r"^\s*(?P<not>!?)\s*(?P<key>[^\s!=,()]+)\s*$")

EVERY_KIND = ("metadata.name", "metadata.namespace")
ABOUT = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
FIELDS = {
    "/pods": (
        *("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork"),
        *("status.phase", "status.podIP", "status.nominatedNodeName"),
    ),
    "/nodes": ("spec.unschedulable",),
    "/events": (
        *(f"involvedObject.{name}" for name in ABOUT),
        "reason",
        *("reportingComponent", "reportingController", "source", "type"),
    ),
    "/namespaces": ("status.phase",),
    "/secrets": ("type",),
    "apps/replicasets": ("status.replicas",),
    "batch/jobs": ("status.successful",),
}
ANOTHER_NAME = {"source": "source.component", "reportingController": "reportingComponent"}
_EVENT_FIELDS = re.compile(r"^regarding\.")
SWITCHES = {"unschedulable", "hostNetwork"}
"""Fields that are false when they are not there."""


def by_labels(selector: str) -> Matches:
    """Whether an object's labels are as the selector says."""
    wanted = [_requirement(part) for part in re.split(r",(?![^()]*\))", selector) if part.strip()]
    return lambda found: all(holds(found["metadata"].get("labels") or {}) for holds in wanted)


def _requirement(text: str) -> Matches:
    if match := SET.match(text):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["how"] == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: labels.get(key) not in values
    if match := EQUAL.match(text):
        key, value = match["key"], match["value"]
        if match["how"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := EXISTS.match(text):
        key, is_there = match["key"], not match["not"]
        return lambda labels: (key in labels) is is_there
    raise bad_request(f"unable to parse requirement: {text!r}")


def by_selector(selector: Object | None) -> Matches:
    """The `matchLabels` and `matchExpressions` of a budget or a controller; None matches nothing, empty everything."""
    if selector is None:
        return lambda _: False
    equal = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []

    def matches(found: Object) -> bool:
        labels = found["metadata"].get("labels") or {}
        return all(labels.get(key) == value for key, value in equal.items()) and all(
            _expression(labels, expression) for expression in expressions
        )

    return matches


def _expression(labels: Object, expression: Object) -> bool:
    key, values = expression["key"], expression.get("values") or []
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]


def by_fields(selector: str, kind: Kind) -> Matches:
    """Whether an object's fields are as the selector says; 400 for a field that the kind cannot be asked by."""
    wanted = []
    for part in filter(None, selector.split(",")):
        match = re.match(r"^(?P<field>[\w.]+)\s*(?P<how>==|=|!=)(?P<value>.*)$", part)
        if not match:
            raise bad_request(f"invalid selector: {part!r}; can't understand {part!r}")
        field = _EVENT_FIELDS.sub("involvedObject.", match["field"]) if kind.storage == "/events" else match["field"]
        if field not in (*EVERY_KIND, *FIELDS.get(kind.storage, ())):
            raise bad_request(f"field label not supported: {match['field']}")
        wanted.append((ANOTHER_NAME.get(field, field).split("."), match["how"] != "!=", match["value"]))
    return lambda found: all((_text(found, path) == value) is is_equal for path, is_equal, value in wanted)


def _text(found: Object, path: list[str]) -> str:
    value: object = found
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or path[-1] in SWITCHES:
        return "true" if value else "false"
    return "" if value is None else str(value)
