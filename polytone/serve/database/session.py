"""Open the database, migrate it, and read and write it in transactions. Its tables are in `tables.py`."""

import hashlib
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import Session

from polytone.contract.errors import CheckError, InputError, UnavailableError

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_SECONDS = 10  # how long a writer waits for another one
# Timeouts of libpq, so that a PostgreSQL whose machine is gone is given up on. The last is in milliseconds.
TIMEOUTS = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 5, "tcp_user_timeout": 15_000}
# The name of a lock for `one_at_a_time`. Readers page through feedback by number, so no row may become visible after
# one with a higher number.
FEEDBACK = "feedback"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Database: TypeAlias = Engine
"""A pool of connections to SQLite or PostgreSQL. SQLAlchemy calls it an engine; here that word is vLLM's."""


def now() -> datetime:
    return datetime.now(UTC)


def open_database(url: str) -> Database:
    """Open the database and bring its schema up to date. Others that do so at the same time wait.

    Raises:
        InputError: `settings_invalid`, if the URL names no database that Polytone can use.
        CheckError: `database_damaged`, `database_newer`.
        UnavailableError: `database_unavailable`.
    """
    database = new_database(url)
    try:
        migrate(database)
    except OperationalError as error:
        database.dispose()
        raise UnavailableError(
            f"The database {database.url} (POLYTONE_DATABASE_URL) cannot be opened: {error.orig}",
            code="database_unavailable",
        ) from None
    except DatabaseError as error:
        database.dispose()
        raise CheckError(
            f"The database {database.url} cannot be read: {error.orig}. Restore a backup: polytone restore FOLDER",
            code="database_damaged",
        ) from None
    except CommandError as error:
        database.dispose()
        raise CheckError(
            f"The database {database.url} was made by a newer Polytone ({error}). Install that version or a newer one.",
            code="database_newer",
        ) from None
    return database


def new_database(url: str) -> Database:
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        database = create_engine(url, pool_pre_ping=True)
        event.listen(database, "connect", prepare_sqlite)
        event.listen(database, "begin", begin_sqlite)
    else:
        database = new_postgresql_database(url)
    event.listen(database, "before_cursor_execute", refuse_unstorable)
    return database


def new_postgresql_database(url: str) -> Database:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "postgresql":
            raise ArgumentError(f"{parsed.get_backend_name()} is not supported")
        timeouts = {name: value for name, value in TIMEOUTS.items() if name not in parsed.query}
        database = create_engine(parsed, pool_pre_ping=True, pool_timeout=LOCK_SECONDS, connect_args=timeouts)
    except (ArgumentError, ImportError) as error:
        raise InputError(
            f"POLYTONE_DATABASE_URL: {error}. Write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME.",
            code="settings_invalid",
        ) from None
    event.listen(database, "connect", prepare_postgresql)
    return database


def migrate(database: Database, revision: str = "head") -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.execution_options(write=True).begin() as connection:
        if database.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # another replica may be migrating for a long time
        one_at_a_time(connection, "migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `begin_sqlite` begins transactions
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={LOCK_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    turn_on_wal(cursor)
    cursor.close()
    connection.create_function("lower", 1, lower, deterministic=True)


def turn_on_wal(cursor: Any) -> None:
    """Turn on write-ahead logging. While another process does so on a new file, SQLite refuses instead of waiting."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def lower(value: Any) -> Any:
    """Replaces SQLite's `lower`, which knows the letters A to Z only."""
    return value.lower() if isinstance(value, str) else value


def begin_sqlite(connection: Connection) -> None:
    """Begin a transaction. A writer locks at once, so that what it reads is still true when it writes."""
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def prepare_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET timezone = 'UTC'; SET lock_timeout = '{LOCK_SECONDS}s'")
    connection.commit()


def refuse_unstorable(
    _connection: Connection, _cursor: Any, _statement: str, parameters: Any, _context: Any, many: bool
) -> None:
    """Refuse text that PostgreSQL cannot store. SQLite would store it, and whoever reads it would fail."""
    for row in parameters if many else [parameters]:
        for value in row.values() if isinstance(row, dict) else row:
            if isinstance(value, str) and not is_storable(value):
                raise InputError(
                    "A text contains a NUL character or half of a surrogate pair. Remove it.",
                    code="invalid_request",
                )


def is_storable(text: str) -> bool:
    return "\0" not in text and (text.isascii() or LONE_SURROGATE.search(text) is None)


@contextmanager
def reading(database: Database) -> Iterator[Session]:
    """A session that reads one moment: it sees no change that is committed after its first query."""
    if database.dialect.name == "postgresql":  # SQLite always reads so
        database = database.execution_options(isolation_level="REPEATABLE READ")
    with Session(database, expire_on_commit=False) as session:
        yield session


@contextmanager
def writing(database: Database) -> Iterator[Session]:
    """A session with one transaction, committed when the block ends and rolled back when it raises."""
    with Session(database.execution_options(write=True), expire_on_commit=False) as session, session.begin():
        yield session


def one_at_a_time(session: Session | Connection, task: str) -> None:
    """Let no other transaction do the same task until this one ends. SQLite has one writer at a time anyway."""
    bind = session if isinstance(session, Connection) else session.get_bind()
    if bind.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(f"polytone {task}".encode()).digest()[:8], signed=True)
        session.execute(select(func.pg_advisory_xact_lock(key)))


def insert_for(session: Session) -> Any:
    """The database's own INSERT, which can skip rows that exist already."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[session.get_bind().dialect.name]


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC. One without a time zone is taken for UTC.

    Raises:
        InputError: `invalid_request`, if that would be before year 1 or after year 9999.
    """
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise InputError(f"{moment.isoformat()} cannot be written in UTC.", code="invalid_request") from None
