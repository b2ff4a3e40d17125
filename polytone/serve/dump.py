"""The whole database as one file, and back: SQLite by its backup API, PostgreSQL by pg_dump and pg_restore.

Neither stops a server, and both see one moment: what was committed before it and nothing after.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, delete, func, inspect, make_url, select, table, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from polytone.contract.errors import (
    CheckError,
    InputError,
    NotFoundError,
    PolytoneError,
    StorageError,
    UnavailableError,
)
from polytone.contract.files import disk_refusal, flush_to_disk

from .database import MIGRATIONS, new_engine, open_database, writing
from .tables import ReplicaRow, ResidencyRow, Table, VersionRow

Kind = Literal["sqlite", "postgresql"]
Tell = Callable[[str, int, int], None]
"""Is told what is being done, how many bytes of it are done, and of how many; 0 where nobody knows."""

OBSERVED = frozenset({ReplicaRow.__tablename__, ResidencyRow.__tablename__})
PAGES = 4096
BUSY_SECONDS = 10.0
SQLITE_LOGS = ("-wal", "-shm", "-journal")
POSTGRESQL_FOLDERS = Path("/usr/lib/postgresql")
SHOWN_LINES = 5
POLL_SECONDS = 0.2
LEAVES_TRACES = """
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY c.relname"""


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


def database_of(url: str) -> Database:
    """Raises: InputError: `settings_invalid`."""
    try:
        parts = make_url(url)
    except ArgumentError:
        raise InputError("POLYTONE_DATABASE_URL: is not an SQLAlchemy URL.", code="settings_invalid") from None
    kind = parts.get_backend_name()
    if kind == "sqlite" and parts.database:
        return SqliteDatabase(Path(parts.database))
    if kind == "postgresql":
        return PostgresqlDatabase(url)
    raise InputError(
        f"POLYTONE_DATABASE_URL: a database of the kind {kind} cannot be saved; SQLite in a file and PostgreSQL can.",
        code="settings_invalid",
    )


def known_revisions() -> list[str]:
    """The schemas that this Polytone can bring up to date, the newest first."""
    return [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


class SqliteDatabase:
    """A file. Restored, it is prepared beside its place under a hidden name, and renamed."""

    kind: Kind = "sqlite"
    ending = ".db"

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        self.prepared = self._file.with_name(f".{self._file.name}.restoring")

    def dump(self, target: Path, tell: Tell) -> Snapshot:
        if not self._file.is_file():
            raise not_found(str(self._file))

        def progress(_status: int, left: int, pages: int) -> None:
            tell("Copying the database", (pages - left) * size, pages * size)

        address = f"file:{quote(str(self._file))}?mode=rw"
        with (
            reaching(str(self._file), target),
            closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            size = int(source.execute("PRAGMA page_size").fetchone()[0])
            source.execute("BEGIN")  # with a read in it, it holds one moment; else every writer has the copy begin anew
            source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            source.backup(copy, pages=PAGES, progress=progress)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            found = [str(row[0]) for row in copy.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise damaged(str(self._file), "; ".join(found))
        return described_file(target)

    def contents(self) -> list[str]:
        names = [self._file, *(self._file.with_name(self._file.name + end) for end in SQLITE_LOGS)]
        return [str(path) for path in names if path.exists()]

    def prepare(self, dump: Path, expected: Snapshot, tell: Tell) -> None:
        self.discard()
        tell("Copying the database", 0, dump.stat().st_size)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        make_private(self.prepared)
        try:
            shutil.copyfile(dump, self.prepared)
        except OSError as error:
            raise disk_refusal(self.prepared, error) from error
        with reaching(str(self.prepared)):
            check_rows(described_file(self.prepared), expected)
            bring_up_to_date(f"sqlite:///{self.prepared}")
            with closing(sqlite3.connect(self.prepared)) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")  # a log beside it would not be renamed with it
        flush_to_disk(self.prepared)

    def put_in_place(self, dump: Path, expected: Snapshot, tell: Tell) -> None:
        if self.prepared.exists():
            if there := self.contents():
                raise not_empty(", ".join(there))
            self.prepared.rename(self._file)
            flush_to_disk(self._file.parent)
        elif not self._file.exists():
            self.prepare(dump, expected, tell)
            self.put_in_place(dump, expected, tell)

    def discard(self) -> None:
        for end in ("", *SQLITE_LOGS):
            self.prepared.with_name(self.prepared.name + end).unlink(missing_ok=True)


class PostgresqlDatabase:
    """A database on a server. pg_dump and pg_restore get its address and password by their environment alone: what they
    are called with can be read by anyone on the machine."""

    kind: Kind = "postgresql"
    ending = ".pgdump"
    prepared: Path | None = None

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = make_url(url).render_as_string(hide_password=True)

    def dump(self, target: Path, tell: Tell) -> Snapshot:
        with self._connected("REPEATABLE READ") as connection:
            connection.execute(text("SET idle_in_transaction_session_timeout = 0"))  # it may take longer than allowed
            snapshot = described(connection, self._name)
            moment = connection.scalar(text("SELECT pg_export_snapshot()"))
            server = driver_info(connection).server_version // 10_000
            tool, version = find_tool("pg_dump", server)
            options = ["--format=custom", "--no-password", f"--snapshot={moment}", "--file", str(target)]
            self._run([tool, *options], connection, lambda: tell("Dumping the database", size_of(target), 0))
        return Snapshot(snapshot.revision, snapshot.rows, snapshot.versions, version)

    def contents(self) -> list[str]:
        with self._connected() as connection:
            return list(connection.scalars(text(LEAVES_TRACES)))

    def prepare(self, dump: Path, expected: Snapshot, tell: Tell) -> None:
        with self._connected() as connection:
            self._run([find_tool("pg_restore", expected.tool)[0], "--list", str(dump)], connection, lambda: None)

    def put_in_place(self, dump: Path, expected: Snapshot, tell: Tell) -> None:
        with self._connected("AUTOCOMMIT") as connection:
            if there := list(connection.scalars(text(LEAVES_TRACES))):
                try:
                    check_rows(described(connection, self._name), expected)
                except (NotFoundError, CheckError):
                    raise not_empty(f"{self._name} ({', '.join(there[:SHOWN_LINES])})") from None
            else:
                began = time.monotonic()
                self._run(
                    [
                        find_tool("pg_restore", expected.tool)[0],
                        *("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", "--no-password"),
                        f"--dbname={database_name(connection)}",
                        str(dump),
                    ],
                    connection,
                    lambda: tell(f"Restoring the database ({time.monotonic() - began:.0f} s)", 0, 0),
                )
                check_rows(described(connection, self._name), expected)
        with reaching(self._name):
            bring_up_to_date(self._url)

    def discard(self) -> None:
        return

    @contextmanager
    def _connected(self, isolation: str = "READ COMMITTED") -> Iterator[Connection]:
        engine = new_engine(self._url)
        try:
            with reaching(self._name), engine.connect().execution_options(isolation_level=isolation) as connection:
                yield connection
        finally:
            engine.dispose()

    def _run(self, command: list[str], connection: Connection, going_on: Callable[[], None]) -> None:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment(connection)
            )
            try:
                while process.poll() is None:
                    going_on()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
        if process.returncode == 0:
            return
        if any("No space left on device" in line for line in said):
            raise StorageError(f"{Path(command[0]).name}: {' '.join(said)}", code="disk_full")
        raise CheckError(f"{command[0]} failed for {self._name}: {' '.join(said)}", code="dump_failed")


def described_file(file: Path) -> Snapshot:
    engine = create_engine(f"sqlite:///{file}")
    try:
        with reaching(str(file)), engine.connect() as connection:
            return described(connection, str(file))
    finally:
        engine.dispose()


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


def find_tool(name: str, at_least: int) -> tuple[str, int]:
    """The program of PostgreSQL and its major version: the oldest of those that are new enough, since what a newer one
    writes or says may be more than an older server understands.

    Raises: NotFoundError: `postgresql_tools_missing`.
    """
    on_path = shutil.which(name)
    candidates = [*([on_path] if on_path else []), *map(str, sorted(POSTGRESQL_FOLDERS.glob(f"*/bin/{name}")))]
    found = [(major, path) for path in candidates if (major := major_version(path)) is not None and major >= at_least]
    if not found:
        raise NotFoundError(
            f"There is no {name} {at_least} or newer on the PATH or under {POSTGRESQL_FOLDERS} "
            f"(there: {', '.join(candidates) or 'none'}). Install it, such as Debian's postgresql-client.",
            code="postgresql_tools_missing",
        )
    major, path = min(found, key=lambda one: one[0])
    return path, major


def major_version(path: str) -> int | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        return int(said.split()[2].partition(".")[0])  # pg_dump (PostgreSQL) 15.4 (Debian ...)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return None


def environment(connection: Connection) -> dict[str, str]:
    """This process's, with everything that the connection was made by, as libpq's programs take it."""
    from psycopg import pq

    info = driver_info(connection)
    given = {**info.get_parameters(), "password": info.password}
    given.pop("client_encoding", None)  # the dump keeps the database's own
    known = {one.keyword.decode(): one.envvar.decode() for one in pq.Conninfo.get_defaults() if one.envvar}
    named = {known[name]: value for name, value in given.items() if value and name in known}
    return {**os.environ, **named, "LC_ALL": "C"}


def database_name(connection: Connection) -> str:
    """As an option takes it: a bare name with a sign in it could be read as a whole address."""
    from psycopg.conninfo import make_conninfo

    return make_conninfo(dbname=driver_info(connection).dbname)


def driver_info(connection: Connection) -> Any:
    """What psycopg knows of a connection."""
    driver: Any = connection.connection.driver_connection
    return driver.info


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


def size_of(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0
