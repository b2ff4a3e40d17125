"""Dump and restore SQLite with its own backup API."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import create_engine

from polytone.contract.files import disk_refusal, flush_to_disk

from .dump import (
    Kind,
    Report,
    Snapshot,
    bring_up_to_date,
    check_rows,
    damaged,
    database_errors,
    make_private,
    not_empty,
    not_found,
    take_snapshot,
)

PAGES = 4096
BUSY_SECONDS = 10.0
SQLITE_LOGS = ("-wal", "-shm", "-journal")


class SqliteDumper:
    """A SQLite file. A restore prepares it under a hidden name beside its place and renames it."""

    kind: Kind = "sqlite"
    ending = ".db"

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        self.prepared = self._file.with_name(f".{self._file.name}.restoring")

    def dump(self, target: Path, report: Report) -> Snapshot:
        if not self._file.is_file():
            raise not_found(str(self._file))

        def progress(_status: int, left: int, pages: int) -> None:
            report("Copying the database", (pages - left) * size, pages * size)

        address = f"file:{quote(str(self._file))}?mode=rw"
        with (
            database_errors(str(self._file), target),
            closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            size = int(source.execute("PRAGMA page_size").fetchone()[0])
            source.execute(
                "BEGIN"
            )  # with the read below it shows one moment; without it, each write would restart the copy
            source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            source.backup(copy, pages=PAGES, progress=progress)
            copy.execute("PRAGMA journal_mode=DELETE")  # a single file, without a log beside it
            problems = [str(row[0]) for row in copy.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise damaged(str(self._file), "; ".join(problems))
        return snapshot_of_file(target)

    def contents(self) -> list[str]:
        names = [self._file, *(self._file.with_name(self._file.name + end) for end in SQLITE_LOGS)]
        return [str(path) for path in names if path.exists()]

    def prepare(self, dump: Path, expected: Snapshot, report: Report) -> None:
        self.discard()
        report("Copying the database", 0, dump.stat().st_size)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        make_private(self.prepared)
        try:
            shutil.copyfile(dump, self.prepared)
        except OSError as error:
            raise disk_refusal(self.prepared, error) from error
        with database_errors(str(self.prepared)):
            check_rows(snapshot_of_file(self.prepared), expected)
            bring_up_to_date(f"sqlite:///{self.prepared}")
            with closing(sqlite3.connect(self.prepared)) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")  # a log would not be renamed with the file
        flush_to_disk(self.prepared)

    def put_in_place(self, dump: Path, expected: Snapshot, report: Report) -> None:
        if self.prepared.exists():
            if existing := self.contents():
                raise not_empty(", ".join(existing))
            self.prepared.rename(self._file)
            flush_to_disk(self._file.parent)
        elif not self._file.exists():
            self.prepare(dump, expected, report)
            self.put_in_place(dump, expected, report)

    def discard(self) -> None:
        for end in ("", *SQLITE_LOGS):
            self.prepared.with_name(self.prepared.name + end).unlink(missing_ok=True)


def snapshot_of_file(file: Path) -> Snapshot:
    engine = create_engine(f"sqlite:///{file}")
    try:
        with database_errors(str(file)), engine.connect() as connection:
            return take_snapshot(connection, str(file))
    finally:
        engine.dispose()
