"""The agent's line to the server: at least once, oldest first, in its own thread, so that it stalls nothing."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator

import msgspec

from instep_agent.errors import AgentError, FrameRefused, ServerUnreachable, TokenRefused
from instep_agent.metric import counter
from instep_agent.uplink.connection import TLS_OF_THE_SYSTEM, Connection, Tls, keep_trying
from instep_agent.uplink.spool import SPOOL_METRICS, Spool, without_samples
from instep_agent.wire import Dictionary, Frame, Sample

UPLINK_METRICS = (
    counter("instep_agent_uplink_sent_total", "Frames that the server acknowledged, since the agent's start."),
    counter("instep_agent_uplink_failures_total", "Tries that got no answer, or one that asks to come again."),
    counter("instep_agent_uplink_refused_total", "Frames that the server refused for good."),
    *SPOOL_METRICS,
)
IDLE_SECONDS = 1.0
_DICTIONARY_PATH = "/ingest/v1/dictionary"
_FRAMES_PATH = "/ingest/v1/frames"

log = logging.getLogger("instep.agent.uplink")


class Uplink:
    """Sends what is in the spool. Start it, `put` frames, `close` it."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        spool: Spool,
        *,
        random_unit: Callable[[], float] = random.random,
        tls: Tls = TLS_OF_THE_SYSTEM,
    ) -> None:
        """`token` gives the bearer token and is asked for each request, so that a token can be changed in its file."""
        self._connection = Connection(url, token, meanwhile="frames are kept until it does", tls=tls)
        self._spool = spool
        self._random_unit = random_unit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self.refused_at_start = threading.Event()
        """Set when the very first answer of the server was 401."""
        self.on_refused: Callable[[], None] = lambda: None
        """Called when that is set."""
        self.sent_total = 0
        self.failures_total = 0
        self.refused_total = 0

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, frame: Frame, dictionary: Dictionary) -> None:
        """Hand over a frame and the dictionary it refers to; it is on disk when this returns."""
        if frame.dictionary_hash and not self._spool.has_dictionary(dictionary.hash):
            self._spool.keep_dictionary(dictionary.hash, msgspec.msgpack.encode(dictionary))
        self._spool.append(msgspec.msgpack.encode(frame), has_events=bool(frame.events))

    def samples(self) -> Iterator[Sample]:
        """Yield how sending goes, and how full the spool is."""
        for name, value in (
            ("instep_agent_uplink_sent_total", self.sent_total),
            ("instep_agent_uplink_failures_total", self.failures_total),
            ("instep_agent_uplink_refused_total", self.refused_total),
        ):
            yield Sample(name=name, labels=(), value=float(value))
        yield from self._spool.samples()

    def close(self, timeout_seconds: float = 0.5) -> None:
        """Stop sending; what was not acknowledged stays in the spool."""
        self._stop.set()
        self._spool.wake()
        self._connection.interrupt()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        keep_trying(self._send_oldest, self._stop, self._note, self._random_unit)
        self._connection.close()

    def _note(self, error: AgentError, failures: int) -> None:
        """Log the first failure of a row; a server that is away for an hour needs no thousand lines."""
        self.failures_total += 1
        if self._stop.is_set():
            return
        if isinstance(error, TokenRefused) and self._connection.answers == 1:
            self.refused_at_start.set()
            self.on_refused()
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
        except AgentError:
            self._spool.let_go()
            raise
        self._spool.remove(entry)

    def _send(self, data: bytes) -> None:
        answer = self._connection.post(_FRAMES_PATH, data)
        if answer.status == 409:
            if not self._send_dictionary(data):
                data = without_samples(data)
            answer = self._connection.post(_FRAMES_PATH, data)
        if answer.status == 409:
            raise ServerUnreachable("The server still does not know the dictionary that it was just sent.")
        if answer.status != 200:
            raise FrameRefused(
                f"The server refused a frame for good ({answer.status}: {answer.detail}); it was dropped."
            )

    def _send_dictionary(self, data: bytes) -> bool:
        """Send the dictionary of a frame; give whether the server has it now. Without it the values mean nothing."""
        name = msgspec.msgpack.decode(data, type=Frame).dictionary_hash
        dictionary = self._spool.dictionary(name)
        if dictionary is None:
            log.warning("The server does not know the dictionary %s, nor does the agent: values were dropped.", name)
            return False
        answer = self._connection.post(_DICTIONARY_PATH, dictionary)
        if answer.status not in (200, 204):
            log.error("The server refused a dictionary (%d: %s): values were dropped.", answer.status, answer.detail)
            return False
        return True
