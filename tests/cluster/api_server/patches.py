"""The three kinds of patch that change an object: JSON patch, merge patch and strategic merge patch."""

from __future__ import annotations

import copy
from typing import Any

from tests.cluster.api_server import schemas
from tests.cluster.api_server.errors import ApiError, Object, bad_request
from tests.cluster.api_server.schemas import Schema

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
DELETE_FROM = "$deleteFromPrimitiveList/"
ORDER_OF = "$setElementOrder/"
OPERATIONS_MAX = 10_000


def unprocessable(message: str) -> ApiError:
    """The patch is well-formed and does not fit the object."""
    return ApiError(422, "Invalid", f"the server rejected our request due to an error in our request: {message}")


def json_patch(value: Any, operations: Any) -> Any:
    """RFC 6902: the value with every operation done in order."""
    if not isinstance(operations, list):
        raise bad_request("a JSON patch is a list of operations")
    if len(operations) > OPERATIONS_MAX:
        raise ApiError(413, "RequestEntityTooLarge", f"at most {OPERATIONS_MAX} operations in one patch")
    value = copy.deepcopy(value)
    for operation in operations:
        value = _operate(value, operation)
    return value


def _operate(value: Any, operation: Object) -> Any:
    name, path = operation.get("op"), operation.get("path", "")
    if name in ("move", "copy"):
        moved = copy.deepcopy(_at(value, _pointer(operation["from"])))
        value = _removed(value, _pointer(operation["from"])) if name == "move" else value
        return _added(value, _pointer(path), moved)
    if name == "test":
        if _at(value, _pointer(path)) != operation.get("value"):
            raise unprocessable(f"testing value {path} failed")
        return value
    if name == "remove":
        return _removed(value, _pointer(path))
    if name == "add":
        return _added(value, _pointer(path), operation.get("value"))
    if name == "replace":
        _at(value, _pointer(path))
        return _added(_removed(value, _pointer(path)), _pointer(path), operation.get("value"))
    raise bad_request(f"unexpected operation in a JSON patch: {name}")


def _pointer(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _at(value: Any, pointer: list[str]) -> Any:
    for part in pointer:
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise unprocessable(f"/{'/'.join(pointer)} does not exist") from None
    return value


def _added(value: Any, pointer: list[str], added: Any) -> Any:
    if not pointer:
        return added
    parent, last = _at(value, pointer[:-1]), pointer[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if index > len(parent):
            raise unprocessable(f"/{'/'.join(pointer)} is beyond the end of the list")
        parent.insert(index, added)
    elif isinstance(parent, dict):
        parent[last] = added
    else:
        raise unprocessable(f"/{'/'.join(pointer)} does not exist")
    return value


def _removed(value: Any, pointer: list[str]) -> Any:
    _at(value, pointer)
    if not pointer:
        return None
    parent, last = _at(value, pointer[:-1]), pointer[-1]
    del parent[int(last) if isinstance(parent, list) else last]
    return value


def merge_patch(value: Any, patch: Any) -> Any:
    """RFC 7386: maps merge, null removes, everything else is replaced."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(value) if isinstance(value, dict) else {}
    for key, inner in patch.items():
        if inner is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), inner)
    return merged


def strategic_patch(value: Any, patch: Any, schema: Schema) -> Any:
    """Kubernetes' own: as a merge patch, and lists that have a merge key merge item by item."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: copy.deepcopy(inner) for key, inner in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    merged = dict(value) if isinstance(value, dict) else {}
    if (kept := patch.get("$retainKeys")) is not None:
        merged = {key: merged[key] for key in merged if key in kept}
    for key, inner in patch.items():
        if key.startswith(DELETE_FROM):
            name = key.removeprefix(DELETE_FROM)
            merged[name] = [item for item in merged.get(name) or [] if item not in inner]
        elif not key.startswith("$"):
            _merge_field(merged, key, inner, schemas.child(schema, key))
    for key, order in patch.items():
        if key.startswith(ORDER_OF):
            _put_in_order(merged, key.removeprefix(ORDER_OF), order, schema)
    return merged


def _merge_field(merged: Object, key: str, inner: Any, schema: Schema) -> None:
    if inner is None:
        merged.pop(key, None)
    elif isinstance(inner, list) and "merge" in schema.get("x-kubernetes-patch-strategy", ""):
        merge_key = schema.get("x-kubernetes-patch-merge-key")
        present = merged.get(key) or []
        if merge_key and all(isinstance(item, dict) for item in inner):
            merged[key] = _merged_items(present, inner, merge_key, schemas.items(schema))
        else:
            merged[key] = present + [item for item in inner if item not in present]
    elif isinstance(inner, dict) and "replace" in schema.get("x-kubernetes-patch-strategy", ""):
        merged[key] = copy.deepcopy(inner)
    else:
        merged[key] = strategic_patch(merged.get(key), inner, schema)


def _merged_items(present: list[Object], patch: list[Object], merge_key: str, schema: Schema) -> list[Object]:
    if any(item.get("$patch") == "replace" and len(item) == 1 for item in patch):
        return [item for item in copy.deepcopy(patch) if "$patch" not in item]
    merged = list(present)
    for item in patch:
        if merge_key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {merge_key}")
        where = next((i for i, old in enumerate(merged) if old.get(merge_key) == item[merge_key]), None)
        if item.get("$patch") == "delete":
            merged = [old for old in merged if old.get(merge_key) != item[merge_key]]
        elif where is None:
            merged.append(strategic_patch({}, item, schema))
        else:
            merged[where] = strategic_patch(merged[where], item, schema)
    return merged


def _put_in_order(merged: Object, key: str, order: list[Any], schema: Schema) -> None:
    """Items that the order names come in that order; the others keep their places behind them."""
    merge_key = schemas.child(schema, key).get("x-kubernetes-patch-merge-key")
    names = [item[merge_key] if isinstance(item, dict) else item for item in order]

    def rank(item: Any) -> int:
        name = item.get(merge_key) if isinstance(item, dict) else item
        return names.index(name) if name in names else len(names)

    if isinstance(merged.get(key), list):
        merged[key] = sorted(merged[key], key=rank)
