"""A request, read once: its resource, its verb in the words of RBAC, its options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from tests.cluster.api_server import wire
from tests.cluster.api_server.access import Call
from tests.cluster.api_server.errors import Object, bad_request, no_such_path
from tests.cluster.api_server.kinds import BY_PATH, Kind
from tests.cluster.api_server.resources import Deletion, Options
from tests.cluster.api_server.validation import BODY_BYTES_MAX

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "GET": "get", "DELETE": "delete"}
TRUE = ("true", "1")


@dataclass(frozen=True, slots=True)
class Request:
    """What came over the wire."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @classmethod
    async def read(cls, scope: Any, receive: Any) -> Request:
        """The whole request, its body included."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > BODY_BYTES_MAX:
                raise bad_request(f"the body is longer than {BODY_BYTES_MAX} bytes")
            if not message.get("more_body"):
                break
        query = {
            key: values[-1] for key, values in parse_qs(scope["query_string"].decode(), keep_blank_values=True).items()
        }
        headers = {key.decode().lower(): value.decode("latin-1") for key, value in scope["headers"]}
        return cls(scope["method"], scope["path"], query, headers, body)

    @property
    def content_type(self) -> str:
        """As sent; empty when there is none."""
        return self.headers.get("content-type", "")

    @property
    def accept(self) -> str:
        """As sent."""
        return self.headers.get("accept", "*/*")

    def is_on(self, name: str) -> bool:
        """Whether a switch in the query is on."""
        return self.query.get(name, "") in TRUE

    def read_body(self) -> Any:
        """The object that was sent."""
        if not self.body:
            raise bad_request("the request has no body")
        return wire.read(self.body, self.content_type)

    def options(self, subresource: str = "") -> Options:
        """How a write is meant."""
        agent = self.headers.get("user-agent", "unknown").partition("/")[0]
        dry_run = self.query.get("dryRun", "")
        if dry_run not in ("", "All"):
            raise bad_request(f"invalid dryRun {dry_run!r}: the only value is All")
        return Options(
            manager=self.query.get("fieldManager") or agent,
            is_dry_run=dry_run == "All",
            is_forced=self.is_on("force"),
            field_validation=self.query.get("fieldValidation", "Warn"),
            subresource=subresource,
        )

    def deletion(self, sent: Object | None = None) -> Deletion:
        """How a delete is meant: by its body, else by its query."""
        if sent is None:
            sent = wire.read(self.body, self.content_type) if self.body else {}
        wanted = sent.get("preconditions") or {}
        grace = sent.get("gracePeriodSeconds", self.query.get("gracePeriodSeconds"))
        return Deletion(
            grace_seconds=None if grace is None else int(grace),
            uid=wanted.get("uid"),
            resource_version=wanted.get("resourceVersion"),
            propagation=sent.get("propagationPolicy") or self.query.get("propagationPolicy") or "Background",
            is_dry_run="All" in (sent.get("dryRun") or []) or self.query.get("dryRun") == "All",
        )

    def table_include(self) -> str | None:
        """How much of each object a table row carries; None when no table is wanted."""
        first = self.accept.split(",")[0]
        if "as=Table" not in first.replace(" ", ""):
            return None
        return self.query.get("includeObject", "Metadata")


@dataclass(frozen=True, slots=True)
class Target:
    """The resource that a path names."""

    kind: Kind
    namespace: str
    name: str
    subresource: str

    @classmethod
    def of_path(cls, path: str) -> Target:
        """`/api/v1/namespaces/a/pods/b/eviction`; 404 for a resource that is not known."""
        parts = [part for part in path.split("/") if part]
        if parts[:1] == ["api"] and len(parts) >= 3:
            group, version, rest = "", parts[1], parts[2:]
        elif parts[:1] == ["apis"] and len(parts) >= 4:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            raise no_such_path()
        namespace = ""
        if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        kind = BY_PATH.get((group, version, rest[0]))
        if kind is None or len(rest) > 3 or (namespace and not kind.is_namespaced):
            raise no_such_path()
        name, subresource = (*rest[1:], "", "")[:2]
        known = (*kind.subresources, *(("status",) if kind.has_status else ()), "finalize")
        if (subresource and subresource not in known) or (name and kind.is_namespaced and not namespace):
            raise no_such_path()
        return cls(kind, namespace, name, subresource)

    def call(self, request: Request) -> Call:
        """What it is in the words of RBAC."""
        verb = VERBS.get(request.method, request.method.lower())
        if not self.name and verb in ("get", "delete"):
            verb = {"get": "watch" if request.is_on("watch") else "list", "delete": "deletecollection"}[verb]
        return Call(verb, self.kind.group, self.kind.plural, self.subresource, self.namespace, self.name)


def encode(value: Any) -> bytes:
    """JSON on one line, as the server writes it."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
