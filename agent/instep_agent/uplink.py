"""The agent's line to the server: at least once, oldest first, in its own thread, so that it stalls nothing."""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import socket
import ssl
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from instep_agent.errors import AgentError, ConfigurationInvalid, FrameRefused, ServerUnreachable, TokenRefused
from instep_agent.spool import Spool
from instep_agent.wire import Dictionary, Frame

REQUEST_TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 5.0
IDLE_SECONDS = 1.0
ANSWER_BYTES_MAX = 65_536
_DICTIONARY_PATH = "/ingest/v1/dictionary"
_FRAMES_PATH = "/ingest/v1/frames"

log = logging.getLogger("instep.agent.uplink")


class Uplink:
    """Sends what is in the spool. Start it, `put` frames, `close` it."""

    def __init__(
        self, url: str, token: Callable[[], str], spool: Spool, *, random_unit: Callable[[], float] = random.random
    ) -> None:
        """`token` gives the bearer token and is asked for each request, so that a token can be changed in its file."""
        self._connection = Connection(url, token)
        self._spool = spool
        self._random_unit = random_unit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self.refused_at_start = threading.Event()
        """Set when the very first answer of the server was 401."""
        self.sent_total = 0
        self.failures_total = 0
        self.refused_total = 0

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, frame: Frame, dictionary: Dictionary) -> None:
        """Hand over a frame and the dictionary it refers to; it is on disk when this returns."""
        self._spool.keep_dictionary(dictionary.hash, msgspec.msgpack.encode(dictionary))
        self._spool.append(msgspec.msgpack.encode(frame), has_events=bool(frame.events))

    def close(self, timeout_seconds: float = 0.5) -> None:
        """Stop sending; what was not acknowledged stays in the spool."""
        self._stop.set()
        self._spool.wake()
        self._connection.interrupt()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self._send_oldest()
                failures = 0
            except (ServerUnreachable, TokenRefused, ConfigurationInvalid) as error:
                failures += 1
                self.failures_total += 1
                self._note(error, failures)
                self._stop.wait(backoff_seconds(failures, self._random_unit()))
        self._connection.close()

    def _note(self, error: AgentError, failures: int) -> None:
        """Log the first failure of a row; a server that is away for an hour needs no thousand lines."""
        if self._stop.is_set():
            return
        if isinstance(error, TokenRefused) and self._connection.answers == 1:
            self.refused_at_start.set()
        log.log(logging.WARNING if failures == 1 else logging.DEBUG, "%s", error)

    def _send_oldest(self) -> None:
        found = self._spool.wait_oldest(IDLE_SECONDS)
        if found is None or self._stop.is_set():
            return
        entry, data = found
        try:
            self._send(data)
            self.sent_total += 1
        except FrameRefused as error:
            self.refused_total += 1
            log.error("%s", error)
        self._spool.remove(entry)

    def _send(self, data: bytes) -> None:
        status, detail = self._connection.post(_FRAMES_PATH, data)
        if status == 409:
            self._send_dictionary(data)
            status, detail = self._connection.post(_FRAMES_PATH, data)
        if status == 409:
            raise ServerUnreachable("The server still does not know the dictionary that it was just sent.")
        if status != 200:
            raise FrameRefused(f"The server refused a frame for good ({status}: {detail}); it was dropped.")

    def _send_dictionary(self, data: bytes) -> None:
        name = msgspec.msgpack.decode(data, type=Frame).dictionary_hash
        dictionary = self._spool.dictionary(name)
        if dictionary is None:
            raise FrameRefused(
                f"The server does not know the dictionary {name}, and the agent no longer has it; a frame was dropped."
            )
        status, detail = self._connection.post(_DICTIONARY_PATH, dictionary)
        if status not in (200, 204):
            raise FrameRefused(f"The server refused the dictionary of a frame ({status}: {detail}); it was dropped.")


class Connection:
    """One kept-alive HTTP connection that is opened when needed."""

    def __init__(self, url: str, token: Callable[[], str]) -> None:
        """Raise ConfigurationInvalid unless `url` is http:// or https:// with a host."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationInvalid(f"The server URL {url!r} is not one: use http://HOST:PORT or https://HOST:PORT.")
        self._url = url
        self._host, self._port = parts.hostname, parts.port
        self._is_tls = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._http: http.client.HTTPConnection | None = None
        self._is_interrupted = False
        self.answers = 0
        """Answers of the server so far, of whatever kind."""

    def post(self, path: str, body: bytes) -> tuple[int, str]:
        """Give status and detail of an answer that says something about the body.

        Raise TokenRefused on 401, ServerUnreachable on no answer and on one that asks to come again.
        """
        status, answer = self._exchange(path, body)
        self.answers += 1
        detail = _detail(answer)
        if status == 401:
            raise TokenRefused(
                f"The server at {self._url} does not accept the agent's token ({detail}): give the right "
                "one with --token-file or INSTEP_TOKEN."
            )
        if status in (404, 408, 425, 426, 429) or status >= 500 or 300 <= status < 400:
            raise ServerUnreachable(
                f"The server at {self._url} cannot take frames now ({status}: {detail}); they are kept."
            )
        return status, detail

    def interrupt(self) -> None:
        """Break an exchange that is going on in another thread, and let none begin; closing is that thread's part."""
        self._is_interrupted = True
        connection = self._http
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):  # it may be disconnected already
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close; the next `post` opens it again, unless it was interrupted."""
        connection, self._http = self._http, None
        if connection is not None:
            connection.close()

    def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        """The server may have closed a kept connection meanwhile, so one that was used before gets a second try."""
        if self._is_interrupted:
            raise ServerUnreachable("The uplink is being closed.")
        for is_last in [True] if self._http is None else [False, True]:
            connection = self._http = self._http or self._new()
            try:
                connection.request(
                    "POST",
                    self._prefix + path,
                    body,
                    {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/msgpack"},
                )
                response = connection.getresponse()
                return response.status, response.read(ANSWER_BYTES_MAX)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if is_last or self._is_interrupted:
                    raise ServerUnreachable(
                        f"The server at {self._url} does not answer ({error}); frames are kept until it does."
                    ) from error
        raise AssertionError("the last try returns or raises")

    def _new(self) -> http.client.HTTPConnection:
        if self._is_tls:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=REQUEST_TIMEOUT_SECONDS, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=REQUEST_TIMEOUT_SECONDS)


def backoff_seconds(failures: int, unit: float) -> float:
    """Give the wait after so many failures in a row: doubling up to a limit, spread by `unit` (0 to 1) over its upper
    half.

    >>> backoff_seconds(1, 1.0), backoff_seconds(3, 0.0), backoff_seconds(99, 1.0)
    (0.1, 0.2, 5.0)
    """
    whole = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 16))
    return whole * (0.5 + unit / 2)


def _detail(answer: bytes) -> str:
    """Give the server's sentence, if it sent one."""
    try:
        said = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "no explanation"
    return str(said.get("detail", "no explanation"))[:300] if isinstance(said, dict) else "no explanation"
