"""Patches and field ownership as pure functions: what the standards and Kubernetes' schemas say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.api_server import schemas
from tests.cluster.api_server.errors import ApiError
from tests.cluster.api_server.ownership import Managers, applied, flat, from_fields_v1, to_fields_v1, updated
from tests.cluster.api_server.patches import json_patch, merge_patch, strategic_patch

POD = schemas.of("", "v1", "Pod")
NODE = schemas.of("", "v1", "Node")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=4)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


@given(objects, objects)
def test_a_merge_patch_done_twice_is_done_once(value: Any, patch: Any):
    once = merge_patch(value, patch)
    assert merge_patch(once, patch) == once


@given(objects, objects)
def test_a_merge_patch_changes_neither_side(value: Any, patch: Any):
    before = copy.deepcopy((value, patch))
    merge_patch(value, patch)
    strategic_patch(value, patch, schemas.FREE)
    assert (value, patch) == before


@given(objects)
def test_a_strategic_patch_without_a_schema_is_a_merge_patch(patch: Any):
    value = {"a": {"b": 1}, "b": [1, 2]}
    assert without_nulls(strategic_patch(value, patch, schemas.FREE)) == without_nulls(merge_patch(value, patch))


@given(objects, st.text("ab/~", min_size=1, max_size=3), values)
def test_json_patch_adds_what_its_test_then_finds_and_its_remove_takes_away(value: Any, key: str, added: Any):
    path = "/" + key.replace("~", "~0").replace("/", "~1")
    there = json_patch(
        value, [{"op": "add", "path": path, "value": added}, {"op": "test", "path": path, "value": added}]
    )
    assert there[key] == added
    gone = json_patch(there, [{"op": "remove", "path": path}])
    assert gone == {name: inner for name, inner in value.items() if name != key}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/c"},
        {"op": "replace", "path": "/c", "value": 1},
        {"op": "test", "path": "/a", "value": 2},
        {"op": "add", "path": "/b/9", "value": 1},
    ],
)
def test_a_json_patch_that_does_not_fit_is_422(operation: dict[str, Any]):
    with pytest.raises(ApiError) as refused:
        json_patch({"a": 1, "b": []}, [operation])
    assert refused.value.code == 422


def test_keyed_lists_merge_item_by_item_and_in_the_order_asked_for():
    spec = {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}
    patch = {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"$patch": "delete", "name": "X"}]}],
    }
    assert strategic_patch(spec, patch, schemas.child(POD, "spec")) == {
        "containers": [{"name": "b"}, {"name": "a", "image": "1", "env": [{"name": "Y", "value": "2"}]}]
    }


def test_conditions_merge_by_type_and_taints_are_replaced_as_a_whole():
    node = {
        "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    patch = {
        "spec": {"taints": [{"key": "b", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "GpuHealthy", "status": "False"}]},
    }
    found = strategic_patch(node, patch, NODE)
    assert [taint["key"] for taint in found["spec"]["taints"]] == ["b"]
    assert [condition["type"] for condition in found["status"]["conditions"]] == ["Ready", "GpuHealthy"]


def test_primitive_lists_merge_and_lose_what_is_named():
    metadata = schemas.child(POD, "metadata")
    found = strategic_patch({"finalizers": ["a/x", "b/x"]}, {"finalizers": ["c/x"]}, metadata)
    assert found == {"finalizers": ["a/x", "b/x", "c/x"]}
    assert strategic_patch(found, {"$deleteFromPrimitiveList/finalizers": ["a/x"]}, metadata) == {
        "finalizers": ["b/x", "c/x"]
    }


def pod(**container: Any) -> dict[str, Any]:
    about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    return {**about, "spec": {"containers": [{"name": "a", **container}]}}


@given(st.sets(st.sampled_from(["image", "workingDir", "tty"])), st.booleans())
def test_owned_fields_come_back_from_their_nested_form(names: set[str], has_port: bool):
    found = pod(**dict.fromkeys(names, "x"), **({"ports": [{"containerPort": 80}]} if has_port else {}))
    fields = set(flat(found, POD))
    assert from_fields_v1(to_fields_v1(fields)) == fields


def test_an_update_takes_ownership_and_what_was_applied_conflicts_then():
    live = applied(pod(), pod(image="1"), POD, ("one", "Apply", ""), is_forced=False, time="t")
    changed = copy.deepcopy(live)
    changed["spec"]["containers"][0]["image"] = "2"
    updated(live, changed, POD, ("editor", "Update", ""), "t")
    with pytest.raises(ApiError) as refused:
        applied(changed, pod(image="1"), POD, ("one", "Apply", ""), is_forced=False, time="t")
    assert refused.value.details["causes"] == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "editor"',
            "field": '.spec.containers[name="a"].image',
        }
    ]
    forced = applied(changed, pod(image="1"), POD, ("one", "Apply", ""), is_forced=True, time="t")
    assert forced["spec"]["containers"][0]["image"] == "1"
    assert Managers(forced).owned(("editor", "Update", "")) == set()


def test_what_is_no_longer_applied_goes_with_its_last_owner():
    live = applied(pod(), pod(image="1", tty=True), POD, ("one", "Apply", ""), is_forced=False, time="t")
    less = applied(live, pod(image="1"), POD, ("one", "Apply", ""), is_forced=False, time="t")
    assert less["spec"]["containers"] == [{"name": "a", "image": "1"}]
