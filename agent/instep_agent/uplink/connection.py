"""One kept-alive HTTP connection from the agent to the server; agents only ever connect outwards."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from instep_agent.errors import AgentError, ConfigurationInvalid, ServerUnreachable, TokenRefused, UplinkError
from instep_agent.uplink.http_exchange import HttpSocket

if TYPE_CHECKING:
    import ssl

REQUEST_TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 5.0
ANSWER_BYTES_MAX = 65_536
MSGPACK, JSON = "application/msgpack", "application/json"
_COME_AGAIN = (404, 408, 425, 426, 429)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    status: int
    body: bytes

    @property
    def detail(self) -> str:
        """The server's sentence, if it sent one."""
        try:
            said = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "no explanation"
        return str(said.get("detail", "no explanation"))[:300] if isinstance(said, dict) else "no explanation"


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust and who we are, for an https:// server. A new connection reads files that changed again."""

    ca_file: str = ""
    """Certificates of the authorities that the server's must come from; those of the system when empty."""
    cert_file: str = ""
    """Our own certificate, for a server that wants one (mTLS)."""
    key_file: str = ""
    """Its key; empty when it is in the same file."""

    def context(self) -> ssl.SSLContext:
        """Give the context. Raise ConfigurationInvalid for a file that cannot be used."""
        import ssl  # 1.5 MiB, which an agent without TLS does not need

        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            named = ", ".join(filter(None, (self.ca_file, self.cert_file, self.key_file)))
            raise ConfigurationInvalid(
                f"Cannot use the certificates in {named} ({getattr(error, 'strerror', None) or error}): each must be a "
                "PEM file that the agent may read, and the key that of the certificate."
            ) from error
        return context

    def changed_ns(self) -> tuple[int, ...]:
        """Give when each file was last changed: other numbers mean another context."""
        return tuple(
            Path(name).stat().st_mtime_ns
            for name in (self.ca_file, self.cert_file, self.key_file)
            if name and Path(name).exists()
        )


TLS_OF_THE_SYSTEM = Tls()


class Connection:
    """Opened when needed. One thread exchanges; any may `interrupt`."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        meanwhile: str,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
        tls: Tls = TLS_OF_THE_SYSTEM,
    ) -> None:
        """`meanwhile` ends the sentence about a server that does not answer.

        Raise ConfigurationInvalid unless `url` is http:// or https:// with a host, and the certificates can be used.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationInvalid(f"The server URL {url!r} is not one: use http://HOST:PORT or https://HOST:PORT.")
        self._url = url
        self._is_tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._is_tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._meanwhile = meanwhile
        self._timeout_seconds = timeout_seconds
        self._http: HttpSocket | None = None
        self._is_interrupted = False
        self._tls = tls
        self._context = tls.context() if self._is_tls else None
        self._changed_ns = tls.changed_ns()
        self.answers = 0
        """Answers of the server so far, of whatever kind."""

    def get(self, path: str) -> Answer:
        """Ask; raises as `post` does."""
        return self._checked("GET", path, None, "")

    def post(self, path: str, body: bytes, content_type: str = MSGPACK) -> Answer:
        """Give an answer that says something about the body.

        Raise TokenRefused on 401, ServerUnreachable on no answer and on one that asks to come again.
        """
        return self._checked("POST", path, body, content_type)

    def interrupt(self) -> None:
        """Break an exchange that is going on in another thread, and let none begin; closing is that thread's part."""
        self._is_interrupted = True
        connection = self._http
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):  # it may be disconnected already
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close; the next request opens it again, unless it was interrupted."""
        connection, self._http = self._http, None
        if connection is not None:
            connection.close()

    def _checked(self, method: str, path: str, body: bytes | None, content_type: str) -> Answer:
        answer = self._exchange(method, path, body, content_type)
        self.answers += 1
        status, detail = answer.status, answer.detail
        if status == 401:
            raise TokenRefused(
                f"The server at {self._url} does not accept the agent's token ({detail}): give the right "
                "one with --token-file or INSTEP_TOKEN."
            )
        if status in _COME_AGAIN or status >= 500 or 300 <= status < 400:
            raise ServerUnreachable(
                f"The server at {self._url} cannot take this now ({status}: {detail}); {self._meanwhile}."
            )
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None, content_type: str) -> Answer:
        """The server may have closed a kept connection meanwhile, so one that was used before gets a second try."""
        if self._is_interrupted:
            raise ServerUnreachable("The connection to the server is being closed.")
        for is_last in [True] if self._http is None else [False, True]:
            connection = self._http = self._http or self._new()
            headers = {"Authorization": f"Bearer {self._checked_token()}"}
            if content_type:
                headers["Content-Type"] = content_type
            try:
                return Answer(
                    *connection.exchange(method, self._prefix + path, body, headers, answer_bytes_max=ANSWER_BYTES_MAX)
                )
            except OSError as error:
                self.close()
                if distrust := getattr(error, "verify_message", ""):  # of an ssl.SSLCertVerificationError
                    raise ServerUnreachable(
                        f"The certificate of the server at {self._url} is not trusted ({distrust}): name "
                        f"its authority with --ca-file or ca_file; {self._meanwhile}."
                    ) from error
                if is_last or self._is_interrupted:
                    raise ServerUnreachable(
                        f"The server at {self._url} does not answer ({error}); {self._meanwhile}."
                    ) from error
        raise AssertionError("the last try returns or raises")

    def _checked_token(self) -> str:
        token = self._token()
        if not (token.isascii() and token.isprintable()):
            raise ConfigurationInvalid("The token for the server has characters in it that no token has.")
        return token

    def _new(self) -> HttpSocket:
        if self._is_tls:
            changed_ns = self._tls.changed_ns()
            if self._context is None or changed_ns != self._changed_ns:
                self._context, self._changed_ns = self._tls.context(), changed_ns
        return HttpSocket(self._host, self._port, self._timeout_seconds, self._context)


def keep_trying(
    turn: Callable[[], None],
    stop: threading.Event,
    note: Callable[[AgentError, int], None],
    random_unit: Callable[[], float],
) -> None:
    """Take turns until `stop` is set; after one that fails, note it with the failures in a row and wait ever longer."""
    failures = 0
    while not stop.is_set():
        try:
            turn()
            failures = 0
        except (UplinkError, ConfigurationInvalid) as error:
            failures += 1
            note(error, failures)
            stop.wait(backoff_seconds(failures, random_unit()))


def backoff_seconds(failures: int, unit: float) -> float:
    """Give the wait after so many failures in a row: doubling up to a limit, spread by `unit` (0 to 1) over its upper
    half.

    >>> backoff_seconds(1, 1.0), backoff_seconds(3, 0.0), backoff_seconds(99, 1.0)
    (0.1, 0.2, 5.0)
    """
    whole = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 16))
    return whole * (0.5 + unit / 2)
