"""Dump and restore PostgreSQL with pg_dump and pg_restore."""

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

from .dump import Kind, Report, Snapshot, bring_up_to_date, check_rows, database_errors, not_empty, take_snapshot

POSTGRESQL_FOLDERS = Path("/usr/lib/postgresql")
SHOWN_LINES = 5
POLL_SECONDS = 0.2
USER_RELATIONS = """
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY c.relname"""


class PostgresqlDumper:
    """A database on a PostgreSQL server.

    pg_dump and pg_restore get its address and password through their environment, since anyone on the machine can read
    their arguments.
    """

    kind: Kind = "postgresql"
    ending = ".pgdump"
    prepared: Path | None = None

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = make_url(url).render_as_string(hide_password=True)

    def dump(self, target: Path, report: Report) -> Snapshot:
        with self._connected("REPEATABLE READ") as connection:
            connection.execute(
                text("SET idle_in_transaction_session_timeout = 0")
            )  # a dump may take longer than the server allows
            snapshot = take_snapshot(connection, self._name)
            moment = connection.scalar(text("SELECT pg_export_snapshot()"))
            server = driver_info(connection).server_version // 10_000
            tool, version = find_tool("pg_dump", server)
            options = ["--format=custom", "--no-password", f"--snapshot={moment}", "--file", str(target)]
            self._run([tool, *options], connection, lambda: report("Dumping the database", size_of(target), 0))
        return Snapshot(snapshot.revision, snapshot.rows, snapshot.versions, version)

    def contents(self) -> list[str]:
        with self._connected() as connection:
            return list(connection.scalars(text(USER_RELATIONS)))

    def prepare(self, dump: Path, expected: Snapshot, report: Report) -> None:
        with self._connected() as connection:
            self._run([find_tool("pg_restore", expected.tool)[0], "--list", str(dump)], connection, lambda: None)

    def put_in_place(self, dump: Path, expected: Snapshot, report: Report) -> None:
        with self._connected("AUTOCOMMIT") as connection:
            if existing := list(connection.scalars(text(USER_RELATIONS))):
                try:
                    check_rows(take_snapshot(connection, self._name), expected)
                except (NotFoundError, CheckError):
                    raise not_empty(f"{self._name} ({', '.join(existing[:SHOWN_LINES])})") from None
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
                    lambda: report(f"Restoring the database ({time.monotonic() - began:.0f} s)", 0, 0),
                )
                check_rows(take_snapshot(connection, self._name), expected)
        with database_errors(self._name):
            bring_up_to_date(self._url)

    def discard(self) -> None:
        return

    @contextmanager
    def _connected(self, isolation: str = "READ COMMITTED") -> Iterator[Connection]:
        engine = new_database(self._url)
        try:
            with (
                database_errors(self._name),
                engine.connect().execution_options(isolation_level=isolation) as connection,
            ):
                yield connection
        finally:
            engine.dispose()

    def _run(self, command: list[str], connection: Connection, report_progress: Callable[[], None]) -> None:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment(connection)
            )
            try:
                while process.poll() is None:
                    report_progress()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            messages = errors.read().decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
        if process.returncode == 0:
            return
        if any("No space left on device" in line for line in messages):
            raise StorageError(f"{Path(command[0]).name}: {' '.join(messages)}", code="disk_full")
        raise CheckError(f"{command[0]} failed for {self._name}: {' '.join(messages)}", code="dump_failed")


def find_tool(name: str, at_least: int) -> tuple[str, int]:
    """Path and major version of a PostgreSQL program: the oldest that is new enough.

    A newer one may write what an older server does not understand.

    Raises:
        NotFoundError: `postgresql_tools_missing`.
    """
    on_path = shutil.which(name)
    candidates = [*([on_path] if on_path else []), *map(str, sorted(POSTGRESQL_FOLDERS.glob(f"*/bin/{name}")))]
    usable = [(major, path) for path in candidates if (major := major_version(path)) is not None and major >= at_least]
    if not usable:
        raise NotFoundError(
            f"There is no {name} {at_least} or newer on the PATH or under {POSTGRESQL_FOLDERS} "
            f"(installed: {', '.join(candidates) or 'none'}). Install it, such as Debian's postgresql-client.",
            code="postgresql_tools_missing",
        )
    major, path = min(usable, key=lambda one: one[0])
    return path, major


def major_version(path: str) -> int | None:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        return int(output.split()[2].partition(".")[0])  # pg_dump (PostgreSQL) 15.4 (Debian ...)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return None


def environment(connection: Connection) -> dict[str, str]:
    """This process's environment with the connection's parameters, as libpq's programs read them."""
    from psycopg import pq

    info = driver_info(connection)
    parameters = {**info.get_parameters(), "password": info.password}
    parameters.pop("client_encoding", None)  # the dump keeps the encoding of the database
    variables = {one.keyword.decode(): one.envvar.decode() for one in pq.Conninfo.get_defaults() if one.envvar}
    connection_variables = {variables[name]: value for name, value in parameters.items() if value and name in variables}
    return {**os.environ, **connection_variables, "LC_ALL": "C"}


def database_name(connection: Connection) -> str:
    """The name as an option takes it. A bare name with special characters could be read as a whole address."""
    from psycopg.conninfo import make_conninfo

    return make_conninfo(dbname=driver_info(connection).dbname)


def driver_info(connection: Connection) -> Any:
    """psycopg's information about a connection."""
    driver: Any = connection.connection.driver_connection
    return driver.info


def size_of(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0
