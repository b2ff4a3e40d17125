"""Cleaning: a new file without the problems that a check finds, and a line for every change."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from polytone.contract.errors import CheckError, InputError
from polytone.contract.files import write_together
from polytone.progress import Progress

from .check import Options, find_copied, personal_hits
from .containers import json_lines
from .encoding import repaired
from .findings import Finding
from .formats import Row
from .personal import masked
from .sources import Source, read_sources
from .wording import counted

JUDGED_FORMATS = ("verdict", "preference")
Personal = Literal["mask", "keep", "drop replies"]


class Change(BaseModel):
    """A change of a row, and its reason."""

    file: str
    line: int
    action: Literal["changed", "dropped"]
    reason: str


@dataclass(frozen=True)
class Cleaned:
    """What was written: `rows` rows in `out`, and in `changes_file` every change."""

    out: Path
    changes_file: Path
    rows: int
    changes: list[Change]

    @property
    def dropped(self) -> int:
        """Rows that are not in the new file."""
        return len(self._rows("dropped"))

    @property
    def changed(self) -> int:
        """Rows of the new file that are not as they were."""
        return len(self._rows("changed") - self._rows("dropped"))

    def _rows(self, action: str) -> set[tuple[str, int]]:
        return {(one.file, one.line) for one in self.changes if one.action == action}


def changes_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.changes.jsonl")


def clean(
    files: Sequence[Path],
    held_out: Sequence[Path],
    out: Path,
    options: Options,
    personal: Personal,
    progress: Progress,
) -> Cleaned:
    """Write the usable rows of `files` to `out`, each conversation once, repaired and without personal data.

    Args:
        personal: `mask` replaces personal data by placeholders, `keep` leaves it, and `drop replies` masks it in what
            users say and drops rows that have some in a reply.

    Raises:
        InputError: a file cannot be read, or `rows_of_other_kind`.
        CheckError: `no_rows_left`; nothing is written then.
        StorageError: the disk refused; neither file is written then.
    """
    progress.start("Cleaning", 3)
    sources, others = read_sources(files), read_sources(held_out)
    refuse_judged(sources)
    changes = [dropped(one) for source in sources for one in source.broken]
    progress.advance("texts")
    rows: list[Row] = []
    for row in (row for source in sources for row in source.rows):
        if personal == "drop replies" and has_personal_reply(row, options):
            changes.append(change(row, "dropped", "personal data in a reply"))
            continue
        better, reasons = repair(row, options, mask=personal != "keep")
        rows.append(better)
        changes += [change(row, "changed", reason) for reason in reasons]
    progress.advance("copies")
    kept, copies = without_copies(rows, [row for source in others for row in source.rows])
    changes += [dropped(one) for one in copies]
    if not kept:
        raise no_rows_left(sum(source.total for source in sources), changes)
    write_together(
        {
            out: json_lines(row.content.model_dump() for row in kept),
            changes_path(out): json_lines(one.model_dump() for one in changes),
        }
    )
    progress.advance()
    progress.finish()
    return Cleaned(out, changes_path(out), len(kept), changes)


def refuse_judged(sources: Sequence[Source]) -> None:
    judged = [row.place for source in sources for row in source.rows if row.format in JUDGED_FORMATS]
    if judged:
        raise InputError(
            f"{judged[0]}: is a verdict or preference, as {counted(len(judged), 'row')} of these files. `clean` writes "
            "conversations, and a rejected reply is not one to learn from. Name files of conversations.",
            code="rows_of_other_kind",
        )


def has_personal_reply(row: Row, options: Options) -> bool:
    replies = (turn.content for turn in row.conversation.messages if turn.role == "assistant")
    return any(personal_hits(repaired(reply), options) for reply in replies)


def repair(row: Row, options: Options, mask: bool) -> tuple[Row, list[str]]:
    """The row with its texts repaired and, if `mask`, without personal data; and what was changed."""
    turns, counts = [], Counter[str]()
    for turn in row.conversation.messages:
        text = repaired(turn.content)
        counts["damaged characters repaired"] += text != turn.content
        if mask and (hits := personal_hits(text, options)):
            text = masked(text, hits)
            counts.update(f"{hit.what} masked" for hit in hits)
        turns.append(turn.model_copy(update={"content": text}))
    reasons = [f"{what} ({count})" if count > 1 else what for what, count in counts.items() if count]
    if not reasons:
        return row, []
    conversation = row.conversation.model_copy(update={"messages": turns})
    return replace(row, content=conversation, conversation=conversation), reasons


def without_copies(rows: list[Row], held_out: Sequence[Row]) -> tuple[list[Row], list[Finding]]:
    """Drop leaks and all but the first of every cluster of copies.

    What counts as a copy depends on the other rows, so the search is repeated until it finds nothing.
    """
    copies: list[Finding] = []
    while more := list(find_copied(rows, held_out)):
        copies += more
        places = {one.place for one in more}
        rows = [row for row in rows if row.place not in places]
    return rows, copies


def no_rows_left(total: int, changes: Sequence[Change]) -> CheckError:
    reasons = Counter(one.reason for one in changes if one.action == "dropped")
    shown = "; ".join(reason for reason, _ in reasons.most_common(3))
    return CheckError(
        f"No row is left of {counted(total, 'row')}, so nothing was written: {shown}. "
        "`polytone data check` names every row.",
        code="no_rows_left",
    )


def dropped(one: Finding) -> Change:
    kind = one.kind.replace("_", " ")
    return Change(file=one.file, line=one.line, action="dropped", reason=f"{kind}: {one.detail}")


def change(row: Row, action: Literal["changed", "dropped"], reason: str) -> Change:
    return Change(file=row.place.file, line=row.place.line, action=action, reason=reason)
