"""What can be done with objects: create, read, replace, patch, apply and delete, with Kubernetes' rules for each."""

from __future__ import annotations

import copy
import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.cluster.api_server import errors, ownership, patches, schemas, validation
from tests.cluster.api_server.defaults import fill
from tests.cluster.api_server.errors import Object
from tests.cluster.api_server.events import to_shown, to_stored
from tests.cluster.api_server.kinds import BY_STORAGE, Kind
from tests.cluster.api_server.store import Store

APPLY_ATTEMPTS_MAX = 5
SYSTEM_OWNED = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
WITHOUT_GENERATION = {"Node", "Event", "ConfigMap", "Secret", "ServiceAccount", "Namespace", "Service", "Lease"}


@dataclass(frozen=True, slots=True)
class Options:
    """What a write was asked with."""

    manager: str = "unknown"
    is_dry_run: bool = False
    is_forced: bool = False
    field_validation: str = "Ignore"
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a delete was asked with."""

    grace_seconds: int | None = None
    uid: str | None = None
    resource_version: str | None = None
    propagation: str = "Background"
    is_dry_run: bool = False


def timestamp(moment: datetime | None = None) -> str:
    """Kubernetes' `Time`: whole seconds."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Resources:
    """Every method answers in the form of `kind` and leaves the store consistent."""

    def __init__(self, store: Store, *, is_oldest: bool = False) -> None:
        self.store = store
        self.is_oldest = is_oldest

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """One object, or 404."""
        found = self.store.get(kind.storage, (namespace, name))
        if found is None:
            raise errors.not_found(kind.plural, name, kind.group)
        return to_shown(kind, found)

    def create(self, kind: Kind, namespace: str, value: Object, options: Options | None = None) -> Object:
        """Keep a new object; 409 when the name is taken, 404 when the namespace is not there."""
        options = options or Options()
        with self.store.lock:
            value = to_stored(kind, self._as_sent(kind, namespace, value))
            metadata = value["metadata"]
            if not metadata.get("name") and metadata.get("generateName"):
                metadata["name"] = metadata["generateName"] + _suffix()
            if not metadata.get("name"):
                raise errors.invalid(
                    kind.kind,
                    "",
                    [("FieldValueRequired", "metadata.name", "name or generateName is required")],
                    kind.group,
                )
            if metadata.get("resourceVersion"):
                raise errors.bad_request("resourceVersion should not be set on objects to be created")
            self._check_namespace(kind, namespace, metadata["name"])
            key = (namespace, metadata["name"])
            if self.store.get(kind.storage, key) is not None:
                raise errors.already_exists(kind.plural, metadata["name"], kind.group)
            self._prepare_new(kind, value)
            validation.check(kind, value, None, is_oldest=self.is_oldest)
            self._own(kind, None, value, options)
            return to_shown(kind, value if options.is_dry_run else self.store.put(kind.storage, key, value))

    def _as_sent(self, kind: Kind, namespace: str, value: Object) -> Object:
        """A copy of what was sent, with the names that the URL gives."""
        value = copy.deepcopy(value)
        sent = (value.setdefault("apiVersion", kind.api_version), value.setdefault("kind", kind.kind))
        if sent != (kind.api_version, kind.kind):
            raise errors.bad_request(
                f"the API version in the data ({sent[0]}, {sent[1]}) does not match the expected API version "
                f"({kind.api_version}, {kind.kind})"
            )
        metadata = value["metadata"] = value.get("metadata") or {}
        if namespace and metadata.setdefault("namespace", namespace) not in (namespace, ""):
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        metadata.update({"namespace": namespace} if namespace else {})
        return value

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.is_namespaced:
            return
        found = self.store.get("/namespaces", ("", namespace))
        if found is None:
            raise errors.not_found("namespaces", namespace)
        if found["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise errors.forbidden(kind.plural, name, why, kind.group)

    def _prepare_new(self, kind: Kind, value: Object) -> None:
        metadata = value["metadata"]
        for name in SYSTEM_OWNED:
            metadata.pop(name, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = timestamp()
        if kind.kind not in WITHOUT_GENERATION:
            metadata["generation"] = 1
        if kind.has_status and kind.kind != "Node":  # kubelets register their node with its status
            value.pop("status", None)
        fill(value)

    def _own(self, kind: Kind, before: Object | None, after: Object, options: Options) -> None:
        stored = BY_STORAGE[kind.storage]
        schema = schemas.of(stored.group, stored.version, stored.kind)
        key = (options.manager, "Update", options.subresource)
        ownership.updated(before, after, schema, key, timestamp())

    def replace(self, kind: Kind, namespace: str, name: str, value: Object, options: Options | None = None) -> Object:
        """Put a whole object in the place of the present one."""
        options = options or Options()
        with self.store.lock:
            before = self._present(kind, namespace, name)
            after = to_stored(kind, self._as_sent(kind, namespace, value))
            return self._write(kind, before, after, options)

    def _present(self, kind: Kind, namespace: str, name: str) -> Object:
        found = self.store.get(kind.storage, (namespace, name))
        if found is None:
            raise errors.not_found(kind.plural, name, kind.group)
        return found

    def patch(
        self, kind: Kind, namespace: str, name: str, patch: Any, content_type: str, options: Options | None = None
    ) -> Object:
        """Change the present object; a resourceVersion inside the patch must be the present one."""
        options = options or Options()
        with self.store.lock:
            before = self._present(kind, namespace, name)
            shown = to_shown(kind, before)
            if content_type == patches.JSON_PATCH:
                after = patches.json_patch(shown, patch)
            elif content_type == patches.MERGE_PATCH:
                after = patches.merge_patch(shown, patch)
            else:
                schema = schemas.of(kind.group, kind.version, kind.kind)
                if not schema:
                    raise errors.unsupported_media_type((patches.JSON_PATCH, patches.MERGE_PATCH, patches.APPLY_PATCH))
                after = patches.strategic_patch(shown, patch, schema)
            self.check_fields(kind, after, options)
            return self._write(kind, before, to_stored(kind, self._as_sent(kind, namespace, after)), options)

    def check_fields(self, kind: Kind, value: Object, options: Options) -> None:
        """400 for fields that do not exist, when the caller asked for strictness."""
        if options.field_validation == "Strict" and (unknown := validation.unknown_fields(kind, value)):
            raise errors.bad_request(f"strict decoding error: {', '.join(unknown)}")

    def apply(self, kind: Kind, namespace: str, name: str, config: Object, options: Options) -> tuple[Object, bool]:
        """Server-side apply: (the object, whether it is new)."""
        config = to_stored(kind, self._as_sent(kind, namespace, config))
        if config["metadata"].setdefault("name", name) != name:
            raise errors.bad_request("the name of the object does not match the name on the URL")
        stored = BY_STORAGE[kind.storage]
        schema = schemas.of(stored.group, stored.version, stored.kind)
        key = (options.manager, "Apply", options.subresource)
        with self.store.lock:
            before = self.store.get(kind.storage, (namespace, name))
            if before is None:
                if options.subresource:
                    raise errors.not_found(kind.plural, name, kind.group)
                return self._create_applied(kind, config, key, options), True
            wanted = config["metadata"].pop("resourceVersion", None)
            after = ownership.applied(before, config, schema, key, is_forced=options.is_forced, time=timestamp())
            after["metadata"]["resourceVersion"] = wanted or before["metadata"]["resourceVersion"]
            return self._write(kind, before, after, options, is_owned=True), False

    def _create_applied(self, kind: Kind, config: Object, key: tuple[str, str, str], options: Options) -> Object:
        value = copy.deepcopy(config)
        namespace, name = value["metadata"].get("namespace", ""), value["metadata"]["name"]
        if value["metadata"].get("uid") or value["metadata"].get("resourceVersion"):
            raise errors.conflict(kind.plural, name, "uid mismatch: the object does not exist any more", kind.group)
        self._check_namespace(kind, namespace, name)
        schema = schemas.of(kind.group, kind.version, kind.kind)
        config = copy.deepcopy(value)
        self._prepare_new(kind, value)
        validation.check(kind, value, None, is_oldest=self.is_oldest)
        managers = ownership.Managers(None)
        managers.give(key, set(ownership.flat(config, schema)), config["apiVersion"], timestamp())
        managers.write_to(value)
        return to_shown(kind, value if options.is_dry_run else self.store.put(kind.storage, (namespace, name), value))

    def _write(self, kind: Kind, before: Object, after: Object, options: Options, *, is_owned: bool = False) -> Object:
        old, new = before["metadata"], after["metadata"]
        name = old["name"]
        if new.setdefault("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({new['name']}) does not match the name on the URL ({name})"
            )
        if new.get("uid") not in (None, "", old["uid"]):
            why = f"Precondition failed: UID in precondition: {new['uid']}, UID in object meta: {old['uid']}"
            raise errors.conflict(kind.plural, name, why, kind.group)
        if new.get("resourceVersion") not in (None, "", "0", old["resourceVersion"]):
            raise errors.conflict(kind.plural, name, group=kind.group)
        for field in SYSTEM_OWNED:
            new.pop(field, None)
            if field in old:
                new[field] = old[field]
        new["resourceVersion"] = old["resourceVersion"]
        self._keep_other_half(kind, before, after, options.subresource)
        fill(after)
        if old.get("deletionTimestamp") and set(new.get("finalizers") or []) - set(old.get("finalizers") or []):
            why = "Forbidden: no new finalizers can be added if the object is being deleted"
            raise errors.invalid(kind.kind, name, [("FieldValueForbidden", "metadata.finalizers", why)], kind.group)
        validation.check(kind, after, before, is_oldest=self.is_oldest)
        if "generation" in old and not options.subresource and before.get("spec") != after.get("spec"):
            new["generation"] = old["generation"] + 1
        return to_shown(kind, self._finish_write(kind, before, after, options, is_owned=is_owned))

    def _keep_other_half(self, kind: Kind, before: Object, after: Object, subresource: str) -> None:
        """A write to the status changes only it and metadata; a write to the object leaves its status alone."""
        kept = [key for key in {*before, *after} if key not in ("metadata", "status", "apiVersion", "kind")]
        for key in kept if subresource == "status" else ["status"] if kind.has_status else []:
            after.pop(key, None)
            if key in before:
                after[key] = copy.deepcopy(before[key])

    def _finish_write(self, kind: Kind, before: Object, after: Object, options: Options, *, is_owned: bool) -> Object:
        if not is_owned:
            after["metadata"]["managedFields"] = copy.deepcopy(before["metadata"].get("managedFields") or [])
            self._own(kind, before, after, options)
        if options.is_dry_run or after == before:
            return after
        key = (after["metadata"].get("namespace", ""), after["metadata"]["name"])
        is_over = after["metadata"].get("deletionTimestamp") and not after["metadata"].get("finalizers")
        if is_over and not after["metadata"].get("deletionGracePeriodSeconds"):
            self.store.put(kind.storage, key, after)
            return self.store.remove(kind.storage, key)
        return self.store.put(kind.storage, key, after)

    def delete(self, kind: Kind, namespace: str, name: str, asked: Deletion | None = None) -> tuple[Object, bool]:
        """Begin or finish a deletion: (the object in its last state, whether it is gone)."""
        asked = asked or Deletion()
        with self.store.lock:
            found = self._present(kind, namespace, name)
            self._check_preconditions(kind, found, asked)
            metadata = found["metadata"]
            grace_seconds = self._grace_seconds(kind, found, asked)
            if asked.propagation in ("Foreground", "Orphan") and not asked.is_dry_run:
                marker = "foregroundDeletion" if asked.propagation == "Foreground" else "orphan"
                if marker not in metadata.setdefault("finalizers", []):
                    metadata["finalizers"].append(marker)
            if not metadata.get("finalizers") and not grace_seconds and kind.kind != "Namespace":
                if asked.is_dry_run:
                    return found, True
                return self.store.remove(kind.storage, (namespace, name)), True
            if metadata.get("deletionTimestamp") and metadata.get("deletionGracePeriodSeconds", 0) <= grace_seconds:
                return found, False
            metadata["deletionTimestamp"] = timestamp(datetime.now(UTC) + timedelta(seconds=grace_seconds))
            metadata["deletionGracePeriodSeconds"] = grace_seconds
            if kind.kind == "Namespace":
                found["status"] = {"phase": "Terminating"}
            return (found if asked.is_dry_run else self.store.put(kind.storage, (namespace, name), found)), False

    def _check_preconditions(self, kind: Kind, found: Object, asked: Deletion) -> None:
        metadata = found["metadata"]
        for label, wanted, present in (
            ("UID", asked.uid, metadata["uid"]),
            ("ResourceVersion", asked.resource_version, metadata["resourceVersion"]),
        ):
            if wanted is not None and wanted != present:
                why = f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {present}"
                raise errors.conflict(kind.plural, metadata["name"], why, kind.group)

    def _grace_seconds(self, kind: Kind, found: Object, asked: Deletion) -> int:
        """Only pods end gracefully, and only those that are bound to a node and still run."""
        if kind.kind != "Pod" or not found["spec"].get("nodeName"):
            return 0
        if found.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        if asked.grace_seconds is not None:
            return max(0, asked.grace_seconds)
        return int(found["spec"].get("terminationGracePeriodSeconds", 30))


def _suffix() -> str:
    return "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
