"""Who owns which field: `managedFields`, and server-side apply, which merges and finds conflicts."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.cluster.api_server import schemas
from tests.cluster.api_server.errors import ApiError, Object, bad_request
from tests.cluster.api_server.schemas import Schema

Path = tuple[str, ...]
"""The parts of a field's path as `fieldsV1` spells them: `f:spec`, `k:{"name":"a"}`, `v:"b"`."""
Fields = set[Path]
HERE = object()
"""The value of an item of a keyed list: that it is there."""
NEVER_OWNED = {
    *(("f:apiVersion",), ("f:kind",)),
    *(
        ("f:metadata", f"f:{name}")
        for name in ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
    ),
    *(("f:metadata", f"f:{name}") for name in ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds")),
}
KEY_DEFAULTS = {"protocol": "TCP"}
"""What stands for a key that an item leaves out."""


def flat(value: Object, schema: Schema) -> dict[Path, Any]:
    """Every owned field with its value."""
    found: dict[Path, Any] = {}
    _flatten(value, schema, (), found)
    return {path: inner for path, inner in found.items() if path[:2] not in NEVER_OWNED and path[:1] not in NEVER_OWNED}


def _flatten(value: Any, schema: Schema, path: Path, found: dict[Path, Any]) -> None:
    if isinstance(value, dict) and value and schema.get("x-kubernetes-map-type") != "atomic":
        for key, inner in value.items():
            _flatten(inner, schemas.child(schema, key), (*path, f"f:{key}"), found)
    elif isinstance(value, list) and schema.get("x-kubernetes-list-type") in ("map", "set"):
        if not value:
            found[path] = value
        for item in value:
            here = (*path, _item_key(item, schema))
            found[here] = HERE
            if isinstance(item, dict):
                _flatten(item, schemas.items(schema), here, found)
    else:
        found[path] = value


def _item_key(item: Any, schema: Schema) -> str:
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema["x-kubernetes-list-type"] == "set" or not isinstance(item, dict) or not keys:
        return "v:" + json.dumps(item, separators=(",", ":"))
    wanted = {key: item.get(key, KEY_DEFAULTS.get(key)) for key in sorted(keys)}
    named = {key: value for key, value in wanted.items() if value is not None}
    return "k:" + json.dumps(named, separators=(",", ":"))


def to_fields_v1(fields: Fields) -> Object:
    """The nested form that `managedFields` carries."""
    tree: Object = {}
    for path in sorted(fields):
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node["."] = {}
    return _without_lone_dots(tree)


def _without_lone_dots(tree: Object) -> Object:
    return {key: {} if list(inner) == ["."] else _without_lone_dots(inner) for key, inner in tree.items()}


def from_fields_v1(tree: Object, path: Path = ()) -> Fields:
    """The paths of the nested form."""
    if not tree:
        return {path} if path else set()
    found: Fields = set()
    for key, inner in tree.items():
        found |= {path} if key == "." else from_fields_v1(inner, (*path, key))
    return found


def _entry_key(entry: Object) -> tuple[str, str, str]:
    return entry.get("manager", ""), entry["operation"], entry.get("subresource", "")


class Managers:
    """The owners of one object's fields."""

    def __init__(self, found: Object | None) -> None:
        self._entries = {}
        for entry in (found or {}).get("metadata", {}).get("managedFields") or []:
            self._entries[_entry_key(entry)] = (from_fields_v1(entry.get("fieldsV1") or {}), entry)

    def owned(self, key: tuple[str, str, str]) -> Fields:
        """The fields of one manager."""
        return set(self._entries[key][0]) if key in self._entries else set()

    def others(self, key: tuple[str, str, str]) -> dict[tuple[str, str, str], Fields]:
        """The fields of all other managers."""
        return {other: fields for other, (fields, _) in self._entries.items() if other != key}

    def give(self, key: tuple[str, str, str], fields: Fields, api_version: str, time: str) -> None:
        """From now on the manager owns exactly these."""
        before = self._entries.get(key)
        if not fields:
            self._entries.pop(key, None)
        elif before is None or before[0] != fields:
            entry = {"manager": key[0], "operation": key[1], "apiVersion": api_version, "time": time}
            entry |= {"fieldsType": "FieldsV1"} | ({"subresource": key[2]} if key[2] else {})
            self._entries[key] = (set(fields), entry)

    def take(self, fields: Fields, keeper: tuple[str, str, str]) -> None:
        """Nobody but the keeper owns these any more."""
        for key, (owned, entry) in list(self._entries.items()):
            if key != keeper and owned & fields:
                rest = owned - fields
                if rest:
                    self._entries[key] = (rest, entry)
                else:
                    del self._entries[key]

    def write_to(self, value: Object) -> None:
        """Put `managedFields` into the object."""
        entries = []
        for fields, entry in self._entries.values():
            entries.append({**entry, "fieldsV1": to_fields_v1(fields)})
        value["metadata"].pop("managedFields", None)
        if entries:
            value["metadata"]["managedFields"] = entries


def updated(before: Object | None, after: Object, schema: Schema, key: tuple[str, str, str], time: str) -> None:
    """After a create, an update or a patch: its manager owns what it changed."""
    managers = Managers(before)
    was, now = flat(before, schema) if before else {}, flat(after, schema)
    changed = {path for path, value in now.items() if path not in was or was[path] != value}
    gone = set(was) - set(now)
    managers.take(changed | gone, key)
    managers.give(key, (managers.owned(key) - gone) | changed, after["apiVersion"], time)
    managers.write_to(after)


def applied(
    live: Object, config: Object, schema: Schema, key: tuple[str, str, str], *, is_forced: bool, time: str
) -> Object:
    """The object with a manager's configuration merged in; 409 with its causes when others own what it would change."""
    if config.get("metadata", {}).get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    managers = Managers(live)
    wanted, present = flat(config, schema), flat(live, schema)
    disputed = {path for path, value in wanted.items() if path not in present or present[path] != value}
    found = _conflicts(disputed, managers.others(key))
    if found and not is_forced:
        raise _conflict(found)
    result = _merge(live, config, schema)
    others = set().union(*managers.others(key).values()) if managers.others(key) else set()
    for path in sorted(managers.owned(key) - set(wanted) - others, key=len, reverse=True):
        if not any(kept[: len(path)] == path for kept in [*wanted, *others]):
            _remove(result, path, schema)
    managers.take(disputed, key)
    managers.give(key, set(wanted), config["apiVersion"], time)
    managers.write_to(result)
    return result


def _conflicts(disputed: Fields, others: dict[tuple[str, str, str], Fields]) -> list[tuple[str, Path]]:
    return [(key[0], path) for key, owned in others.items() for path in sorted(owned & disputed)]


def _conflict(found: list[tuple[str, Path]]) -> ApiError:
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{manager}"', "field": dotted(path)}
        for manager, path in found
    ]
    said = ", ".join(f'conflict with "{manager}": {dotted(path)}' for manager, path in found)
    plural = "conflict" if len(found) == 1 else "conflicts"
    message = f"Apply failed with {len(found)} {plural}: {said}"
    return ApiError(409, "Conflict", message, details={"causes": causes})


