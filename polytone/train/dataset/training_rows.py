"""Rows of one kind, as training and evaluation take them: conversations, verdicts or preferences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from polytone.contract.errors import InputError
from polytone.contract.rows import Conversation, Preference, Verdict

from .findings import Place
from .sources import Source, read_source

MOST_PROBLEMS_SHOWN = 20
HI = '[{"role": "user", "content": "Hi"}]'
HELLO = '[{"role": "assistant", "content": "Hello."}]'
NAMES = {Conversation: "conversation", Verdict: "verdict", Preference: "preference"}
EXAMPLES = {
    Conversation: f'{{"messages": [{HI[1:-1]}, {HELLO[1:-1]}]}}',
    Verdict: f'{{"prompt": {HI}, "completion": {HELLO}, "label": true}}',
    Preference: f'{{"prompt": {HI}, "chosen": {HELLO}, "rejected": {HELLO}}}',
}

T = TypeVar("T", Conversation, Verdict, Preference)
R = TypeVar("R")


@dataclass(frozen=True)
class RowFile(Generic[R]):
    """The rows of one file with the file's identity; `lines` are their lines, or their numbers in CSV and Parquet."""

    path: str
    sha256: str
    rows: list[R]
    lines: list[int]


def read_conversations(path: Path) -> RowFile[Conversation]:
    """Read a file of conversations in any format; errors as `read_rows`."""
    return read_rows(path, Conversation)


def read_verdicts(path: Path) -> RowFile[Verdict]:
    """Read a file of rows with `prompt`, `completion` and `label`; errors as `read_rows`."""
    return read_rows(path, Verdict)


def read_preferences(path: Path) -> RowFile[Preference]:
    """Read a file of rows with `prompt`, `chosen` and `rejected`; errors as `read_rows`."""
    return read_rows(path, Preference)


def read_rows(path: Path, kind: type[T]) -> RowFile[T]:
    """Read a file whose rows are all of one kind.

    Raises:
        InputError: as `read_records` where the file cannot be read, or `rows_malformed`, which names every bad row
            (the first 20 of them) as `file:line: field: problem`.
    """
    source = read_source(path)
    rows, lines = [], []
    for row in source.rows:
        if isinstance(row.content, kind):
            rows.append(row.content)
            lines.append(row.place.line)
    if len(rows) < source.total:
        raise malformed(source, kind)
    return RowFile(source.path, source.sha256, rows, lines)


def malformed(source: Source, kind: type[T]) -> InputError:
    problems: list[tuple[Place, str]] = [(one.place, one.detail) for one in source.broken]
    problems += [
        (row.place, f"is a {NAMES[type(row.content)]}, not a {NAMES[kind]}")
        for row in source.rows
        if not isinstance(row.content, kind)
    ]
    problems.sort(key=lambda problem: problem[0].line)
    more = len(problems) - MOST_PROBLEMS_SHOWN
    shown = [f"{place}: {problem}" for place, problem in problems[:MOST_PROBLEMS_SHOWN]]
    if more > 0:
        shown.append(f"... and {more} more")
    return InputError(
        "\n".join(shown) + f"\nEach row must be a {NAMES[kind]}, such as {EXAMPLES[kind]}. Correct these rows, or "
        "drop broken ones with `polytone data clean`; nothing was written.",
        code="rows_malformed",
    )


def holds(path: Path, kind: type[T]) -> bool:
    """True if a file's first usable row is of this kind; problems of the file are left for its reader to name."""
    try:
        source = read_source(path)
    except InputError:
        return False
    return bool(source.rows) and isinstance(source.rows[0].content, kind)
