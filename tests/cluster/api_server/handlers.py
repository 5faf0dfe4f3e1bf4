"""What each request does, by its verb and its subresource: from a decoded request to an answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.api_server import patches, tables, wire
from tests.cluster.api_server.access import Access, Call, User
from tests.cluster.api_server.budgets import Budgets
from tests.cluster.api_server.errors import (
    ApiError,
    Object,
    bad_request,
    expired,
    from_the_future,
    method_not_allowed,
    unsupported_media_type,
)
from tests.cluster.api_server.events import to_shown
from tests.cluster.api_server.kinds import Kind
from tests.cluster.api_server.requests import Request, Target
from tests.cluster.api_server.resources import Resources
from tests.cluster.api_server.selectors import Matches, by_fields, by_labels
from tests.cluster.api_server.store import Store
from tests.cluster.api_server.validation import unknown_fields
from tests.cluster.api_server.watches import TIMEOUT_SECONDS, Asked

PATCHES = (patches.JSON_PATCH, patches.MERGE_PATCH, patches.STRATEGIC_PATCH, patches.APPLY_PATCH)


@dataclass(slots=True)
class Answer:
    """A body with its code, or a watch."""

    body: Any = None
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    watch: Asked | None = None


class Handlers:
    """One method for each verb."""

    def __init__(self, store: Store, resources: Resources, budgets: Budgets, access: Access) -> None:
        self.store = store
        self._resources = resources
        self._budgets = budgets
        self._access = access

    def handle(self, request: Request, target: Target, call: Call, user: User) -> Answer:
        """Do what is asked."""
        if target.subresource in ("eviction", "scale", "token"):
            return self._subresource(request, target, call)
        verbs: dict[str, Callable[[Request, Target], Answer]] = {
            **{"get": self._get, "list": self._list, "watch": self._watch, "update": self._update},
            **{"patch": self._patch, "delete": self._delete, "deletecollection": self._delete_all},
        }
        if call.verb == "create" and not target.name:
            return self._review(request, target, user) if target.kind.is_reviewed else self._create(request, target)
        if call.verb not in verbs or target.kind.is_reviewed:
            raise method_not_allowed()
        return verbs[call.verb](request, target)

    def _get(self, request: Request, target: Target) -> Answer:
        found = self._resources.get(target.kind, target.namespace, target.name)
        return Answer(self._shape(request, target.kind, found))

    def _shape(self, request: Request, kind: Kind, found: Object) -> Object:
        include = request.table_include()
        if include is None:
            return found
        about = {"resourceVersion": found["metadata"]["resourceVersion"]}
        return tables.table(kind, [found], about, include=include)

    def _matches(self, request: Request, target: Target) -> Matches:
        labels = by_labels(request.query.get("labelSelector", ""))
        fields = by_fields(request.query.get("fieldSelector", ""), target.kind)
        return lambda found: labels(found) and fields(found)

    def _list(self, request: Request, target: Target) -> Answer:
        kind, matches = target.kind, self._matches(request, target)
        with self.store.lock:
            revision, after = self._snapshot(request)
            found = self.store.all_at(kind.storage, revision)
        found = [value for value in found if not target.namespace or value["metadata"]["namespace"] == target.namespace]
        wanted = [value for value in found if matches(value) and _key(value) > after]
        metadata: Object = {"resourceVersion": str(revision)}
        limit = int(request.query.get("limit") or 0)
        if limit and len(wanted) > limit:
            metadata["continue"] = _token(revision, _key(wanted[limit - 1]))
            if not (request.query.get("labelSelector") or request.query.get("fieldSelector")):
                metadata["remainingItemCount"] = len(wanted) - limit
            wanted = wanted[:limit]
        shown = [to_shown(kind, value) for value in wanted]
        include = request.table_include()
        if include is not None:
            return Answer(tables.table(kind, shown, metadata, include=include))
        items = [{key: value for key, value in one.items() if key not in ("apiVersion", "kind")} for one in shown]
        return Answer(
            {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}
        )

    def _snapshot(self, request: Request) -> tuple[int, tuple[str, str]]:
        """The revision that is listed, and the key after which."""
        if token := request.query.get("continue"):
            try:
                read = json.loads(base64.urlsafe_b64decode(token))
                revision, after = int(read["rv"]), (read["start"][0], read["start"][1])
            except (ValueError, KeyError, TypeError, IndexError):
                raise bad_request("continue key is not valid") from None
            if revision < self.store.compacted_revision:
                message = "The provided continue parameter is too old: list again without it."
                raise ApiError(410, "Expired", message)
            return revision, after
        asked = _revision(request)
        if asked > self.store.revision:
            raise from_the_future(asked, self.store.revision)
        if request.query.get("resourceVersionMatch") == "Exact":
            if asked < self.store.compacted_revision:
                raise expired(asked, self.store.compacted_revision)
            return asked, ("", "")
        return self.store.revision, ("", "")

    def _watch(self, request: Request, target: Target) -> Answer:
        text = request.query.get("resourceVersion", "")
        wants_initial = request.is_on("sendInitialEvents")
        if wants_initial and request.query.get("resourceVersionMatch") != "NotOlderThan":
            raise bad_request("sendInitialEvents needs resourceVersionMatch=NotOlderThan")
        fresh = text in ("", "0") and request.query.get("sendInitialEvents") != "false"
        asked = Asked(
            kind=target.kind,
            namespace=target.namespace,
            matches=self._matches(request, target),
            revision=None if wants_initial or fresh else _revision(request) or self.store.revision,
            has_bookmarks=request.is_on("allowWatchBookmarks"),
            sends_initial_end=wants_initial and request.is_on("allowWatchBookmarks"),
            timeout_seconds=float(request.query.get("timeoutSeconds") or TIMEOUT_SECONDS),
            table_include=request.table_include(),
        )
        return Answer(watch=asked)

    def _create(self, request: Request, target: Target) -> Answer:
        options = request.options()
        value = _object(request.read_body())
        namespace = target.namespace
        if target.kind.is_namespaced and not namespace:
            raise method_not_allowed()
        headers = self._strictness(request, target.kind, value)
        created = self._resources.create(target.kind, namespace, value, options)
        return Answer(self._shape(request, target.kind, created), 201, headers=headers)

    def _strictness(self, request: Request, kind: Kind, value: Object) -> dict[str, str]:
        """400 under Strict, a warning header under Warn."""
        options = request.options()
        self._resources.check_fields(kind, value, options)
        unknown = unknown_fields(kind, value) if options.field_validation == "Warn" else []
        return {"Warning": f'299 - "{unknown[0]}"'.replace('"unknown field "', '"unknown field ')} if unknown else {}

    def _update(self, request: Request, target: Target) -> Answer:
        value = _object(request.read_body())
        headers = self._strictness(request, target.kind, value)
        options = request.options(target.subresource)
        found = self._resources.replace(target.kind, target.namespace, target.name, value, options)
        return Answer(self._shape(request, target.kind, found), headers=headers)

    def _patch(self, request: Request, target: Target) -> Answer:
        content_type = wire.media_type(request.content_type)
        if content_type not in PATCHES:
            raise unsupported_media_type(PATCHES)
        options = request.options(target.subresource)
        place = (target.kind, target.namespace, target.name)
        if content_type == patches.APPLY_PATCH:
            if not request.query.get("fieldManager"):
                raise ApiError(422, "Invalid", "fieldManager: Required value: is required for apply patch")
            config = _object(wire.read_yaml(request.body))
            self._resources.check_fields(target.kind, config, options)
            found, is_new = self._resources.apply(*place, config, options)
            return Answer(self._shape(request, target.kind, found), 201 if is_new else 200)
        patch = wire.read_json(request.body)
        found = self._resources.patch(*place, patch, content_type, options)
        return Answer(self._shape(request, target.kind, found))

    def _delete(self, request: Request, target: Target) -> Answer:
        found, is_gone = self._resources.delete(target.kind, target.namespace, target.name, request.deletion())
        if target.kind.answers_with_deleted or not is_gone:
            return Answer(to_shown(target.kind, found))
        about = {"name": target.name, "kind": target.kind.plural, "uid": found["metadata"]["uid"]}
        if target.kind.group:
            about["group"] = target.kind.group
        return Answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": about})

    def _delete_all(self, request: Request, target: Target) -> Answer:
        asked, matches = request.deletion(), self._matches(request, target)
        listed = self._list(request, target)
        for value in self.store.all(target.kind.storage, target.namespace):
            if matches(value):
                metadata = value["metadata"]
                self._resources.delete(target.kind, metadata.get("namespace", ""), metadata["name"], asked)
        return listed

    def _subresource(self, request: Request, target: Target, call: Call) -> Answer:
        if call.verb == "create" and target.subresource == "eviction":
            return self._evict(request, target)
        if call.verb == "create" and target.subresource == "token":
            return self._token(request, target)
        if target.subresource == "scale" and call.verb in ("get", "update", "patch"):
            return self._scale(request, target, call)
        raise method_not_allowed()

    def _evict(self, request: Request, target: Target) -> Answer:
        sent = _object(request.read_body())
        if sent.get("kind", "Eviction") != "Eviction":
            raise bad_request(f"no kind {sent.get('kind')!r} is registered for evictions")
        named = (sent.get("metadata") or {}).get("name")
        if named != target.name:
            raise bad_request("name in URL does not match name in Eviction object")
        deletion = request.deletion({**(sent.get("deleteOptions") or {})})
        self._budgets.evict(target.namespace, target.name, deletion)
        return Answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)

    def _token(self, request: Request, target: Target) -> Answer:
        self._resources.get(target.kind, target.namespace, target.name)
        token = self._access.give_token(User.service_account(target.namespace, target.name))
        sent = _object(request.read_body())
        status = {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}
        return Answer({**sent, "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": status}, 201)

    def _scale(self, request: Request, target: Target, call: Call) -> Answer:
        place = (target.kind, target.namespace, target.name)
        if call.verb != "get":
            content_type = wire.media_type(request.content_type)
            is_patch = call.verb == "patch"
            sent = wire.read_json(request.body) if is_patch else request.read_body()
            patch = {"spec": {"replicas": int(sent["spec"]["replicas"])}}
            if is_patch and content_type not in PATCHES:
                raise unsupported_media_type(PATCHES)
            self._resources.patch(*place, patch, patches.MERGE_PATCH, request.options())
        found = self._resources.get(*place)
        about = {key: found["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
        status = {"replicas": (found.get("status") or {}).get("replicas", 0)}
        scale = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": about}
        return Answer(scale | {"spec": {"replicas": found["spec"]["replicas"]}, "status": status})

    def _review(self, request: Request, target: Target, user: User) -> Answer:
        sent = _object(request.read_body())
        spec = sent.get("spec") or {}
        if target.kind.kind == "SelfSubjectAccessReview":
            asked = spec.get("resourceAttributes") or {}
            words = ("verb", "group", "resource", "subresource", "namespace", "name")
            status: Object = {"allowed": self._access.may(user, Call(*(asked.get(word, "") for word in words)))}
        elif target.kind.kind == "SelfSubjectRulesReview":
            rules = self._access.rules_of(user, spec.get("namespace", "")) if self._access.is_enforced else []
            status = {"resourceRules": rules, "nonResourceRules": [], "incomplete": not self._access.is_enforced}
        else:
            status = {"userInfo": {"username": user.name, "groups": list(user.groups)}}
        about = {"kind": target.kind.kind, "apiVersion": target.kind.api_version}
        return Answer({**sent, **about, "metadata": {"creationTimestamp": None}, "status": status}, 201)


def _object(read: Any) -> Object:
    if not isinstance(read, dict):
        raise bad_request("the body is no object")
    return read


def _revision(request: Request) -> int:
    text = request.query.get("resourceVersion") or "0"
    if not text.isdigit():
        raise bad_request(f'resourceVersion: Invalid value: "{text}"')
    return int(text)


def _key(value: Object) -> tuple[str, str]:
    return value["metadata"].get("namespace", ""), value["metadata"]["name"]


def _token(revision: int, key: tuple[str, str]) -> str:
    read = {"v": "meta.k8s.io/v1", "rv": revision, "start": key}
    return base64.urlsafe_b64encode(json.dumps(read).encode()).decode()
