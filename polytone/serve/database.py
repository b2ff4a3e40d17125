"""How to open the database, read and write it; what lies in it stands in `tables`."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from polytone.contract.errors import InputError

MIGRATIONS = Path(__file__).parent / "migrations"


def now() -> datetime:
    return datetime.now(UTC)


def open_database(url: str) -> Engine:
    """Open the database and bring its schema up to date."""
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare_sqlite)
        event.listen(engine, "begin", begin_sqlite)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.execution_options(write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return engine


def prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `begin_sqlite` says
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    connection.create_function("lower", 1, lower, deterministic=True)


def lower(value: Any) -> Any:
    """SQLite's own knows no letters but A to Z."""
    return value.lower() if isinstance(value, str) else value


def begin_sqlite(connection: Connection) -> None:
    """A writer takes the write lock first, so that what it reads is still true when it writes."""
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    with Session(engine, expire_on_commit=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """One transaction, committed when the block ends and undone when it raises."""
    with Session(engine.execution_options(write=True), expire_on_commit=False) as session, session.begin():
        yield session


def insert_for(session: Session) -> Any:
    """The database's own INSERT, which can pass over rows that are there already."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[session.get_bind().dialect.name]


def aware(moment: datetime) -> datetime:
    """SQLite forgets the time zone; what is stored is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def in_utc(moment: datetime) -> datetime:
    """A moment from outside as it is stored; one without a zone is taken for UTC.

    Raises:
        InputError: `invalid_request`, if it lies before the first year or after the last in UTC.
    """
    try:
        return aware(moment).astimezone(UTC)
    except OverflowError:
        raise InputError(f"{moment.isoformat()} is no time in UTC.", code="invalid_request") from None
