"""Opens the store: engine, durability, migration to the newest schema."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from instep_collector.errors import StartError, StoreAway
from instep_collector.store.patience import Patience

MIGRATIONS = Path(__file__).parent / "migrations"
POSTGRESQL = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 5000,
    "options": "-c lock_timeout=5000",
}
"""libpq's settings: a database that went away is noticed within seconds, since whoever asks it waits meanwhile."""

LOCKED_SECONDS_MAX = 0.5
"""So long a SQLite file that another program has locked is waited for, frames and detection with it; then a thread
asks until it is free."""
LOCKED_AT_START_SECONDS_MAX = 5.0

log = logging.getLogger(__name__)


def _durable(connection: Any, locked_seconds: float) -> None:
    """Set SQLite up: readers beside the writer, and a commit that survives power loss."""
    cursor = connection.cursor()
    busy = f"busy_timeout={int(locked_seconds * 1000)}"
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", busy):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Store:
    """A migrated database. Queries take the session that `begin` gives."""

    def __init__(self, url: str) -> None:
        self.trouble = ""
        """Why the last look at the database failed; empty while it answers."""
        self._locked_seconds = LOCKED_AT_START_SECONDS_MAX
        try:
            self.engine: Engine = _engine(url)
        except (ArgumentError, ModuleNotFoundError, SQLAlchemyError) as error:
            raise StartError(
                f"Cannot use the database {hidden(url)} ({error}): give --database a SQLAlchemy URL such as "
                "postgresql+psycopg://user@host/instep."
            ) from error
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", lambda new, _record: _durable(new, self._locked_seconds))
        try:
            self._migrate()
        except (SQLAlchemyError, OSError) as error:
            cause = getattr(error, "orig", None) or error
            raise StartError(
                f"Cannot open the database {hidden(url)} ({cause}): check its place, rights and room."
            ) from error
        self._patience: Patience | None = None
        if self.engine.dialect.driver == "psycopg" or self.engine.dialect.name == "sqlite":
            self.engine.dispose()  # A migration may take its time; whatever connects from now on has a limit.
            self._locked_seconds = LOCKED_SECONDS_MAX
            self._patience = Patience(self.engine)

    @property
    def is_lost(self) -> bool:
        """Whether the database did not answer and is asked in the background: until it answers nothing waits for it."""
        return self._patience is not None and self._patience.is_lost

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """Give a session whose changes are committed together at the end, or not at all.

        Raises StoreAway when the database does not answer or cannot write; at once while it is known to be away.
        """
        if self.is_lost:
            raise StoreAway(self._sentence())
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except (OperationalError, InterfaceError) as error:
            raise self._away(error) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise self._away(error) from error
            raise
        if self.trouble:
            log.warning("The database answers again.")
            self.trouble = ""

    def _away(self, error: DBAPIError) -> StoreAway:
        first_line = str(error.orig).strip().partition("\n")[0]
        if not self.trouble:
            log.error("The database does not answer (%s). What is received is kept in the journal.", first_line)
        self.trouble = first_line or "it does not answer"
        if self._patience is not None:
            self._patience.lose()
        return StoreAway(self._sentence())

    def _sentence(self) -> str:
        return f"The database does not answer ({self.trouble}): it is asked again."

    def close(self) -> None:
        """Give the connections back."""
        if self._patience is not None:
            self._patience.close()
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        with self.engine.connect() as connection, _changing_tables(connection):
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _engine(url: str) -> Engine:
    if url.startswith("sqlite"):
        return create_engine(url)
    arguments = POSTGRESQL if make_url(url).get_dialect().name == "postgresql" else {}
    return create_engine(url, pool_pre_ping=True, connect_args=arguments)


@contextmanager
def _changing_tables(connection: Connection) -> Iterator[None]:
    """Give one transaction for all migrations: a server that dies in the middle leaves the schema it found.

    SQLite changes a table by copying it, and dropping the old one would delete whatever refers to its rows: foreign
    keys rest meanwhile, and are checked before the commit. They cannot be switched inside a transaction.
    """
    if connection.dialect.name != "sqlite":
        with connection.begin():
            yield
        return
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.commit()
    try:
        with connection.begin():
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's sqlite3 begins none before a change of tables.
            yield
            if (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()) is not None:
                raise StartError(f"The database cannot be migrated: a row of {broken[0]} refers to nothing.")
    finally:
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")
        connection.commit()


def hidden(url: str) -> str:
    """Return a database URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return repr(url[:20])
