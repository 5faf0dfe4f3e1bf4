"""Bodies as they come over the wire: JSON and YAML, and the few protobuf messages that kubectl sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.cluster.api_server.errors import Object, bad_request, unsupported_media_type

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
BODIES = (JSON, YAML, PROTOBUF)
MAGIC = b"k8s\x00"

Message = dict[int, tuple[str, Any]]
"""Field number → (JSON name, what it is): a type, the message within, `[str]` for many texts, `(TEXTS,)` for a map."""
RESOURCE: Message = dict(
    enumerate(
        ((name, str) for name in ("namespace", "verb", "group", "version", "resource", "subresource", "name")), start=1
    )
)
PRECONDITIONS: Message = {1: ("uid", str), 2: ("resourceVersion", str)}
DELETION: Message = {
    1: ("gracePeriodSeconds", int),
    2: ("preconditions", PRECONDITIONS),
    4: ("propagationPolicy", str),
    5: ("dryRun", [str]),
}
TEXTS: Message = {1: ("key", str), 2: ("value", str)}
METADATA: Message = {
    **{1: ("name", str), 2: ("generateName", str), 3: ("namespace", str), 5: ("uid", str)},
    **{11: ("labels", (TEXTS,)), 12: ("annotations", (TEXTS,))},
}
MESSAGES: dict[str, Message] = {
    "SelfSubjectAccessReview": {
        1: ("metadata", METADATA),
        2: (
            "spec",
            {1: ("resourceAttributes", RESOURCE), 2: ("nonResourceAttributes", {1: ("path", str), 2: ("verb", str)})},
        ),
    },
    "SelfSubjectRulesReview": {1: ("metadata", METADATA), 2: ("spec", {1: ("namespace", str)})},
    "SelfSubjectReview": {1: ("metadata", METADATA)},
    "Eviction": {1: ("metadata", METADATA), 2: ("deleteOptions", DELETION)},
    "DeleteOptions": DELETION,
    "Namespace": {1: ("metadata", METADATA)},
    "ServiceAccount": {1: ("metadata", METADATA)},
    "TokenRequest": {1: ("metadata", METADATA), 2: ("spec", {1: ("audiences", [str]), 4: ("expirationSeconds", int)})},
}


def media_type(header: str) -> str:
    """The type without its parameters."""
    return header.partition(";")[0].strip().lower()


def read(body: bytes, content_type: str) -> Any:
    """What a create, a replace or a delete carries. No type at all is read as JSON, an unknown one is 415."""
    kind = media_type(content_type) or JSON
    if kind == JSON:
        return read_json(body)
    if kind == YAML:
        return read_yaml(body)
    if kind == PROTOBUF:
        return read_protobuf(body)
    raise unsupported_media_type(BODIES)


def read_json(body: bytes) -> Any:
    """400 when it is none."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise bad_request(f"the object provided is unrecognized: {error}") from None


def read_yaml(body: bytes) -> Any:
    """YAML, of which JSON is a part."""
    try:
        return json.loads(body)
    except ValueError:
        try:
            return yaml.load(body, Loader=_Plain)
        except yaml.YAMLError as error:
            raise bad_request(f"error decoding YAML: {error}") from None


class _Plain(yaml.SafeLoader):
    """Moments stay text, as in JSON."""


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_protobuf(body: bytes) -> Object:
    """One of `MESSAGES` in Kubernetes' envelope; 415 for every other kind."""
    if not body.startswith(MAGIC):
        raise bad_request("the body is no Kubernetes protobuf message")
    envelope = _decode(body[len(MAGIC) :], {1: ("type", {1: ("apiVersion", str), 2: ("kind", str)}), 2: ("raw", bytes)})
    kind = envelope.get("type", {}).get("kind", "")
    if kind not in MESSAGES:
        raise unsupported_media_type((JSON, YAML))
    return {**envelope["type"], **_decode(envelope.get("raw", b""), MESSAGES[kind])}


def _decode(data: bytes, message: Message) -> Object:
    found: Object = {}
    for number, value in _fields(data):
        name, means = message.get(number, ("", None))
        if isinstance(means, list):
            found.setdefault(name, []).append(value.decode())
        elif isinstance(means, tuple):
            pair = _decode(value, means[0])
            found.setdefault(name, {})[pair.get("key", "")] = pair.get("value", "")
        elif isinstance(means, dict):
            found[name] = _decode(value, means)
        elif means is str:
            if value:
                found[name] = value.decode()
        elif means is not None:
            found[name] = means(value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise bad_request(f"unexpected wire type {kind} in a protobuf message")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise bad_request("a protobuf message ends in the middle of a number")
