"""Cleaning: a new file without what a check found, and one line for every change."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from polytone.contract.errors import InputError
from polytone.contract.files import write_together
from polytone.contract.rows import Conversation
from polytone.progress import Progress

from .check import Options, find_copied, personal_hits
from .encoding import mended
from .findings import Finding, Kind
from .formats import Row
from .personal import masked
from .sources import Source, read_sources

REPLIES_JUDGED = ("verdict", "preference")


class Change(BaseModel):
    """What was done to a row and why."""

    file: str
    line: int
    action: Literal["changed", "dropped"]
    reason: str


@dataclass(frozen=True)
class Cleaned:
    """What clean wrote."""

    out: Path
    changes_file: Path
    rows: int
    changes: list[Change]

    @property
    def dropped(self) -> int:
        return sum(one.action == "dropped" for one in self.changes)


def changes_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.changes.jsonl")


def clean(
    files: Sequence[Path],
    held_out: Sequence[Path],
    out: Path,
    options: Options,
    keep_personal: bool,
    progress: Progress,
) -> Cleaned:
    """Write the usable rows of `files` to `out`, each conversation once, mended and without personal data.

    Raises:
        InputError: a file cannot be read, or `rows_of_other_kind`.
        StorageError: the disk refused; neither file is written then.
    """
    progress.start("Cleaning", 3)
    sources, others = read_sources(files), read_sources(held_out)
    refuse_judged(sources)
    changes = [dropped(one) for source in sources for one in source.broken]
    progress.advance("texts")
    rows: list[Row] = []
    for row in (row for source in sources for row in source.rows):
        better, reasons = mend(row, options, keep_personal)
        rows.append(better)
        changes += [changed(row, reason) for reason in reasons]
    progress.advance("copies")
    kept, copies = without_copies(rows, [row for source in others for row in source.rows])
    changes += [dropped(one) for one in copies]
    write_together(
        {out: as_lines(map(as_record, kept)), changes_path(out): as_lines(one.model_dump() for one in changes)}
    )
    progress.advance()
    progress.finish()
    return Cleaned(out, changes_path(out), len(kept), changes)


def refuse_judged(sources: Sequence[Source]) -> None:
    judged = [row.place for source in sources for row in source.rows if row.format in REPLIES_JUDGED]
    if judged:
        raise InputError(
            f"{judged[0]}: is a verdict or preference ({len(judged)} rows are). "
            "Clean makes conversations to learn from, and a rejected reply is none. Name files of conversations.",
            code="rows_of_other_kind",
        )


def mend(row: Row, options: Options, keep_personal: bool) -> tuple[Row, list[str]]:
    """The row with its texts mended and masked, and what was done."""
    turns, done = [], Counter[str]()
    for turn in row.conversation.messages:
        text = mended(turn.content)
        done["damaged letters mended"] += text != turn.content
        if not keep_personal and (hits := personal_hits(text, options)):
            text = masked(text, hits)
            done.update(f"{hit.what} masked" for hit in hits)
        turns.append(turn.model_copy(update={"content": text}))
    reasons = [f"{what} ({count})" if count > 1 else what for what, count in done.items() if count]
    if not reasons:
        return row, []
    return replace(row, conversation=Conversation(messages=turns)), reasons


def without_copies(rows: list[Row], held_out: Sequence[Row]) -> tuple[list[Row], list[Finding]]:
    """Drop leaks and all but the first of every group of copies, until there are none.

    What counts as a copy depends on what the other rows are like, so that a second look may find more.
    """
    copies: list[Finding] = []
    while now := list(find_copied(rows, held_out)):
        copies += now
        gone = {one.place for one in now}
        rows = [row for row in rows if row.place not in gone]
    return rows, copies


def dropped(one: Finding) -> Change:
    of = "" if one.kind in (Kind.LEAK, Kind.EXACT_DUPLICATE, Kind.NEAR_DUPLICATE) else " row"
    return Change(
        file=one.file, line=one.line, action="dropped", reason=f"{one.kind.replace('_', ' ')}{of}: {one.detail}"
    )


def changed(row: Row, reason: str) -> Change:
    return Change(file=row.place.file, line=row.place.line, action="changed", reason=reason)


def as_record(row: Row) -> dict[str, Any]:
    return {
        "messages": row.conversation.as_dicts(),
        **{key: value for key, value in row.extra.items() if key != "messages"},
    }


def as_lines(records: Iterable[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False, default=str)}\n" for record in records).encode()
