"""Choose how to dump and restore the database that a URL names."""

from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from polytone.contract.errors import InputError

from .dump import DatabaseDumper
from .postgresql import PostgresqlDumper
from .sqlite import SqliteDumper


def dumper_for(url: str) -> DatabaseDumper:
    """The dumper for SQLite in a file, or for PostgreSQL.

    Raises:
        InputError: `settings_invalid`.
    """
    try:
        parts = make_url(url)
    except ArgumentError:
        raise InputError("POLYTONE_DATABASE_URL: is not an SQLAlchemy URL.", code="settings_invalid") from None
    kind = parts.get_backend_name()
    if kind == "sqlite" and parts.database:
        return SqliteDumper(Path(parts.database))
    if kind == "postgresql":
        return PostgresqlDumper(url)
    raise InputError(
        f"POLYTONE_DATABASE_URL: a {kind} database cannot be backed up. SQLite in a file and PostgreSQL can.",
        code="settings_invalid",
    )
