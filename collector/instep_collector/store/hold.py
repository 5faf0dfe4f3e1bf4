"""One server at a time works on a database: a lock that the database itself lets go of when its holder dies.

SQLite lives in the state folder, which one server holds already. In PostgreSQL it is an advisory lock of a connection
that is kept for it alone (https://www.postgresql.org/docs/current/explicit-locking.html).
"""

from __future__ import annotations

import contextlib

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from instep_collector.errors import StartError
from instep_collector.store.engine import Store

LOCK = 0x1_057E9
"""Any number that nobody else takes in this database."""


class Hold:
    """The right to work on a database."""

    def __init__(self, store: Store) -> None:
        """Take it; raises StartError when another server has it."""
        self._store = store
        self._engine: Engine = store.engine
        self._connection: Connection | None = None
        self._is_needed = store.engine.dialect.name == "postgresql"
        if not self.is_kept():
            raise StartError(
                f"Another server works on the database {self._engine.url.render_as_string(hide_password=True)}: end it "
                "first, or give this one a database of its own."
            )

    def is_kept(self) -> bool:
        """Whether it is ours, taking it anew where the connection was lost; True as well while nobody can tell."""
        if not self._is_needed or self._store.is_lost:
            return True
        try:
            if self._connection is None:
                return self._take()
            self._connection.execute(text("SELECT 1"))
            self._connection.commit()
        except SQLAlchemyError:
            self._let_go()
        return True

    def _take(self) -> bool:
        connection = self._engine.connect()
        is_ours = bool(connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}).scalar())
        connection.commit()
        if is_ours:
            self._connection = connection
        else:
            connection.close()
        return is_ours

    def close(self) -> None:
        """Give it back; another server may take it as soon as this returns."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # the database is gone, and the lock with it
                self._connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
                self._connection.commit()
        self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
