"""The gate before every route: who asks, and whether their token allows it. What is not listed needs `admin`."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from instep_collector.clock import Clock
from instep_collector.errors import Refused
from instep_collector.ingest import Application, Receive, Send, answer, read_body, refuse
from instep_collector.ingest import Scope as AsgiScope
from instep_collector.tokens import Principal, Scope, TokenBook

from instep_remediation.server.problems import MEDIA_TYPE, problem_bytes

COOKIE = "instep_session"
SESSION_SECONDS = 12 * 3600.0
SESSIONS_MAX = 1000
LINKS_MAX = 100
OPEN = ("/healthz", "/readyz")
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
BODY_BYTES_MAX = 64 * 1024
"""Of a change under /api; a reason has 1000 characters at most."""
PAGE_HEADERS = ((b"content-type", b"text/plain; charset=utf-8"),)


def required_scope(method: str, path: str) -> Scope:
    """Return what a request needs.

    >>> required_scope("GET", "/api/v1/incidents"), required_scope("POST", "/api/v1/plans/1/approve")
    (<Scope.VIEW: 'view'>, <Scope.OPERATE: 'operate'>)
    """
    if path.startswith(("/ingest/", "/control/")):
        return Scope.AGENT
    if path in ("/", "/metrics", "/api/v1/page-links") or path.startswith("/incidents/"):
        return Scope.VIEW
    if path == "/api/v1/breaker/reset" and method == "POST":
        return Scope.ADMIN
    if path.startswith("/api/"):
        return Scope.OPERATE if method in CHANGING else Scope.VIEW
    return Scope.ADMIN


def is_page(path: str) -> bool:
    """Whether a browser's session is enough: pages for reading only."""
    return path == "/" or path.startswith("/incidents/")


class Sessions:
    """One-time links and the browser sessions they begin. Only hashes are held; a restart ends them all."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._links: OrderedDict[str, None] = OrderedDict()
        self._sessions: OrderedDict[str, float] = OrderedDict()

    def new_link(self) -> str:
        """Return the secret of a link that works once."""
        secret = secrets.token_urlsafe(24)
        self._links[_hashed(secret)] = None
        if len(self._links) > LINKS_MAX:
            self._links.popitem(last=False)
        return secret

    def redeem(self, secret: str) -> str | None:
        """Return a new session's value for a link's secret, which is then used up; None for any other."""
        if self._links.pop(_hashed(secret), False) is False:
            return None
        session = secrets.token_urlsafe(32)
        self._sessions[_hashed(session)] = self._clock.monotonic() + SESSION_SECONDS
        if len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session

    def is_valid(self, cookie_header: bytes | None) -> bool:
        """Whether a Cookie header carries a session that has not ended."""
        if cookie_header is None:
            return False
        try:
            morsel = SimpleCookie(cookie_header.decode("latin-1")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and self._sessions.get(_hashed(morsel.value), 0.0) > self._clock.monotonic()


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


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
        if path == "/" and scope["query_string"].startswith(b"link="):
            await self._redeem(scope["query_string"][5:].decode("latin-1"), send)
            return
        principal = self._book.find_header(headers.get(b"authorization"))
        if principal is None and is_page(path) and method == "GET" and self._sessions.is_valid(headers.get(b"cookie")):
            principal = Principal("page", frozenset({Scope.VIEW}))
        if principal is None:
            await self._unknown(path, send)
        elif not principal.may(required_scope(method, path)):
            await _refuse(
                send,
                path,
                403,
                f"This needs a token of scope {required_scope(method, path)}: "
                f"{principal.name} has {', '.join(sorted(principal.scopes))}.",
            )
        elif path.startswith("/api/"):
            scope["instep.principal"] = principal
            await self._api(scope, receive, send)
        else:
            scope["instep.principal"] = principal
            await (self._ingest if path.startswith("/ingest/") else self._rest)(scope, receive, send)

    async def _api(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Pass a request to the API with its whole body, which is small."""
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
                b"This link was used before or is not known: ask for a new one with "
                b"POST /api/v1/page-links, or start the server again.",
                PAGE_HEADERS,
            )
            return
        # Lax, not Strict: links to the page stand in chats and alerts, and a browser sends a strict cookie on no way
        # that begins on another site, this answer's own redirect included. The session may only read.
        cookie = f"{COOKIE}={session}; HttpOnly; SameSite=Lax; Path=/; Max-Age={int(SESSION_SECONDS)}"
        await answer(
            send,
            303,
            b"",
            (
                (b"location", b"/"),
                (b"set-cookie", cookie.encode()),
                (b"cache-control", b"no-store"),
                (b"referrer-policy", b"no-referrer"),
            ),
        )

    async def _unknown(self, path: str, send: Send) -> None:
        if is_page(path):
            await answer(
                send,
                401,
                b"Open the one-time link that the server printed at its start, or send a token of scope "
                b"view as Authorization: Bearer TOKEN.",
                PAGE_HEADERS,
            )
        else:
            await _refuse(send, path, 401, "A known token is needed: send it as Authorization: Bearer TOKEN.")


async def _refuse(send: Send, path: str, status: int, detail: str) -> None:
    """Refuse a request: under /api with a problem, elsewhere with `{"detail": "One sentence."}`."""
    if not path.startswith("/api/"):
        await refuse(send, status, detail)
        return
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await answer(send, status, problem_bytes(status, detail, path), tuple(headers))
