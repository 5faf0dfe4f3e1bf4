"""What tests of several parts share: a database of each kind."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if (root := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.insert(0, root)  # importlib mode puts no folder on the path

settings.register_profile("instep", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("instep")
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def new_postgresql_database() -> Iterator[Callable[[], str]]:
    """A function that gives the URL of an empty database in a real PostgreSQL, started once for all tests."""
    import psycopg

    from tests import services

    with services.postgresql() as server:

        def create() -> str:
            name = f"test_{next(_numbers)}"
            with psycopg.connect(server.url.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
            return f"{server.url}/{name}"

        yield create


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/instep.db"
    return request.getfixturevalue("new_postgresql_database")()
