"""A database of an earlier version goes on to the newest schema with everything in it."""

import pytest
from alembic import command
from alembic.config import Config
from instep_collector.errors import StartError
from instep_collector.store import engine, incidents, nodes, plans
from instep_collector.store.engine import MIGRATIONS, Store
from sqlalchemy import Engine, MetaData, create_engine, insert


def as_of(url: str, revision: str) -> Engine:
    """A database as a server of that revision made it."""
    made = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with made.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return made


INCIDENT = {
    "id": "inc-1",
    "identity": "node-b/GPU-1/fatal/boot-1",
    "kind": "gpu-fault",
    "family": "gpu-fault",
    "state": "open",
    "job": "gpt",
    "run": "run-1",
    "attempt": 0,
    "labels": {"node": "node-b"},
    "is_drill": False,
    "summary": "GPU 1 fell off the bus.",
    "done": ["Noticed."],
    "resolution": "",
    "onset_at": 1.0,
    "opened_at": 2.0,
}
PLAN = {
    "id": 7,
    "incident": "inc-1",
    "job": "gpt",
    "run": "run-1",
    "attempt": 0,
    "state": "waiting",
    "reason": "why",
    "text": "Plan",
    "created_at": 3.0,
}
ACTION = {
    "plan": 7,
    "position": 0,
    "name": "drain_node",
    "arguments": {"node": "node-b", "reason": "why"},
    "state": "proposed",
    "detail": "",
}


def fill(made: Engine) -> None:
    tables = MetaData()
    tables.reflect(made)
    with made.begin() as connection:
        for name, row in (("incidents", INCIDENT), ("plans", PLAN), ("actions", ACTION)):
            connection.execute(insert(tables.tables[name]).values(row))


def check(store: Store) -> None:
    with store.begin() as session:
        row, plan = incidents.get(session, "inc-1"), plans.get(session, 7)
        assert (row.summary, row.labels, row.version, row.acknowledged_at) == (
            "GPU 1 fell off the bus.",
            {"node": "node-b"},
            1,
            None,
        )
        assert (plan.incident, plan.state, plan.version, plan.is_automatic) == ("inc-1", "waiting", 1, False)
        assert [action.arguments["node"] for action in plans.actions(session, 7)] == ["node-b"]
        plan.state = "closed"
    with store.begin() as session:
        assert plans.get(session, 7).version == 2


def test_a_database_of_the_first_schema_keeps_its_incidents_plans_and_actions(database):
    made = as_of(database, "0001")
    fill(made)
    made.dispose()
    store = Store(database)
    check(store)
    store.close()


def test_the_plan_of_a_drill_of_an_earlier_version_is_one_and_a_real_one_or_one_by_hand_is_not(database):
    made = as_of(database, "0002")
    fill(made)
    tables = MetaData()
    tables.reflect(made)
    with made.begin() as connection:
        drill = INCIDENT | {"id": "inc-2", "identity": "another", "is_drill": True}
        connection.execute(insert(tables.tables["incidents"]).values(drill))
        for number, incident in ((8, "inc-2"), (9, None)):
            connection.execute(insert(tables.tables["plans"]).values(PLAN | {"id": number, "incident": incident}))
        seen = {"first_seen_at": 1.0, "last_seen_at": 2.0}
        node = {"node": "node-b", "cluster": "c", "boot_id": "boot-1", "gpus": [], **seen}
        connection.execute(insert(tables.tables["nodes"]).values(node))
    made.dispose()
    store = Store(database)
    with store.begin() as session:
        assert [plans.get(session, number).is_drill for number in (7, 8, 9)] == [False, True, False]
        assert incidents.get(session, "inc-2").mended is None
        assert nodes.get(session, "node-b").booted_at is None
    store.close()


def test_an_upgrade_that_fails_half_way_leaves_the_schema_it_found(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/a.db"
    made = as_of(url, "0001")
    fill(made)
    upgrade = command.upgrade

    def failing(config: Config, revision: str) -> None:
        upgrade(config, revision)
        raise OSError("no room left")

    with monkeypatch.context() as patch, pytest.raises(StartError, match="no room left"):
        patch.setattr(engine.command, "upgrade", failing)
        Store(url)
    tables = MetaData()
    tables.reflect(made)
    assert "steps" not in tables.tables and "version" not in tables.tables["plans"].c
    made.dispose()
    store = Store(url)
    check(store)
    store.close()
