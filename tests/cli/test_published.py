"""Commands and options are published: scripts rely on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from polytone.cli.main import app

PUBLISHED = Path(__file__).with_name("published.txt")


def words(command: Any, path: str) -> Iterator[str]:
    """A command, its options, and those of its subcommands, one string each."""
    yield path
    for parameter in command.params:
        yield from (f"{path} {name}" for name in (*parameter.opts, *parameter.secondary_opts))
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from words(subcommand, f"{path} {name}")


def test_no_published_command_or_option_is_missing() -> None:
    published = PUBLISHED.read_text().splitlines()
    assert set(published) - set(words(typer.main.get_command(app), "polytone")) == set()
