"""A SQLite file that another program has locked is waited for once; then nobody waits until it is free."""

import sqlite3
import threading

import pytest
from instep_collector.errors import StoreAway
from instep_collector.store import audit, engine
from instep_collector.store.engine import Store


def write(store):
    with store.begin() as session:
        audit.note(session, at=1.0, actor="ada", action="approve", subject="plan 1", reason="why")


def count(store):
    with store.begin() as session:
        return len(audit.recent(session))


def test_a_locked_file_is_waited_for_once_and_asked_in_the_background(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LOCKED_SECONDS_MAX", 0.05)
    path = tmp_path / "instep.db"
    store = Store(f"sqlite:///{path}")
    outside = sqlite3.connect(path, isolation_level=None)
    try:
        write(store)
        outside.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreAway, match="locked"):
            write(store)
        assert store.is_lost
        with pytest.raises(StoreAway, match="it is asked again"):
            write(store)
        outside.execute("ROLLBACK")
        free = threading.Event()
        while store.is_lost:
            assert not free.wait(0.02)
        write(store)
        assert count(store) == 2
    finally:
        outside.close()
        store.close()
