"""Results as commands print them."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from io import StringIO
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDEST = 10_000
FEW_NAMES = 10


def print_change(document: dict[str, Any], sentence: str, as_json: bool) -> None:
    """Print a change as one JSON document, or as a sentence with what running servers make of it.

    Args:
        document: has a `state`; "ready", "asked for" and "no server" are those of `wait_until`.
    """
    if as_json:
        print(json.dumps(document))
        return
    print(sentence)
    if document["state"] == "no server":
        print("No server is running; the next one to start takes this up: polytone serve")
    if document["state"] == "asked for":
        print("Running servers take this up within seconds: polytone adapters list")


def print_table(table: Table) -> None:
    """Print one line a row, as wide as it needs to be: ids can be copied from a narrow terminal and from a pipe."""
    console = Console(file=StringIO(), width=WIDEST, highlight=False, markup=False)
    width = Measurement.get(console, console.options, table).maximum
    with console.capture() as capture:
        console.print(table, width=width)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that does not exist: similar ones, else all of them if they are few."""
    names = sorted(known)
    if similar := get_close_matches(name, names):
        return f" Did you mean {' or '.join(similar)}?"
    return f" There are: {', '.join(names)}." if 0 < len(names) <= FEW_NAMES else ""
