"""A PostgreSQL 15 of the tests' own: a real server in a temporary folder, and databases of it that cost little."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import delete, text

from polytone.serve.database.session import new_database, open_database
from polytone.serve.database.tables import Table

BINARIES = Path("/usr/lib/postgresql/15/bin")
DATABASE_URL = "POLYTONE_DATABASE_URL"
MISSING = f"no PostgreSQL 15 in {BINARIES}: apt-get install postgresql-15"
SECONDS = 60
USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def installed() -> bool:
    return (BINARIES / "postgres").is_file()


class Postgresql:
    """A server that listens on a socket in its folder and nowhere else. Its clock is not UTC's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "log"
        self._user = next(name for name in USERS if has_user(name)) if os.geteuid() == 0 else None
        self._process: subprocess.Popen[Any] | None = None
        self._numbers = count(1)
        self._migrated: str | None = None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._do("initdb", "--no-sync", "--auth=trust", "--username=polytone", "--encoding=UTF8", "--locale=C.UTF-8")

    def start(self) -> None:
        """Returns when it takes connections; after a crash it has recovered by then."""
        command: list[str | Path] = [BINARIES / "postgres", "-D", self._data, "-k", self._folder]
        command += ["-c", "listen_addresses=", "-c", "timezone=Asia/Kathmandu"]
        command += ["-c", "fsync=off"]  # what a process wrote outlives its crash; tests do not pull the plug
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user())
        self._process = process
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read_text()}")
            time.sleep(0.02)

    def crash(self) -> None:
        """End it at once: nothing is written, nobody is told."""
        self._do("pg_ctl", "stop", "-m", "immediate")
        self._wait()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://polytone@/{database}?host={self._folder}"

    def empty(self) -> str:
        """The URL of a new database. It goes with the server: to drop one has PostgreSQL write all others to disk."""
        name = f"test_{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def migrated(self) -> str:
        """The URL of a database with every table and no row: always the same one, and whoever had it has it no more."""
        if self._migrated is None:
            self._migrated = self.empty()
            open_database(self._migrated).dispose()
        engine = new_database(self._migrated)
        with engine.begin() as connection:
            connection.execute(text(END_OTHERS))
            for table in reversed(Table.metadata.sorted_tables):
                connection.execute(delete(table))
        engine.dispose()
        return self._migrated

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self._folder), user="polytone", dbname="postgres", autocommit=True)

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait(SECONDS)
            self._process = None

    def _do(self, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [BINARIES / command, "-D", self._data, *arguments], capture_output=True, check=False, **self._as_user()
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command} failed:\n{done.stderr.decode()}")

    def _as_user(self) -> dict[str, Any]:
        """How to run as that user, in a folder that it may enter."""
        if self._user is None:
            return {"cwd": self._folder}
        return {"cwd": self._folder, "user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}


@contextmanager
def running_postgresql() -> Iterator[Postgresql]:
    """A server while the block runs. Its folder is not one of pytest's: nobody but their owner may enter those."""
    with tempfile.TemporaryDirectory(prefix="polytone-postgresql-") as folder:
        server = Postgresql(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.crash()  # nobody needs its data any more: to write them takes half a minute on a busy disk


def has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
