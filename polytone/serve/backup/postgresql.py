"""PostgreSQL as one file, by pg_dump and pg_restore."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, make_url, text

from polytone.contract.errors import CheckError, NotFoundError, StorageError
from polytone.serve.database.session import new_database

from .dump import Kind, Snapshot, Tell, bring_up_to_date, check_rows, described, not_empty, reaching

POSTGRESQL_FOLDERS = Path("/usr/lib/postgresql")
SHOWN_LINES = 5
POLL_SECONDS = 0.2
LEAVES_TRACES = """
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY c.relname"""


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
        engine = new_database(self._url)
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


def size_of(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0
