"""The report of a check, as programs read it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .balance import Topic
from .findings import BROKEN, Finding, Kind
from .lengths import Lengths
from .parity import MEASURES, Group


class FileReport(BaseModel):
    """`formats` counts the usable rows by the format they came in; `broken` counts the others."""

    path: str
    rows: int
    broken: int
    formats: dict[str, int]


class Report(BaseModel):
    """Everything that a check found. Counts and measures are of the usable rows of `files`.

    `by_source` is empty unless rows have a `source`; `turns` counts rows by their turns, the system prompt apart;
    `passed` is whether no row is broken or leaked.
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
    """Whether a finding of this kind fails a check."""
    return kind in (*BROKEN, Kind.LEAK)


def sentences(report: Report) -> list[str]:
    """What a person should know first, one sentence a matter."""
    broken = report.rows - report.usable
    said = [
        f"{report.rows} rows in {len(report.files)} file{'s' * (len(report.files) > 1)}, "
        f"{report.usable} of them usable."
    ]
    if broken:
        said.append(f"{broken} rows cannot be trained on; mend or drop them.")
    for kind, words in WORDS.items():
        if report.counts.get(kind):
            said.append(words.format(rows_of(report, kind)))
    if report.topics and report.topics[0].share > 0.5:
        said.append(f"More than half of the rows are about one topic ({report.topics[0].name}).")
    for group in report.groups:
        said.extend(
            f"Replies where {group.attribute} is mentioned ({group.rows} rows) differ in {one.measure}: "
            f"{one.mentioned:g} against {one.others:g} (95 % interval of the difference {one.low:g} to {one.high:g})."
            for one in group.differences
            if one.clear
        )
    intervals = sum(len(group.differences) for group in report.groups)
    if intervals:
        said.append(f"Of the {intervals} differences looked at, one in twenty would seem clear by chance.")
    return said


WORDS = {
    Kind.LEAK: "{} rows are copies of held-out rows: what is measured on those says nothing. Drop them.",
    Kind.EXACT_DUPLICATE: "{} rows repeat an earlier one exactly.",
    Kind.NEAR_DUPLICATE: "{} rows repeat an earlier one but for a few words.",
    Kind.CONTRADICTION: "{} rows answer a question differently from an earlier row; a voice learns neither answer.",
    Kind.ENCODING: "{} rows have damaged letters.",
    Kind.PERSONAL: "{} rows have personal data in them, which a voice may repeat to others.",
}


def rows_of(report: Report, kind: Kind) -> int:
    return len({(one.file, one.line) for one in report.findings if one.kind == kind})
