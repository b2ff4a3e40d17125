"""The report of a check, and the sentences that sum it up."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .balance import Topic
from .findings import BROKEN, Finding, Kind
from .lengths import Lengths
from .parity import MEASURES, Group
from .wording import counted


class FileReport(BaseModel):
    """`formats` counts the usable rows by the format they came in; `broken` counts the others.

    `unused_keys` are keys, or columns, that training does not use.
    """

    path: str
    rows: int
    broken: int
    formats: dict[str, int]
    unused_keys: list[str]


class Report(BaseModel):
    """Everything that a check found. Counts and measures are of the usable rows of `files`.

    `by_source` is empty unless rows have a `source`; `turns` counts rows by their turns, without the system prompt;
    `passed` is true if no row is broken or leaked.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["polytone.dataset/1"] = Field("polytone.dataset/1", alias="schema")
    files: list[FileReport]
    held_out: list[FileReport]
    rows: int
    usable: int
    by_source: dict[str, int]
    by_language: dict[str, int]
    labels: dict[str, int]
    turns: dict[int, int]
    lengths: Lengths | None
    topics: list[Topic]
    groups: list[Group]
    measures: dict[str, str] = MEASURES
    counts: dict[Kind, int]
    passed: bool
    findings: list[Finding]


def stops(kind: Kind) -> bool:
    """True if a finding of this kind fails a check."""
    return kind in (*BROKEN, Kind.LEAK)


def sentences(report: Report) -> list[str]:
    """The most important facts, one sentence each."""
    broken = report.rows - report.usable
    lines = [f"{counted(report.rows, 'row')} in {counted(len(report.files), 'file')}, {report.usable:,} usable."]
    if broken:
        lines.append(
            f"{counted(broken, 'row')} cannot be trained on; correct or drop {'it' if broken == 1 else 'them'}."
        )
    for kind, (of_one, of_several) in SUMMARIES.items():
        if count := rows_of(report, kind):
            lines.append(f"{counted(count, 'row')} {of_one if count == 1 else of_several}.")
    lines += [
        f"{file.path}: training does not use {', '.join(file.unused_keys)}."
        for file in report.files
        if file.unused_keys
    ]
    if report.topics and report.topics[0].share > 0.5:
        lines.append(f"More than half of the rows are about one topic ({report.topics[0].name}).")
    for group in report.groups:
        lines.extend(
            f"Replies where {group.attribute} is mentioned ({counted(group.rows, 'row')}) differ in {one.measure}: "
            f"{one.mentioned:g} against {one.others:g} (95 % interval of the difference {one.low:g} to {one.high:g})."
            for one in group.differences
            if one.clear
        )
    intervals = sum(len(group.differences) for group in report.groups)
    if intervals:
        lines.append(f"{intervals} differences were tested; one in twenty seems clear by chance.")
    return lines


# What a sentence about rows says after their number: of one row, and of several.
SUMMARIES = {
    Kind.LEAK: (
        "is a copy of a held-out row, on which the voice would be measured; drop it",
        "are copies of held-out rows, on which the voice would be measured; drop them",
    ),
    Kind.EXACT_DUPLICATE: ("repeats an earlier one exactly", "repeat earlier ones exactly"),
    Kind.NEAR_DUPLICATE: (
        "repeats an earlier one with a few words changed",
        "repeat earlier ones with a few words changed",
    ),
    Kind.CONTRADICTION: (
        "answers a question differently from an earlier one; a voice learns neither answer",
        "answer a question differently from an earlier one; a voice learns neither answer",
    ),
    Kind.ENCODING: ("has damaged characters", "have damaged characters"),
    Kind.PERSONAL: (
        "has personal data, which a voice may repeat to others",
        "have personal data, which a voice may repeat to others",
    ),
}


def rows_of(report: Report, kind: Kind) -> int:
    return len({(one.file, one.line) for one in report.findings if one.kind == kind})
