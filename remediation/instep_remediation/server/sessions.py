"""One-time links to the page and the browser sessions they begin. Only hashes are held; a restart ends them all.

A link carries what its asker's token allows, and never more than deciding on plans: the name for the audit log, and
whether the session may decide. The link that the server prints at its start goes into logs, so it only shows.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from instep_collector.clock import Clock
from instep_collector.tokens import Principal, Scope

COOKIE = "instep_session"
SESSION_SECONDS = 12 * 3600.0
DECIDING_SECONDS = 2 * 3600.0
"""So long a session may decide on plans; afterwards it only shows."""
DECIDING_LINK_SECONDS = 600.0
"""A link that lets decide and is not opened in this time opens nothing."""
SESSIONS_MAX = 1000
LINKS_MAX = 100

ONLOOKER = Principal("page", frozenset({Scope.VIEW}))
"""Whom the link belongs to that the server prints at its start."""


@dataclass(frozen=True, slots=True)
class Session:
    """One browser's session as a request finds it."""

    holder: str
    """Name of the token whose link began it; stands in the audit log."""
    may_decide: bool
    form_token: str
    """Stands in each form: another site can neither read nor guess it."""

    @property
    def principal(self) -> Principal:
        """Who asks, and with which scope."""
        return Principal(self.holder, frozenset({Scope.OPERATE if self.may_decide else Scope.VIEW}))

    def has_form_token(self, token: str) -> bool:
        """Whether a form was made for this session."""
        return hmac.compare_digest(self.form_token.encode(), token.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class _Right:
    """What a link or session stands for; moments are monotonic."""

    holder: str
    may_decide: bool
    made_at: float


class Sessions:
    """The links and sessions of one server."""

    def __init__(self, clock: Clock, *, is_secure: bool = False) -> None:
        self._clock = clock
        self._is_secure = is_secure
        self._links: OrderedDict[str, _Right] = OrderedDict()
        self._sessions: OrderedDict[str, _Right] = OrderedDict()

    def new_link(self, asker: Principal = ONLOOKER) -> str:
        """Return the secret of a link that works once, with what the asker's token allows."""
        secret = secrets.token_urlsafe(24)
        right = _Right(asker.name, asker.may(Scope.OPERATE), self._clock.monotonic())
        _keep(self._links, _hashed(secret), right, LINKS_MAX)
        return secret

    def redeem(self, secret: str) -> str | None:
        """Return a new session's value for a link's secret, which is then used up; None for any other."""
        link = self._links.pop(_hashed(secret), None)
        now = self._clock.monotonic()
        if link is None or (link.may_decide and now - link.made_at > DECIDING_LINK_SECONDS):
            return None
        value = secrets.token_urlsafe(32)
        _keep(self._sessions, _hashed(value), _Right(link.holder, link.may_decide, now), SESSIONS_MAX)
        return value

    def find(self, cookie_header: bytes | None) -> Session | None:
        """Return the session that a Cookie header carries, None when there is none or it has ended."""
        value = _cookie_value(cookie_header)
        right = self._sessions.get(_hashed(value)) if value else None
        if right is None:
            return None
        age_seconds = self._clock.monotonic() - right.made_at
        if age_seconds >= SESSION_SECONDS:
            return None
        may_decide = right.may_decide and age_seconds < DECIDING_SECONDS
        return Session(right.holder, may_decide, hmac.new(value.encode(), b"form", hashlib.sha256).hexdigest())

    def cookie(self, value: str) -> str:
        """Return the Set-Cookie header of a session.

        Lax, not Strict: links to the page stand in chats and alerts, and a browser sends a strict cookie on no way that
        begins on another site, this answer's own redirect included. Lax is sent with no form of another site.
        """
        secure = "; Secure" if self._is_secure else ""
        return f"{COOKIE}={value}; HttpOnly; SameSite=Lax; Path=/; Max-Age={int(SESSION_SECONDS)}{secure}"


def _keep(kept: OrderedDict[str, _Right], key: str, right: _Right, limit: int) -> None:
    kept[key] = right
    if len(kept) > limit:
        kept.popitem(last=False)


def _cookie_value(header: bytes | None) -> str:
    try:
        morsel = SimpleCookie((header or b"").decode("latin-1")).get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
