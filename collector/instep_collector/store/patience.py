"""How long a database that does not answer is waited for. The event loop asks it, so ingest and detection wait as
long.

A database that is stopped, or whose disk hangs, keeps its connections: TCP notices nothing, and the answer never comes.
So an answer has a limit here, and after a failure a thread asks until there is an answer; nobody else waits meanwhile.
A SQLite file that another program has locked is waited for likewise, for as long as its connections say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from typing import Any

from sqlalchemy import Engine, event, text
from sqlalchemy.exc import SQLAlchemyError

ANSWER_SECONDS_MAX = 6.0
"""More than `lock_timeout`, which is told by a better sentence."""
ASK_SECONDS = 0.5
"""Between two questions to a database that is away."""

log = logging.getLogger(__name__)


class Patience:
    """Whether the database is worth asking."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_away = threading.Event()
        self._is_over = threading.Event()
        self._asking: threading.Thread | None = None
        self._question = "SELECT 1"
        if engine.dialect.name == "sqlite":
            self._question = "BEGIN IMMEDIATE"  # Whoever may read may still have to wait to write.
        else:
            event.listen(engine, "connect", _limit)

    @property
    def is_lost(self) -> bool:
        """Whether the database is known to be away: to ask it would be to wait."""
        return self._is_away.is_set()

    def lose(self) -> None:
        """Ask in the background from now on, until there is an answer."""
        if not self._is_away.is_set() and not self._is_over.is_set():
            self._is_away.set()
            self._asking = threading.Thread(target=self._ask, name="database", daemon=True)
            self._asking.start()

    def close(self) -> None:
        """Ask no more."""
        self._is_over.set()
        if self._asking is not None:
            self._asking.join(ANSWER_SECONDS_MAX)

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                with self._engine.connect() as connection:
                    connection.execute(text(self._question))
                    connection.rollback()
            except SQLAlchemyError as error:
                log.debug("The database is still away: %s", error)
                self._is_over.wait(ASK_SECONDS)
            else:
                break
        self._is_away.clear()


def _limit(connection: Any, _record: Any) -> None:
    """Give a new connection of psycopg a limit for each answer; it knows none, and every wait of it goes through
    `Connection.wait`.
    """
    wait = connection.wait
    connection.wait = lambda talk, *rest, **more: wait(_within(talk, connection), *rest, **more)


def _within(talk: Generator[Any, Any, Any], connection: Any) -> Generator[Any, Any, Any]:
    """Go on with a talk that is resumed now and then, and end it with its connection when it takes too long."""
    end = time.monotonic() + ANSWER_SECONDS_MAX
    try:
        wants = next(talk)
        while True:
            ready = yield wants
            if not ready and time.monotonic() >= end:
                connection.pgconn.finish()
                raise connection.OperationalError(f"no answer within {ANSWER_SECONDS_MAX:g} s")
            wants = talk.send(ready)
    except StopIteration as done:
        return done.value
