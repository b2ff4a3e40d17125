"""Fixtures shared by the suite: a tiny real base with real versions, and a server on a real socket."""

import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from polytone.contract.home import Home
from tests.support import postgresql as own
from tests.support.postgresql import DATABASE_URL
from tests.support.tiny_home import TinyHome, train_tiny


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_databases: runs on SQLite and on a PostgreSQL of the tests' own")
    os.environ.pop(DATABASE_URL, None)  # no test touches a database that somebody uses


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of the tests that are marked, those with a folder have a database."""
    if metafunc.definition.get_closest_marker("both_databases") and "tmp_path" in metafunc.fixturenames:
        metafunc.parametrize("kind_of_database", ["sqlite", "postgresql"], indirect=True)


@pytest.hookimpl(tryfirst=True)  # before -m leaves tests out
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark the tests that need PostgreSQL or Prometheus as slow."""
    for item in items:
        if {"postgresql", "watched"} & set(item.fixturenames) or "postgresql" in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[own.Postgresql]:
    if not own.installed():
        pytest.skip(own.MISSING)
    with own.running_postgresql() as server:
        yield server


@pytest.fixture(autouse=True)
def kind_of_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Unless a test asks for PostgreSQL, its database is SQLite in its home."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return "sqlite"
    server: own.Postgresql = request.getfixturevalue("postgresql")
    monkeypatch.setenv(DATABASE_URL, server.migrated())
    return "postgresql"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyHome:
    from polytone.progress import Progress
    from polytone.train.base_model import prepare_base
    from polytone.train.libraries import quiet_libraries
    from tests.support.tiny_llama import save_tiny_llama

    quiet_libraries()
    root = tmp_path_factory.mktemp("tiny")
    home = Home(root / "home")
    progress = Progress(Console(quiet=True))
    base = prepare_base(home, str(save_tiny_llama(root / "llama")), "tiny", "Apache-2.0", progress)
    return TinyHome(home, base, {name: train_tiny(root, home, name) for name in ("acme", "zest")})
