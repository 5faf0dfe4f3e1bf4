"""The agent's line to the server: at least once, oldest first, in its own thread, so that it stalls nothing."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

import msgspec

from instep_agent.connection import Connection, backoff_seconds
from instep_agent.errors import AgentError, ConfigurationInvalid, FrameRefused, ServerUnreachable, TokenRefused
from instep_agent.spool import Spool
from instep_agent.wire import Dictionary, Frame

IDLE_SECONDS = 1.0
_DICTIONARY_PATH = "/ingest/v1/dictionary"
_FRAMES_PATH = "/ingest/v1/frames"

log = logging.getLogger("instep.agent.uplink")


class Uplink:
    """Sends what is in the spool. Start it, `put` frames, `close` it."""

    def __init__(
        self, url: str, token: Callable[[], str], spool: Spool, *, random_unit: Callable[[], float] = random.random
    ) -> None:
        """`token` gives the bearer token and is asked for each request, so that a token can be changed in its file."""
        self._connection = Connection(url, token, meanwhile="frames are kept until it does")
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
        answer = self._connection.post(_FRAMES_PATH, data)
        if answer.status == 409:
            self._send_dictionary(data)
            answer = self._connection.post(_FRAMES_PATH, data)
        if answer.status == 409:
            raise ServerUnreachable("The server still does not know the dictionary that it was just sent.")
        if answer.status != 200:
            raise FrameRefused(
                f"The server refused a frame for good ({answer.status}: {answer.detail}); it was dropped."
            )

    def _send_dictionary(self, data: bytes) -> None:
        name = msgspec.msgpack.decode(data, type=Frame).dictionary_hash
        dictionary = self._spool.dictionary(name)
        if dictionary is None:
            raise FrameRefused(
                f"The server does not know the dictionary {name}, and the agent no longer has it; a frame was dropped."
            )
        answer = self._connection.post(_DICTIONARY_PATH, dictionary)
        if answer.status not in (200, 204):
            raise FrameRefused(
                f"The server refused the dictionary of a frame ({answer.status}: {answer.detail}); it was dropped."
            )
