"""Lists as `kubectl get` prints them: a `Table` with the columns of each kind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.cluster.api_server.errors import Object
from tests.cluster.api_server.kinds import Kind

MIME = "application/json;as=Table;v=v1;g=meta.k8s.io"
WIDE = 1
"""Priority of a column that only `-o wide` shows."""
Column = tuple[str, int, Callable[[Object], Any]]


def age(text: str | None) -> str:
    """How long ago, in kubectl's short form."""
    if not text:
        return "<unknown>"
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _status(value: Object) -> Object:
    return value.get("status") or {}


def _spec(value: Object) -> Object:
    return value.get("spec") or {}


def _node_status(node: Object) -> str:
    conditions = {condition["type"]: condition["status"] for condition in _status(node).get("conditions") or []}
    word = {"True": "Ready"}.get(conditions.get("Ready", ""), "NotReady" if "Ready" in conditions else "Unknown")
    return f"{word},SchedulingDisabled" if _spec(node).get("unschedulable") else word


def _roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    roles = [key.removeprefix(prefix) for key in node["metadata"].get("labels") or {} if key.startswith(prefix)]
    return ",".join(sorted(roles)) or "<none>"


def _address(node: Object) -> str:
    addresses = _status(node).get("addresses") or []
    return next((found["address"] for found in addresses if found["type"] == "InternalIP"), "<none>")


def _node_info(name: str) -> Callable[[Object], str]:
    return lambda node: (_status(node).get("nodeInfo") or {}).get(name) or "<unknown>"


def _pod_status(pod: Object) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return {"Succeeded": "Completed"}.get(_status(pod).get("phase", ""), _status(pod).get("phase") or "Unknown")


def _ready_containers(pod: Object) -> str:
    statuses = _status(pod).get("containerStatuses") or []
    return f"{sum(found.get('ready', False) for found in statuses)}/{len(_spec(pod).get('containers') or [])}"


def _restarts(pod: Object) -> int:
    return sum(found.get("restartCount", 0) for found in _status(pod).get("containerStatuses") or [])


def _field(*path: str, default: Any = "<none>") -> Callable[[Object], Any]:
    def read(value: Object) -> Any:
        found: Any = value
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return default if found is None else found

    return read


def _of(done: str, wanted: Callable[[Object], Any]) -> Callable[[Object], str]:
    return lambda value: f"{_status(value).get(done, 0)}/{wanted(value)}"


def _count(name: str) -> Callable[[Object], Any]:
    return _field("status", name, default=0)


def _event_object(event: Object) -> str:
    about = event.get("involvedObject") or event.get("regarding") or {}
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _last_seen(event: Object) -> str:
    return age(event.get("lastTimestamp") or event.get("deprecatedLastTimestamp") or event.get("eventTime"))


AGE: Column = ("Age", 0, lambda value: age(value["metadata"].get("creationTimestamp")))
REPLICAS = _field("spec", "replicas", default=0)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "Node": (
        ("Status", 0, _node_status),
        ("Roles", 0, _roles),
        AGE,
        ("Version", 0, _node_info("kubeletVersion")),
        ("Internal-IP", WIDE, _address),
        ("External-IP", WIDE, lambda _: "<none>"),
        ("OS-Image", WIDE, _node_info("osImage")),
        ("Kernel-Version", WIDE, _node_info("kernelVersion")),
        ("Container-Runtime", WIDE, _node_info("containerRuntimeVersion")),
    ),
    "Pod": (
        ("Ready", 0, _ready_containers),
        ("Status", 0, _pod_status),
        ("Restarts", 0, _restarts),
        AGE,
        ("IP", WIDE, _field("status", "podIP")),
        ("Node", WIDE, _field("spec", "nodeName")),
        ("Nominated Node", WIDE, _field("status", "nominatedNodeName")),
        ("Readiness Gates", WIDE, lambda _: "<none>"),
    ),
    "Namespace": (("Status", 0, _field("status", "phase")), AGE),
    "Event": (
        ("Last Seen", 0, _last_seen),
        ("Type", 0, _field("type")),
        ("Reason", 0, _field("reason")),
        ("Object", 0, _event_object),
        ("Message", 0, lambda event: event.get("message") or event.get("note") or ""),
    ),
    "PodDisruptionBudget": (
        ("Min Available", 0, _field("spec", "minAvailable", default="N/A")),
        ("Max Unavailable", 0, _field("spec", "maxUnavailable", default="N/A")),
        ("Allowed Disruptions", 0, _count("disruptionsAllowed")),
        AGE,
    ),
    "DaemonSet": (
        ("Desired", 0, _count("desiredNumberScheduled")),
        ("Current", 0, _count("currentNumberScheduled")),
        ("Ready", 0, _count("numberReady")),
        AGE,
    ),
    "Deployment": (("Ready", 0, _of("readyReplicas", REPLICAS)), ("Available", 0, _count("availableReplicas")), AGE),
    "ReplicaSet": (
        ("Desired", 0, REPLICAS),
        ("Current", 0, _count("replicas")),
        ("Ready", 0, _count("readyReplicas")),
        AGE,
    ),
    "StatefulSet": (("Ready", 0, _of("readyReplicas", REPLICAS)), AGE),
    "Service": (("Type", 0, _field("spec", "type")), ("Cluster-IP", 0, _field("spec", "clusterIP")), AGE),
    "ConfigMap": (("Data", 0, lambda value: len(value.get("data") or {})), AGE),
    "Secret": (("Type", 0, _field("type")), ("Data", 0, lambda value: len(value.get("data") or {})), AGE),
    "Lease": (("Holder", 0, _field("spec", "holderIdentity")), AGE),
}


def table(kind: Kind, objects: list[Object], metadata: Object, *, include: str, has_columns: bool = True) -> Object:
    """The objects as rows; `include` says how much of each object comes along: None, Metadata, Object."""
    columns: tuple[Column, ...] = (
        ("Name", 0, lambda value: value["metadata"]["name"]),
        *COLUMNS.get(kind.kind, (AGE,)),
    )
    rows = []
    for value in objects:
        row: Object = {"cells": [cell(value) for _, _, cell in columns]}
        if include == "Object":
            row["object"] = value
        elif include != "None":
            about = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": value["metadata"]}
            row["object"] = about
        rows.append(row)
    found: Object = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "rows": rows}
    found["columnDefinitions"] = [
        {
            "name": name,
            "type": "string",
            "format": "name" if name == "Name" else "",
            "description": "",
            "priority": priority,
        }
        for name, priority, _ in (columns if has_columns else ())
    ]
    return found
