"""What is known of each kind's fields: the definitions of Kubernetes 1.37, from kubernetes-validate.

They say which lists merge by which key, which are owned as a whole, which fields exist and which must be there.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
FREE: Schema = {}
"""Nothing is known: every field may be there, and a list belongs to its writer as a whole."""
RELEASE = "1.37"


@cache
def definitions() -> dict[str, Schema]:
    """Every definition by its name, such as `io.k8s.api.core.v1.Node`."""
    found = find_spec("kubernetes_validate")
    if found is None or found.origin is None:
        raise RuntimeError("kubernetes-validate is not installed: run `make setup`.")
    path = Path(found.origin).parent / "kubernetes-json-schema" / f"v{RELEASE}.0-local" / "_definitions.json"
    read: dict[str, Schema] = json.loads(path.read_text(encoding="utf-8"))["$defs"]
    return read


@cache
def _names() -> dict[tuple[str, str, str], str]:
    names = {}
    for name, definition in definitions().items():
        for means in definition.get("x-kubernetes-group-version-kind", ()):
            names.setdefault((means["group"], means["version"], means["kind"]), name)
    return names


def of(group: str, version: str, kind: str) -> Schema:
    """The schema of a kind; `FREE` when it is none of Kubernetes' own."""
    name = _names().get((group, version, kind))
    return definitions()[name] if name else FREE


def name_of(group: str, version: str, kind: str) -> str | None:
    """The name of a kind's definition."""
    return _names().get((group, version, kind))


def resolve(schema: Schema) -> Schema:
    """The schema behind a reference, with what stands beside the reference."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    return {**definitions()[reference.rpartition("/")[2]], **{key: schema[key] for key in schema if key != "$ref"}}


def child(schema: Schema, key: str) -> Schema:
    """The schema of a field; `FREE` when it is not known."""
    found = schema.get("properties", {}).get(key)
    if found is None:
        more = schema.get("additionalProperties")
        found = more if isinstance(more, dict) else FREE
    return resolve(found)


def items(schema: Schema) -> Schema:
    """The schema of a list's items."""
    return resolve(schema.get("items", FREE))


def faults(value: Any, schema: Schema, field: str = "") -> tuple[list[str], list[str], list[str]]:
    """The fields that do not exist, are of another type, are missing."""
    unknown: list[str] = []
    mistyped: list[str] = []
    missing: list[str] = []
    _look(value, resolve(schema), field, (unknown, mistyped, missing))
    return unknown, mistyped, missing


def _look(value: Any, schema: Schema, field: str, found: tuple[list[str], list[str], list[str]]) -> None:
    unknown, mistyped, missing = found
    if value is None or not schema:
        return
    if not _is_of_type(value, schema):
        mistyped.append(field)
    elif isinstance(value, dict):
        properties = schema.get("properties")
        missing += [_join(field, key) for key in schema.get("required", ()) if value.get(key) is None]
        for key, inner in value.items():
            if properties is not None and key not in properties and "additionalProperties" not in schema:
                if not schema.get("x-kubernetes-preserve-unknown-fields"):
                    unknown.append(_join(field, key))
            else:
                _look(inner, child(schema, key), _join(field, key), found)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _look(inner, items(schema), f"{field}[{index}]", found)


def _join(field: str, key: str) -> str:
    return f"{field}.{key}" if field else key


TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}


def _is_of_type(value: Any, schema: Schema) -> bool:
    if "oneOf" in schema:
        return any(_is_of_type(value, option) for option in schema["oneOf"])
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if isinstance(value, bool) and wanted:
        return "boolean" in wanted
    return not wanted or any(isinstance(value, TYPES[name]) for name in wanted)
