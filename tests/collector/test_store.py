"""The store's schema is what the models say, and a commit outlives the process."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from instep_collector.errors import StartError
from instep_collector.store import audit
from instep_collector.store.engine import Store
from instep_collector.store.models import Base
from sqlalchemy import text


def test_the_migrations_make_what_the_models_say(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    store.close()


def test_the_migrations_make_the_same_in_every_database(database):
    store = Store(database)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    store.close()


def test_opening_it_again_changes_nothing(database):
    for number in range(3):
        store = Store(database)
        with store.begin() as session:
            audit.note(session, at=float(number), actor="a", action="b", subject="c", reason="d")
            assert len(audit.recent(session)) == number + 1
        store.close()


def test_what_fails_half_way_leaves_nothing(database):
    store = Store(database)
    with pytest.raises(RuntimeError), store.begin() as session:
        audit.note(session, at=0.0, actor="a", action="b", subject="c", reason="d")
        session.flush()
        raise RuntimeError
    with store.begin() as session:
        assert audit.recent(session) == []
    store.close()


def test_a_database_that_cannot_be_had_is_one_sentence_without_its_password():
    with pytest.raises(StartError) as error:
        Store("postgresql+nodriver://me:secret@host/x")
    assert "secret" not in str(error.value)


def test_no_type_is_of_one_database_only():
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    for table in Base.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
