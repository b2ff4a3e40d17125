"""A home of its own for every soak test: the tiny base and its voices, no database yet."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from polytone.contract.home import Home
from polytone.serve.adapters.registry import Registry
from polytone.serve.database.session import open_database
from tests.support.tiny_home import TinyHome


@pytest.fixture
def mine(tiny: TinyHome, tmp_path: Path) -> TinyHome:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.bases.symlink_to(tiny.home.bases)
    shutil.copytree(tiny.home.adapters, home.adapters)
    return TinyHome(home, tiny.base, tiny.voices)


@pytest.fixture
def registry(mine: TinyHome) -> Iterator[Registry]:
    """What an operator's commands change, beside the server."""
    database = open_database(mine.home.database_url)
    yield Registry(database)
    database.dispose()
