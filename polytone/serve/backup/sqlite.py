"""SQLite as one file, by its own backup API."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import create_engine

from polytone.contract.files import disk_refusal, flush_to_disk

from .dump import (
    Kind,
    Snapshot,
    Tell,
    bring_up_to_date,
    check_rows,
    damaged,
    described,
    make_private,
    not_empty,
    not_found,
    reaching,
)

PAGES = 4096
BUSY_SECONDS = 10.0
SQLITE_LOGS = ("-wal", "-shm", "-journal")


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


def described_file(file: Path) -> Snapshot:
    engine = create_engine(f"sqlite:///{file}")
    try:
        with reaching(str(file)), engine.connect() as connection:
            return described(connection, str(file))
    finally:
        engine.dispose()
