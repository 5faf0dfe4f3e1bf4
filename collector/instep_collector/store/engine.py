"""Opens the store: engine, durability, migration to the newest schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
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
        with self.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def hidden(url: str) -> str:
    """Return a database URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return repr(url[:20])
