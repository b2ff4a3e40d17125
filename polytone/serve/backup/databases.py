"""Which kind of database a URL names."""

from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from polytone.contract.errors import InputError

from .dump import Database
from .postgresql import PostgresqlDatabase
from .sqlite import SqliteDatabase


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
