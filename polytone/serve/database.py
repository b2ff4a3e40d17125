"""Tables of the desired and the observed state, and how to open the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    Engine,
    ForeignKey,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

MIGRATIONS = Path(__file__).parent / "migrations"


class Table(DeclarativeBase):
    pass


def now() -> datetime:
    return datetime.now(UTC)


class VersionRow(Table):
    """A version that replicas should hold (`published`) or let go (`retired`)."""

    __tablename__ = "versions"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    state: Mapped[str] = mapped_column(String(16))
    published_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)


class RolloutRow(Table):
    """Who answers for a voice. The highest generation counts; no parts means nobody does.

    `parts` is a list of [version, weight]; `previous` is the generation a rollback goes back to.
    """

    __tablename__ = "rollouts"
    __table_args__ = (UniqueConstraint("voice", "generation"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    voice: Mapped[str] = mapped_column(String(63))
    generation: Mapped[int]
    parts: Mapped[list[Any]] = mapped_column(JSON)
    previous: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)


class AuditRow(Table):
    """Who changed what, when, from what to what. Rows are only ever added."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    actor: Mapped[str] = mapped_column(String(120))
    action: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(120), index=True)
    before: Mapped[Any] = mapped_column(JSON, nullable=True)
    after: Mapped[Any] = mapped_column(JSON, nullable=True)


class KeyRow(Table):
    """An API key: only a hash of its secret is kept."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    adapters: Mapped[list[str] | None] = mapped_column(JSON)
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    concurrent_requests: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class ReplicaRow(Table):
    """A running server, when it was last heard from, and the generation of the rollout it answers each voice with."""

    __tablename__ = "replicas"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    routes: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)


class ResidencyRow(Table):
    """What a replica says of a version: loading, ready, draining or failed, and why."""

    __tablename__ = "residency"

    replica: Mapped[str] = mapped_column(ForeignKey("replicas.name", ondelete="CASCADE"), primary_key=True)
    version: Mapped[str] = mapped_column(String(80), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)


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
    """A moment from outside as it is stored; one without a zone is taken for UTC."""
    return aware(moment).astimezone(UTC)
