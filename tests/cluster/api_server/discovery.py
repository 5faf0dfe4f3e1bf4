"""What the server says about itself: its version, its groups and resources, and its OpenAPI document."""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from typing import Any

from tests.cluster.api_server import schemas
from tests.cluster.api_server.errors import Object, no_such_path
from tests.cluster.api_server.kinds import KINDS, Kind, group_versions

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
STATUS_VERBS = ["get", "patch", "update"]
VERSION = {
    **{"major": "1", "minor": "37", "gitVersion": "v1.37.1-stand-in", "gitCommit": "", "gitTreeState": "clean"},
    **{"buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "none", "platform": "linux/amd64"},
}


def groups() -> Object:
    """`/apis`, of old."""
    named = dict.fromkeys(group for group, _ in group_versions() if group)
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group_of(name) for name in named]}


def group_of(name: str) -> Object:
    """`/apis/GROUP`."""
    found = [(group, version) for group, version in group_versions() if group == name]
    if not found:
        raise no_such_path()
    versions = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in found]
    about = {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions}
    return about | {"preferredVersion": versions[0]}


def resources_of(group: str, version: str) -> Object:
    """`/api/v1`, `/apis/GROUP/VERSION`."""
    kinds = [kind for kind in KINDS if (kind.group, kind.version) == (group, version)]
    if not kinds:
        raise no_such_path()
    listed = []
    for kind in kinds:
        listed.append(_resource(kind))
        listed += [
            {"name": f"{kind.plural}/{name}", "singularName": "", "namespaced": kind.is_namespaced, **meant}
            for name, meant in _subresources(kind)
        ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": listed,
    }


def _verbs(kind: Kind) -> list[str]:
    return ["create"] if kind.is_reviewed else VERBS


def _resource(kind: Kind) -> Object:
    found: Object = {"name": kind.plural, "singularName": kind.kind.lower(), "namespaced": kind.is_namespaced}
    found |= {"kind": kind.kind, "verbs": _verbs(kind)}
    return found | ({"shortNames": list(kind.short_names)} if kind.short_names else {})


def _subresources(kind: Kind) -> list[tuple[str, Object]]:
    found = [("status", {"kind": kind.kind, "verbs": STATUS_VERBS})] if kind.has_status else []
    others = {
        "eviction": {"group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"]},
        "scale": {"group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": STATUS_VERBS},
        "token": {"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest", "verbs": ["create"]},
    }
    return found + [(name, others[name]) for name in kind.subresources]


def aggregated(*, is_core: bool) -> Object:
    """`/api` and `/apis` in one answer each."""
    items = []
    for name in dict.fromkeys(group for group, _ in group_versions() if (not group) is is_core):
        versions = [
            {"version": version, "freshness": "Current", "resources": _aggregated_resources(group, version)}
            for group, version in group_versions()
            if group == name
        ]
        items.append({"metadata": {"name": name, "creationTimestamp": None}, "versions": versions})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _aggregated_resources(group: str, version: str) -> list[Object]:
    found = []
    for kind in KINDS:
        if (kind.group, kind.version) == (group, version):
            about: Object = {"resource": kind.plural, "singularResource": kind.kind.lower(), "verbs": _verbs(kind)}
            about["responseKind"] = {"group": group, "version": version, "kind": kind.kind}
            about["scope"] = "Namespaced" if kind.is_namespaced else "Cluster"
            about["shortNames"] = list(kind.short_names)
            about["subresources"] = [_aggregated_subresource(kind, name, meant) for name, meant in _subresources(kind)]
            found.append(about)
    return found


def _aggregated_subresource(kind: Kind, name: str, meant: Object) -> Object:
    response = {"group": meant.get("group", kind.group), "version": meant.get("version", kind.version)}
    return {"subresource": name, "responseKind": response | {"kind": meant["kind"]}, "verbs": meant["verbs"]}


def openapi_paths() -> Object:
    """`/openapi/v3`: one document for each group and version."""
    paths = {}
    for group, version in group_versions():
        path = f"apis/{group}/{version}" if group else f"api/{version}"
        digest = hashlib.sha256(path.encode()).hexdigest()
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return {"paths": paths}


@cache
def openapi(group: str, version: str) -> Object:
    """One document: the paths with what they accept, and every schema that they lead to."""
    kinds = [kind for kind in KINDS if (kind.group, kind.version) == (group, version)]
    if not kinds:
        raise no_such_path()
    wanted = [name for kind in kinds if (name := schemas.name_of(kind.group, kind.version, kind.kind))]
    found: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _as_openapi(schemas.definitions()[name], wanted)
    about = {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]}}
    return about | {"paths": dict(_path(kind) for kind in kinds), "components": {"schemas": found}}


def _path(kind: Kind) -> tuple[str, Object]:
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    path = (
        f"{root}/namespaces/{{namespace}}/{kind.plural}/{{name}}"
        if kind.is_namespaced
        else f"{root}/{kind.plural}/{{name}}"
    )
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    means = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    operations = {}
    for verb, action in (("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete")):
        operations[verb] = {"x-kubernetes-action": action, "x-kubernetes-group-version-kind": means, "responses": {}}
        operations[verb] |= {"parameters": parameters if verb != "get" else []}
    return path, operations


def _as_openapi(schema: Any, wanted: list[str]) -> Any:
    """A JSON schema in OpenAPI's words; the definitions it names are added to `wanted`."""
    if isinstance(schema, list):
        return [_as_openapi(inner, wanted) for inner in schema]
    if not isinstance(schema, dict):
        return copy.copy(schema)
    found = {}
    for key, inner in schema.items():
        if key == "$ref" and isinstance(inner, str):
            name = inner.rpartition("/")[2]
            wanted.append(name)
            found["allOf"] = [{"$ref": f"#/components/schemas/{name}"}]
        elif key == "type" and isinstance(inner, list):
            found["type"] = next(word for word in inner if word != "null")
        else:
            found[key] = _as_openapi(inner, wanted)
    return found
