"""What an object must satisfy to be kept: names, labels, fields that exist, and the rules of a few kinds (422)."""

from __future__ import annotations

import re

from tests.cluster.api_server import schemas
from tests.cluster.api_server.errors import Object, bad_request, invalid
from tests.cluster.api_server.kinds import RBAC, Kind

Cause = tuple[str, str, str]
LABEL = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)$")
DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
DNS_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
NAME_LENGTH_MAX = 253
ANNOTATIONS_BYTES_MAX = 256 * 1024
BODY_BYTES_MAX = 3 * 1024 * 1024
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
POD_FIELDS_THAT_CHANGE = {"tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds", "schedulingGates"}


def check(kind: Kind, value: Object, before: Object | None, *, is_oldest: bool = False) -> None:
    """422 with every cause when the object breaks a rule."""
    metadata = value["metadata"]
    causes = [*_name(kind, metadata["name"]), *_labels(metadata), *_annotations(metadata)]
    schema = schemas.of(kind.group, kind.version, kind.kind)
    _, mistyped, missing = schemas.faults(value, schema)
    if mistyped:
        raise bad_request(
            f"{kind.kind} in version {kind.version!r} cannot be handled as a {kind.kind}: {mistyped[0]}: wrong type"
        )
    causes += [("FieldValueRequired", field, "Required value") for field in missing if not field.startswith("status.")]
    rules = {"Node": _node, "Pod": _pod, "PodDisruptionBudget": _budget}
    if not causes and kind.kind in rules:
        causes += rules[kind.kind](value, before)
    if not causes and kind.kind == "Event":
        causes += _event(kind, value, before, is_oldest)
    if causes:
        raise invalid(kind.kind, metadata["name"], causes, kind.group)


def unknown_fields(kind: Kind, value: Object) -> list[str]:
    """What strict decoding complains about."""
    unknown, _, _ = schemas.faults(value, schemas.of(kind.group, kind.version, kind.kind))
    return [f'unknown field "{field}"' for field in unknown]


def _name(kind: Kind, name: str) -> list[Cause]:
    if kind.group == RBAC:
        is_good = bool(name) and name not in (".", "..") and not {"/", "%"} & set(name)
        rule = "may not be '.', '..' or contain '/' or '%'"
    elif kind.kind in ("Namespace", "Service"):
        is_good, rule = bool(DNS_LABEL.match(name)), "a lowercase RFC 1123 label is at most 63 of a-z, 0-9 and '-'"
    else:
        is_good = bool(DNS_SUBDOMAIN.match(name)) and len(name) <= NAME_LENGTH_MAX
        rule = "a lowercase RFC 1123 subdomain is at most 253 of a-z, 0-9, '-' and '.'"
    return [] if is_good else [("FieldValueInvalid", "metadata.name", f'Invalid value: "{name}": {rule}')]


def is_label_key(key: str) -> bool:
    """`name` or `prefix/name`."""
    prefix, slash, name = key.rpartition("/")
    return bool(LABEL.match(name)) and (
        not slash or (bool(DNS_SUBDOMAIN.match(prefix)) and len(prefix) <= NAME_LENGTH_MAX)
    )


def _labels(metadata: Object) -> list[Cause]:
    causes = []
    for key, value in (metadata.get("labels") or {}).items():
        if not is_label_key(key):
            causes.append(("FieldValueInvalid", "metadata.labels", f'Invalid value: "{key}": no valid label key'))
        if value and not LABEL.match(str(value)):
            rule = "a valid label is empty or at most 63 of a-z, A-Z, 0-9, '-', '_' and '.', alphanumeric at both ends"
            causes.append(("FieldValueInvalid", "metadata.labels", f'Invalid value: "{value}": {rule}'))
    return causes


def _annotations(metadata: Object) -> list[Cause]:
    found = metadata.get("annotations") or {}
    causes = [
        ("FieldValueInvalid", "metadata.annotations", f'Invalid value: "{key}": no valid annotation key')
        for key in found
        if not is_label_key(key)
    ]
    if sum(len(key.encode()) + len(str(value).encode()) for key, value in found.items()) > ANNOTATIONS_BYTES_MAX:
        too_long = f"Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"
        causes.append(("FieldValueTooLong", "metadata.annotations", too_long))
    return causes


