"""Migrations: from nothing and from every earlier schema with rows in it, by several servers at once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Integer, MetaData, Table, insert, select, text
from sqlalchemy.types import JSON, Boolean, DateTime, Float, LargeBinary, TypeEngine

from polytone.contract.home import Home
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.rollout import Part, Rollout
from polytone.serve.auth.keys import KeyStore
from polytone.serve.database.session import MIGRATIONS, Database, migrate, new_database, open_database
from polytone.serve.database.tables import DriftRow
from polytone.serve.database.tables import Table as Model
from polytone.serve.drift.queries import tone_siblings
from tests.support.postgresql import Postgresql

OLD, NEW = (f"acme@{letter * 12}" for letter in "ab")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SERVERS, ROUNDS = 2, 4
OPENS = """
import sys
from polytone.serve.database.session import open_database
print("ready", flush=True)
for line in sys.stdin:
    open_database(line.strip()).dispose()
    print("done", flush=True)
"""
# What a column holds that another one or the code refers to; the others hold anything of their type.
MEANT: dict[str, dict[str, Any]] = {
    "versions": {"id": OLD, "name": "acme", "state": "published"},
    "aliases": {"name": "acme", "version": OLD},
    "rollouts": {"voice": "acme", "parts": [[OLD, 100]], "previous": None},
    "keys": {"kind": "inference", "adapters": None},
    "residency": {"replica": "name"},
    "turns": {"conversation": "id"},
}


class Databases:
    """Empty databases, of the kind that the test runs on."""

    def __init__(self, folder: Path, server: Postgresql | None, stack: ExitStack) -> None:
        self._folder = folder
        self._server = server
        self._stack = stack
        self._count = 0

    def empty(self) -> str:
        self._count += 1
        if self._server is not None:
            return self._server.empty()
        return Home(self._folder / str(self._count)).database_url

    def database(self) -> Database:
        database = new_database(self.empty())
        self._stack.callback(database.dispose)
        return database


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Databases]:
    server = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    with ExitStack() as stack:
        yield Databases(tmp_path, server, stack)


def revisions() -> list[str]:
    """The oldest first."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def differences(database: Database) -> list[Any]:
    with database.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), Model.metadata))


def tables(database: Database) -> list[Table]:
    """As they are, and in an order in which rows can be added."""
    metadata = MetaData()
    metadata.reflect(database)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def plant(database: Database) -> dict[str, dict[str, Any]]:
    """Table -> the row that was put into it."""
    planted = {}
    with database.begin() as connection:
        for table in tables(database):
            meant = MEANT.get(table.name, {})
            row = {
                column.name: meant.get(column.name, anything(column.name, column.type))
                for column in table.columns
                if not (column.primary_key and isinstance(column.type, Integer))  # those are counted by the database
            }
            connection.execute(insert(table).values(**row))
            planted[table.name] = row
    return planted


def anything(name: str, kind: TypeEngine[Any]) -> Any:
    for kinds, value in (
        (DateTime, NOON),
        (JSON, {"a": [1, None, "\u00e9"]}),
        (Boolean, True),
        (Float, 0.25),
        (Integer, 1),
        (LargeBinary, b"\0\xff"),
    ):
        if isinstance(kind, kinds):
            return value
    return name[: getattr(kind, "length", None)]


def kept(database: Database, planted: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is left of planted rows, in the columns they had; a table that is gone is left out."""
    found = {}
    with database.connect() as connection:
        for table in tables(database):
            columns = [column for column in table.columns if column.name in planted.get(table.name, {})]
            for row in connection.execute(select(*columns)) if columns else []:
                found[table.name] = {name: in_utc(value) for name, value in row._mapping.items()}
    return found


def in_utc(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def test_the_models_are_what_the_migrations_make(databases: Databases) -> None:
    database = databases.database()
    assert differences(database) != []
    migrate(database)
    assert differences(database) == []
    migrate(database)
    assert differences(database) == []


@pytest.mark.parametrize("revision", revisions())
def test_rows_of_every_earlier_schema_are_there_afterwards(databases: Databases, revision: str) -> None:
    database = databases.database()
    migrate(database, revision)
    planted = plant(database)
    migrate(database)
    assert differences(database) == []
    gone = {"aliases"} | ({"residency"} if revision == "0001" else set())  # what replicas say, they say again
    if revision < "0007" and "traffic" in planted:  # hashes without a key
        planted["traffic"] |= {"prompt_sha256": None, "reply_sha256": None}
    assert kept(database, planted) == {name: row for name, row in planted.items() if name not in gone}
    registry = Registry(database)
    assert registry.desired().versions == {OLD}
    assert registry.desired().rollouts == {"acme": Rollout(1, (Part(OLD, 100),))}
    registry.publish(NEW, "test")
    assert registry.promote("acme", NEW, "test").generation == 2
    assert len(KeyStore(database).all()) == len(planted.keys() & {"keys"})


def test_siblings_leave_the_table_of_detectors(databases: Databases) -> None:
    """They were rows of a signal that is none, which every reader of the table had to leave out."""
    database = databases.database()
    migrate(database, "0005")
    with database.begin() as connection:
        for signal, state in (("siblings", {"versions": [NEW, "zest"]}), ("tone", {"signal": "tone"})):
            row = {"version": OLD, "signal": signal, "state": json.dumps(state), "at": NOON}
            connection.execute(text("INSERT INTO drift VALUES (:version, :signal, :state, :at)"), row)
    migrate(database)
    with database.connect() as connection:
        assert [row.signal for row in connection.execute(select(DriftRow.signal))] == ["tone"]
    assert tone_siblings(database, OLD, ["later"]) == [NEW, "zest"]
    assert tone_siblings(database, NEW, [OLD]) == tone_siblings(database, NEW, []) == [OLD]


@pytest.mark.slow
def test_servers_that_start_at_the_same_moment_migrate_once(databases: Databases) -> None:
    """On PostgreSQL all but one of them once failed: each found no table, and made it. On SQLite a new file was locked
    now and then."""
    servers = [
        subprocess.Popen([sys.executable, "-c", OPENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(SERVERS)
    ]
    try:
        assert [said(server) for server in servers] == ["ready"] * SERVERS
        for _ in range(ROUNDS):
            url = databases.empty()
            for server in servers:
                assert server.stdin is not None
                server.stdin.write(f"{url}\n")
            for server in servers:
                assert server.stdin is not None
                server.stdin.flush()
            assert [said(server) for server in servers] == ["done"] * SERVERS
            database = open_database(url)
            assert differences(database) == []
            database.dispose()
    finally:
        for server in servers:
            server.communicate()


def said(server: "subprocess.Popen[str]") -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()
