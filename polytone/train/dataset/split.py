"""Splitting rows into a training and a held-out file, with rows that belong together on one side."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from polytone.contract.errors import CheckError, InputError
from polytone.contract.files import write_together
from polytone.progress import Progress

from .containers import json_lines
from .contradictions import SHORTEST_PROMPT
from .duplicates import find_clusters, find_copies
from .formats import Row
from .overlap import split_words
from .sources import Source, read_sources
from .wording import counted

T = TypeVar("T")


@dataclass(frozen=True)
class SplitRows:
    """What was written: so many rows on either side, of `groups` groups that were not divided."""

    train: int
    held_out: int
    groups: int


def split(
    files: Sequence[Path], out_train: Path, out_held_out: Path, share: float, seed: int, progress: Progress
) -> SplitRows:
    """Hold out about `share` of the rows of `files`, drawn by `seed`, as JSON lines.

    Rows stay together that are copies of each other, that have the same `conversation_id`, or that begin with the same
    question of `SHORTEST_PROMPT` words or more. A check of the two files finds no leak.

    Raises:
        InputError: a file cannot be read, or `rows_malformed`.
        CheckError: `too_few_rows` if all rows belong together; nothing is written then.
        StorageError: the disk refused; neither file is written then.
    """
    progress.start("Splitting", 3)
    sources = read_sources(files)
    refuse_broken(sources)
    rows = [row for source in sources for row in source.rows]
    progress.advance("copies")
    groups = groups_of(rows)
    held_out = draw(groups, share, seed)
    progress.advance("leaks")
    held_out = without_leaks(rows, groups, held_out)
    if not held_out:
        raise CheckError(
            f"{counted(len(rows), 'row')} cannot be split: they are copies of each other or begin with the same "
            "question, so nothing was written. Add other conversations.",
            code="too_few_rows",
        )
    learned, measured = sides(rows, groups, held_out)
    write_together({out_train: as_file(learned), out_held_out: as_file(measured)})
    progress.advance()
    progress.finish()
    return SplitRows(len(learned), len(measured), len(groups))


def refuse_broken(sources: Sequence[Source]) -> None:
    broken = [one for source in sources for one in source.broken]
    if broken:
        raise InputError(
            f"{broken[0].place}: {broken[0].detail}; {counted(len({one.place for one in broken}), 'row')} of these "
            "files cannot be trained on. Drop broken rows with `polytone data clean` first.",
            code="rows_malformed",
        )


def groups_of(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows that belong together, every row in one group."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    clusters = find_clusters([row.conversation for row in rows])
    links = [(members[0], row) for members in clusters.members for row in members]
    first_with: dict[tuple[str, ...], int] = {}
    links += [(first_with.setdefault(key, index), index) for index, row in enumerate(rows) for key in keys_of(row)]
    one, other = np.array(links).T
    graph = coo_array((np.ones(len(links)), (one, other)), shape=(len(rows), len(rows)))
    count, labels = connected_components(graph, directed=False)
    groups: list[list[int]] = [[] for _ in range(count)]
    for index, label in enumerate(labels.tolist()):
        groups[label].append(index)
    return groups


def keys_of(row: Row) -> Iterator[tuple[str, ...]]:
    """Rows that share one of these belong together."""
    if conversation := row.extra.get("conversation_id"):
        yield ("conversation", str(conversation))
    question = split_words(next(turn.content for turn in row.conversation.messages if turn.role == "user"))
    if len(question) >= SHORTEST_PROMPT:
        yield ("question", *question)


def draw(groups: Sequence[Sequence[int]], share: float, seed: int) -> set[int]:
    """Numbers of the groups to hold out: drawn until `share` of the rows is reached, leaving out those too large."""
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible split, no secret
    remaining = max(1, round(share * sum(map(len, groups))))
    drawn: set[int] = set()
    for number in order:
        if len(groups[number]) <= remaining:
            drawn.add(number)
            remaining -= len(groups[number])
    if not drawn and len(groups) > 1:
        drawn.add(min(order, key=lambda number: len(groups[number])))
    return drawn


def without_leaks(rows: Sequence[Row], groups: Sequence[Sequence[int]], held_out: set[int]) -> set[int]:
    """Move groups back to training until a check finds no leak: its candidates depend on the order of the rows."""
    while True:
        learned, measured = sides(range(len(rows)), groups, held_out)
        copies = find_copies([rows[i].conversation for i in learned], [rows[i].conversation for i in measured])
        leaked = {measured[copy.of] for copy in copies.leaked}
        if not leaked:
            return held_out
        held_out = {number for number in held_out if leaked.isdisjoint(groups[number])}


def sides(rows: Sequence[T], groups: Sequence[Sequence[int]], held_out: set[int]) -> tuple[list[T], list[T]]:
    """Rows to learn from and held-out rows, in their order."""
    measured = {index for number in held_out for index in groups[number]}
    return (
        [row for index, row in enumerate(rows) if index not in measured],
        [row for index, row in enumerate(rows) if index in measured],
    )


def as_file(rows: Sequence[Row]) -> bytes:
    return json_lines(row.content.model_dump() for row in rows)
