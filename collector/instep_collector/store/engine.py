"""Opens the store: engine, durability, migration to the newest schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from instep_collector.errors import StartError

MIGRATIONS = Path(__file__).parent / "migrations"


def _durable(connection: Any, _record: Any) -> None:
    """Set SQLite up: readers beside the writer, and a commit that survives power loss."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Store:
    """A migrated database. Queries take the session that `begin` gives."""

    def __init__(self, url: str) -> None:
        try:
            self.engine: Engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        except (ArgumentError, ModuleNotFoundError, SQLAlchemyError) as error:
            raise StartError(
                f"Cannot use the database {hidden(url)} ({error}): give --database a SQLAlchemy URL such as "
                "postgresql+psycopg://user@host/instep."
            ) from error
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _durable)
        try:
            self._migrate()
        except (SQLAlchemyError, OSError) as error:
            cause = getattr(error, "orig", None) or error
            raise StartError(
                f"Cannot open the database {hidden(url)} ({cause}): check its place, rights and room."
            ) from error

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """Give a session whose changes are committed together at the end, or not at all."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        with self.engine.connect() as connection, _changing_tables(connection):
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


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
