"""The whole database as one file, and back: what every kind of database has in common.

A dump stops no server, and is of one moment: what was committed before it and nothing after.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, delete, func, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError

from polytone.contract.errors import (
    CheckError,
    InputError,
    NotFoundError,
    PolytoneError,
    StorageError,
    UnavailableError,
)
from polytone.serve.database.session import MIGRATIONS, open_database, writing
from polytone.serve.database.tables import ReplicaRow, ResidencyRow, Table, VersionRow

Kind = Literal["sqlite", "postgresql"]
Tell = Callable[[str, int, int], None]
"""Is told what is being done, how many bytes of it are done, and of how many; 0 where nobody knows."""

OBSERVED = frozenset({ReplicaRow.__tablename__, ResidencyRow.__tablename__})


@dataclass(frozen=True)
class Snapshot:
    """What a database held at the moment of its dump.

    `rows` has no table of what servers say of themselves; `versions` is version -> published or retired; `tool` is the
    major version of the pg_dump that wrote it, 0 where none did.
    """

    revision: str
    rows: dict[str, int]
    versions: dict[str, str]
    tool: int = 0


class Database(Protocol):
    """One kind of database, whose dumps have the `ending`: to a file, and from a file into an empty one.

    Methods block.
    """

    kind: Kind
    ending: str

    @property
    def prepared(self) -> Path | None:
        """The hidden file that `prepare` leaves, if it does."""

    def dump(self, target: Path, tell: Tell) -> Snapshot:
        """Write everything into `target`, an empty file.

        Raises:
            NotFoundError: `database_not_found`, `postgresql_tools_missing`.
            CheckError: `database_damaged`, `dump_failed`.
            UnavailableError: `database_unavailable`.
            StorageError: `disk_full` or `disk_error`.
        """

    def contents(self) -> list[str]:
        """What is in the way of a restore; empty where nothing is.

        Raises: UnavailableError: `database_unavailable`.
        """

    def prepare(self, dump: Path, expected: Snapshot, tell: Tell) -> None:
        """Whatever can fail before anything is put in place; a cut off one may be repeated.

        Raises: as `put_in_place`.
        """

    def put_in_place(self, dump: Path, expected: Snapshot, tell: Tell) -> None:
        """Bring back what was prepared, all of it or nothing, and its schema up to date. What was put in place before a
        restore was cut off may be put there again.

        Raises:
            CheckError: `backup_damaged` if it holds other rows than `expected`, `dump_failed`.
            InputError: `database_not_empty` where anything else is.
            NotFoundError: `postgresql_tools_missing`.
            UnavailableError: `database_unavailable`.
            StorageError: `disk_full` or `disk_error`.
        """

    def discard(self) -> None:
        """Take back what was prepared."""


def known_revisions() -> list[str]:
    """The schemas that this Polytone can bring up to date, the newest first."""
    return [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


def described(connection: Connection, where: str) -> Snapshot:
    there = set(inspect(connection).get_table_names())
    if not {"alembic_version", VersionRow.__tablename__} <= there:
        raise not_found(where)
    counted = sorted((set(Table.metadata.tables) - OBSERVED) & there)
    return Snapshot(
        revision=str(connection.scalar(text("SELECT version_num FROM alembic_version"))),
        rows={name: int(connection.scalar(select(func.count()).select_from(table(name))) or 0) for name in counted},
        versions={row.id: row.state for row in connection.execute(select(VersionRow.id, VersionRow.state))},
    )


def check_rows(found: Snapshot, expected: Snapshot) -> None:
    """Raises: CheckError: `backup_damaged`."""
    wrong = [
        f"{name} has {found.rows.get(name, 0)} rows, not {count}"
        for name, count in expected.rows.items()
        if found.rows.get(name) != count
    ]
    if wrong:
        raise CheckError(f"The restored database is not what was saved: {', '.join(wrong)}.", code="backup_damaged")


def bring_up_to_date(url: str) -> None:
    """Migrate, and forget the servers that ran when it was saved: one whose clock was ahead would seem to live on."""
    engine: Engine = open_database(url)
    try:
        with writing(engine) as session:
            session.execute(delete(ResidencyRow))
            session.execute(delete(ReplicaRow))
    finally:
        engine.dispose()


@contextmanager
def reaching(where: str, written: Path | None = None) -> Iterator[None]:
    """What the libraries raise, as errors for people; none of them has a password.

    Args:
        written: the file that takes space, if that is not `where`.
    """
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None)
        if isinstance(cause, sqlite3.Error):
            raise sqlite_refusal(where, str(written or where), cause) from None
        raise unavailable(where, str(cause or type(error).__name__)) from None
    except sqlite3.Error as error:
        raise sqlite_refusal(where, str(written or where), error) from None


def sqlite_refusal(where: str, written: str, error: sqlite3.Error) -> PolytoneError:
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return StorageError(f"Cannot write {written}: {error}. Free some space and try again.", code="disk_full")
    if name == "SQLITE_IOERR_WRITE":
        return StorageError(f"Cannot write {written}: {error}.", code="disk_error")
    if name.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
        return StorageError(f"{where}: {error}.", code="disk_error")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return damaged(where, str(error))
    return unavailable(where, str(error))


def not_found(where: str) -> NotFoundError:
    return NotFoundError(
        f"{where}: there is no database of Polytone. Is POLYTONE_HOME or POLYTONE_DATABASE_URL right? "
        "A server makes one at its first start.",
        code="database_not_found",
    )


def not_empty(what: str) -> InputError:
    return InputError(
        f"The database to restore into is not empty: {what}. Name an empty one (POLYTONE_DATABASE_URL), or remove "
        "that; nothing of it was touched.",
        code="database_not_empty",
    )


def damaged(where: str, how: str) -> CheckError:
    return CheckError(f"{where}: the database is damaged: {how}.", code="database_damaged")


def unavailable(where: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"{where}: the database cannot be used now: {' '.join(why.split())}", code="database_unavailable"
    )


def make_private(file: Path) -> None:
    """A new empty file that only its owner may read."""
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
