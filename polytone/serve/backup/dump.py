"""Dump a whole database to one file and restore it: the parts common to SQLite and PostgreSQL.

A dump stops no server and shows one moment: everything committed before it and nothing after it.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, func, inspect, select, table, text
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
Report = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done, and the bytes in all, or 0 if unknown."""

OBSERVED = frozenset({ReplicaRow.__tablename__, ResidencyRow.__tablename__})


@dataclass(frozen=True)
class Snapshot:
    """The content of a database at the moment of its dump.

    `rows` counts each table's rows, without those that running servers write about themselves. `versions` is version ->
    published or retired. `tool` is the major version of the pg_dump that wrote it, 0 for SQLite.
    """

    revision: str
    rows: dict[str, int]
    versions: dict[str, str]
    tool: int = 0


class DatabaseDumper(Protocol):
    """Dumps one database to a file, and restores a dump into an empty one. Methods block.

    `ending` is the file ending of its dumps.
    """

    kind: Kind
    ending: str

    @property
    def prepared(self) -> Path | None:
        """The hidden file that `prepare` makes, if it makes one."""

    def dump(self, target: Path, report: Report) -> Snapshot:
        """Write everything into `target`, an empty file.

        Raises:
            NotFoundError: `database_not_found`, `postgresql_tools_missing`.
            CheckError: `database_damaged`, `dump_failed`.
            UnavailableError: `database_unavailable`.
            StorageError: `disk_full` or `disk_error`.
        """

    def contents(self) -> list[str]:
        """What is in the way of a restore; empty if nothing is.

        Raises:
            UnavailableError: `database_unavailable`.
        """

    def prepare(self, dump: Path, expected: Snapshot, report: Report) -> None:
        """Do everything that can fail before anything is put in place. May be repeated after an interruption.

        Raises:
            PolytoneError: as `put_in_place`.
        """

    def put_in_place(self, dump: Path, expected: Snapshot, report: Report) -> None:
        """Put the prepared database in place, whole or not at all, and bring its schema up to date. May be repeated
        after an interruption.

        Raises:
            CheckError: `backup_damaged` if it has other rows than `expected`, `dump_failed`.
            InputError: `database_not_empty` if something else is there.
            NotFoundError: `postgresql_tools_missing`.
            UnavailableError: `database_unavailable`.
            StorageError: `disk_full` or `disk_error`.
        """

    def discard(self) -> None:
        """Remove what was prepared."""


def known_revisions() -> list[str]:
    """The schema revisions that this Polytone can bring up to date, newest first."""
    return [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


def take_snapshot(connection: Connection, where: str) -> Snapshot:
    """Describe a database within the connection's transaction.

    Raises:
        NotFoundError: `database_not_found`.
    """
    tables = set(inspect(connection).get_table_names())
    if not {"alembic_version", VersionRow.__tablename__} <= tables:
        raise not_found(where)
    counted = sorted((set(Table.metadata.tables) - OBSERVED) & tables)
    return Snapshot(
        revision=str(connection.scalar(text("SELECT version_num FROM alembic_version"))),
        rows={name: int(connection.scalar(select(func.count()).select_from(table(name))) or 0) for name in counted},
        versions={row.id: row.state for row in connection.execute(select(VersionRow.id, VersionRow.state))},
    )


def check_rows(restored: Snapshot, expected: Snapshot) -> None:
    """Compare the numbers of rows.

    Raises:
        CheckError: `backup_damaged`.
    """
    wrong = [
        f"{name} has {restored.rows.get(name, 0)} rows, not {count}"
        for name, count in expected.rows.items()
        if restored.rows.get(name) != count
    ]
    if wrong:
        raise CheckError(
            f"The restored database differs from the saved one: {', '.join(wrong)}.", code="backup_damaged"
        )


def bring_up_to_date(url: str) -> None:
    """Migrate the database, and forget the servers that ran when it was saved. One whose clock was ahead would
    otherwise seem to be alive."""
    database = open_database(url)
    try:
        with writing(database) as session:
            session.execute(delete(ResidencyRow))
            session.execute(delete(ReplicaRow))
    finally:
        database.dispose()


@contextmanager
def database_errors(where: str, written: Path | None = None) -> Iterator[None]:
    """Turn errors of the database libraries into errors for people, without any password.

    Args:
        where: the database, as messages name it.
        written: the file that is written, if that is not `where`.
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
        f"{where}: there is no Polytone database. Check POLYTONE_HOME and POLYTONE_DATABASE_URL. "
        "A server makes one when it first starts.",
        code="database_not_found",
    )


def not_empty(what: str) -> InputError:
    return InputError(
        f"The database to restore into is not empty: {what}. Name an empty one (POLYTONE_DATABASE_URL), or remove "
        "that. Nothing in it was changed.",
        code="database_not_empty",
    )


def damaged(where: str, how: str) -> CheckError:
    return CheckError(f"{where}: the database is damaged: {how}.", code="database_damaged")


def unavailable(where: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"{where}: the database cannot be used now: {' '.join(why.split())}", code="database_unavailable"
    )


def make_private(file: Path) -> None:
    """Create an empty file that only its owner may read."""
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