def _node(value: Object, before: Object | None) -> list[Cause]:
    causes: list[Cause] = []
    seen = set()
    for index, taint in enumerate((value.get("spec") or {}).get("taints") or []):
        field = f"spec.taints[{index}]"
        if not is_label_key(taint["key"]):
            causes.append(("FieldValueInvalid", f"{field}.key", f'Invalid value: "{taint["key"]}": no valid label key'))
        if taint["effect"] not in EFFECTS:
            known = ", ".join(f'"{effect}"' for effect in EFFECTS)
            message = f'Unsupported value: "{taint["effect"]}": supported values: {known}'
            causes.append(("FieldValueNotSupported", f"{field}.effect", message))
        if (taint["key"], taint["effect"]) in seen:
            causes.append(("FieldValueDuplicate", field, f'Duplicate value: "{taint["key"]}:{taint["effect"]}"'))
        seen.add((taint["key"], taint["effect"]))
    return causes


def _pod(value: Object, before: Object | None) -> list[Cause]:
    spec = value.get("spec") or {}
    if not spec.get("containers"):
        return [("FieldValueRequired", "spec.containers", "Required value")]
    if before is None:
        return []
    changed = {key for key in {*spec, *before["spec"]} if spec.get(key) != before["spec"].get(key)}
    if _without_images(spec) == _without_images(before["spec"]):
        changed -= {"containers", "initContainers"}
    if changed - POD_FIELDS_THAT_CHANGE:
        message = f"Forbidden: pod updates may not change fields other than images and {sorted(POD_FIELDS_THAT_CHANGE)}"
        return [("FieldValueForbidden", "spec", message)]
    return []


def _without_images(spec: Object) -> list[Object]:
    lists = (spec.get(name) or [] for name in ("containers", "initContainers"))
    return [{key: inner for key, inner in container.items() if key != "image"} for some in lists for container in some]


def _budget(value: Object, before: Object | None) -> list[Cause]:
    spec = value.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        return [("FieldValueInvalid", "spec", "Invalid value: minAvailable and maxUnavailable cannot be both set")]
    causes = []
    for name in ("minAvailable", "maxUnavailable"):
        wanted = spec.get(name)
        if isinstance(wanted, str) and not re.fullmatch(r"\d{1,2}%|100%", wanted):
            causes.append(
                ("FieldValueInvalid", f"spec.{name}", f'Invalid value: "{wanted}": a percentage is 0% to 100%')
            )
        elif isinstance(wanted, int) and wanted < 0:
            causes.append(("FieldValueInvalid", f"spec.{name}", f"Invalid value: {wanted}: must not be negative"))
    return causes


def _event(kind: Kind, value: Object, before: Object | None, is_oldest: bool) -> list[Cause]:
    """`value` is in the core form. About a cluster-scoped object an event lives in `default` or `kube-system`."""
    namespace = value["metadata"].get("namespace", "")
    about = value["involvedObject"].get("namespace", "")
    is_new_style = bool(value.get("eventTime"))
    causes: list[Cause] = []
    if about:
        allowed = (about,)
    elif is_oldest:
        allowed = ("kube-system",) if is_new_style else ("default",)
    else:
        allowed = ("default", "kube-system")
    if namespace not in allowed:
        message = f'Invalid value: "{about}": does not match event.namespace'
        causes.append(("FieldValueInvalid", "involvedObject.namespace", message))
    if is_new_style or (kind.group and before is None):
        needed = {"eventTime": "eventTime", "reportingComponent": "reportingController"}
        needed |= {name: name for name in ("reportingInstance", "action", "reason")}
        causes += [
            ("FieldValueRequired", said, "Required value") for name, said in needed.items() if not value.get(name)
        ]
        if value.get("type") not in ("Normal", "Warning"):
            causes.append(
                ("FieldValueInvalid", "type", f'Invalid value: "{value.get("type", "")}": has to be Normal or Warning')
            )
    return causes