def dotted(path: Path) -> str:
    """`.spec.containers[name="a"].image`"""
    words = ""
    for part in path:
        if part.startswith("f:"):
            words += "." + part[2:]
        elif part.startswith("k:"):
            named = json.loads(part[2:]).items()
            words += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in named) + "]"
        else:
            words += "[=" + part[2:] + "]"
    return words


def _merge(live: Any, config: Any, schema: Schema) -> Any:
    if isinstance(config, dict) and isinstance(live, dict) and schema.get("x-kubernetes-map-type") != "atomic":
        merged = copy.deepcopy(live)
        for key, inner in config.items():
            merged[key] = _merge(live.get(key), inner, schemas.child(schema, key))
        return merged
    if isinstance(config, list) and isinstance(live, list) and schema.get("x-kubernetes-list-type") in ("map", "set"):
        merged_items = {_item_key(item, schema): copy.deepcopy(item) for item in live}
        for item in config:
            key = _item_key(item, schema)
            merged_items[key] = _merge(merged_items.get(key), item, schemas.items(schema))
        return list(merged_items.values())
    return copy.deepcopy(config)


def _remove(value: Any, path: Path, schema: Schema) -> None:
    """Take one field out; what is not there stays away."""
    for index, part in enumerate(path):
        is_last = index == len(path) - 1
        if part.startswith("f:"):
            if not isinstance(value, dict) or part[2:] not in value:
                return
            if is_last:
                del value[part[2:]]
                return
            schema, value = schemas.child(schema, part[2:]), value[part[2:]]
        else:
            item = next((item for item in value or [] if _item_key(item, schema) == part), None)
            if item is None:
                return
            if is_last:
                value.remove(item)
                return
            schema, value = schemas.items(schema), item
