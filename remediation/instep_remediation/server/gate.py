"""The gate before every route: who asks, and whether their token allows it. What is not listed needs `admin`."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from instep_collector.errors import Refused
from instep_collector.ingest import Application, Receive, Send, answer, read_body, refuse
from instep_collector.ingest import Scope as AsgiScope
from instep_collector.tokens import Principal, Scope, TokenBook

from instep_remediation.server.problems import MEDIA_TYPE, problem_bytes
from instep_remediation.server.sessions import Sessions

OPEN = ("/healthz", "/readyz")
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
BODY_BYTES_MAX = 64 * 1024
"""Of a change under /api or on the page; a reason has 1000 characters at most."""
SHOWN = ("/incidents/", "/nodes/", "/plans/")
"""What begins so is a page."""
PAGE_HEADERS = ((b"content-type", b"text/plain; charset=utf-8"),)


def required_scope(method: str, path: str) -> Scope:
    """Return what a request needs.

    >>> required_scope("GET", "/api/v1/incidents"), required_scope("POST", "/api/v1/plans/1/approve")
    (<Scope.VIEW: 'view'>, <Scope.OPERATE: 'operate'>)
    """
    if path.startswith(("/ingest/", "/control/")):
        return Scope.AGENT
    if path in ("/metrics", "/api/v1/page-links"):
        return Scope.VIEW
    if path == "/api/v1/breaker/reset" and method == "POST":
        return Scope.ADMIN
    if path.startswith("/api/") or is_page(path):
        return Scope.OPERATE if method in CHANGING else Scope.VIEW
    return Scope.ADMIN


def is_page(path: str) -> bool:
    """Whether a browser's session is enough: what it shows, and the forms on it.

    >>> is_page("/plans/7/approve"), is_page("/api/v1/plans")
    (True, False)
    """
    return path in ("/", "/page.js") or path.startswith(SHOWN)


class Gate:
    """ASGI application around all others."""

    def __init__(
        self, book: TokenBook, sessions: Sessions, *, ingest: Application, rest: Application, metrics_open: bool
    ) -> None:
        self._book = book
        self._sessions = sessions
        self._ingest = ingest
        self._rest = rest
        self._metrics_open = metrics_open

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it with one sentence."""
        if scope["type"] == "lifespan":
            await self._rest(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in OPEN or (path == "/metrics" and self._metrics_open):
            await self._rest(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if path == "/" and method == "HEAD" and scope["query_string"].startswith(b"link="):
            await answer(send, 200, b"", PAGE_HEADERS)  # A mail scanner or a preview looks: the link stays good.
            return
        if path == "/" and method == "GET" and scope["query_string"].startswith(b"link="):
            await self._redeem(scope["query_string"][5:].decode("latin-1"), send)
            return
        principal = self._book.find_header(headers.get(b"authorization"))
        if principal is None and is_page(path):
            session = self._sessions.find(headers.get(b"cookie"))
            if session is not None:
                scope["instep.session"], principal = session, session.principal
        if principal is None:
            await self._unknown(path, send)
        elif not principal.may(required_scope(method, path)):
            await _refuse(send, path, 403, missing_scope(method, path, principal))
        elif path.startswith("/api/") or is_page(path):
            scope["instep.principal"] = principal
            await self._bounded(scope, receive, send)
        else:
            scope["instep.principal"] = principal
            await (self._ingest if path.startswith("/ingest/") else self._rest)(scope, receive, send)

    async def _bounded(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body, which is small."""
        try:
            body = await read_body(scope, receive, BODY_BYTES_MAX)
        except Refused as refused:
            await _refuse(send, scope["path"], refused.status, refused.detail)
            return
        whole: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return whole.pop() if whole else await receive()

        await self._rest(scope, again, send)

    async def _redeem(self, secret: str, send: Send) -> None:
        session = self._sessions.redeem(secret)
        if session is None:
            await answer(
                send,
                401,
                b"This link was used before, is too old or is not known: ask for a new one with instep page link.",
                PAGE_HEADERS,
            )
            return
        await answer(
            send,
            303,
            b"",
            (
                (b"location", b"/"),
                (b"set-cookie", self._sessions.cookie(session).encode()),
                (b"cache-control", b"no-store"),
                (b"referrer-policy", b"no-referrer"),
            ),
        )

    async def _unknown(self, path: str, send: Send) -> None:
        if is_page(path):
            await answer(
                send,
                401,
                b"Open a one-time link: the one that the server printed at its start, or one that instep page link "
                b"prints.",
                PAGE_HEADERS,
            )
        else:
            await _refuse(send, path, 401, "A known token is needed: send it as Authorization: Bearer TOKEN.")


def missing_scope(method: str, path: str, principal: Principal) -> str:
    """Return why somebody who is known may not do this."""
    scope = required_scope(method, path)
    if is_page(path):
        return (
            f"This session may look and not decide: ask for a link with a token of scope {scope} (instep page link), "
            "and open it."
        )
    return f"This needs a token of scope {scope}: {principal.name} has {', '.join(sorted(principal.scopes))}."


async def _refuse(send: Send, path: str, status: int, detail: str) -> None:
    """Refuse a request: a page in a sentence, the API by a problem, others by `{"detail": "One sentence."}`."""
    if is_page(path):
        await answer(send, status, detail.encode(), PAGE_HEADERS)
        return
    if not path.startswith("/api/"):
        await refuse(send, status, detail)
        return
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await answer(send, status, problem_bytes(status, detail, path), tuple(headers))
