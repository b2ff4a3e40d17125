"""The check of files of conversations: files to a report."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polytone.progress import Progress

from .balance import find_topics
from .contradictions import find_contradictions
from .duplicates import Copy, find_copies
from .encoding import damage
from .findings import Finding, Kind, finding
from .formats import Row
from .languages import languages
from .lengths import Count, Lengths, measure
from .parity import compare_groups
from .personal import REGIONS, Hit, find_personal, hint
from .report import FileReport, Report, stops
from .sources import Source, read_sources


@dataclass(frozen=True)
class Options:
    """`regions`: countries whose phone numbers need no prefix. `further`: another finder of personal data."""

    unit: str
    count: Count
    regions: Sequence[str] = REGIONS
    further: Callable[[str], list[Hit]] | None = None


def check(files: Sequence[Path], held_out: Sequence[Path], options: Options, progress: Progress) -> Report:
    """Read files and report their content and their problems.

    Raises:
        InputError: a file cannot be read at all.
    """
    progress.start("Checking", 6)
    sources, others = read_sources(files), read_sources(held_out)
    rows = [row for one in sources for row in one.rows]
    held_out_rows = [row for one in others for row in one.rows]
    progress.advance("copies")
    findings = [one for source in (*sources, *others) for one in source.broken]
    findings += find_copied(rows, held_out_rows)
    progress.advance("personal data")
    findings += [one for row in rows for one in problems_of(row, options)]
    findings += find_contradictions(rows)
    progress.advance("languages")
    by_language = languages(rows)
    progress.advance("topics")
    topics = find_topics(rows)
    progress.advance("groups")
    report = Report(
        files=[summary(one) for one in sources],
        held_out=[summary(one) for one in others],
        rows=sum(one.total for one in sources),
        usable=len(rows),
        by_source=by_source(rows),
        by_language=by_language,
        labels=dict(Counter(str(row.extra.get("label")) for row in rows if row.format == "verdict")),
        turns=turns(rows),
        lengths=lengths(rows, options),
        topics=topics,
        groups=compare_groups(rows) if rows else [],
        counts=dict(Counter(one.kind for one in findings)),
        passed=not any(stops(one.kind) for one in findings),
        findings=sorted(findings, key=order(sources)),
    )
    progress.advance()
    progress.finish()
    return report


def find_copied(rows: Sequence[Row], held_out: Sequence[Row]) -> Iterator[Finding]:
    """Leaks and duplicates; a leaked row is not reported as a duplicate too."""
    copies = find_copies([row.conversation for row in rows], [row.conversation for row in held_out])
    leaked = {copy.row for copy in copies.leaked}
    for copy in copies.leaked:
        yield copied(rows[copy.row], held_out[copy.of], copy, Kind.LEAK)
    for copy in copies.within:
        if copy.row not in leaked:
            kind = Kind.EXACT_DUPLICATE if copy.exact else Kind.NEAR_DUPLICATE
            yield copied(rows[copy.row], rows[copy.of], copy, kind)


def copied(row: Row, of: Row, copy: Copy, kind: Kind) -> Finding:
    relation = "the same as" if copy.exact else f"{copy.similarity:.0%} of the words of"
    return finding(row.place, kind, f"{relation} {of.place}", copies=of.place, similarity=copy.similarity)


def problems_of(row: Row, options: Options) -> Iterator[Finding]:
    """Damaged characters and personal data in a row's turns."""
    for number, turn in enumerate(row.conversation.messages, start=1):
        where = f"in turn {number} ({turn.role})"
        if damaged := damage(turn.content):
            yield finding(row.place, Kind.ENCODING, f"{damaged} {where}")
        for hit in personal_hits(turn.content, options):
            yield finding(row.place, Kind.PERSONAL, f"{hit.what} {hint(turn.content, hit)} {where}")


def personal_hits(text: str, options: Options) -> list[Hit]:
    hits = find_personal(text, options.regions)
    if options.further is None:
        return hits
    return [
        *hits,
        *(one for one in options.further(text) if all(one.end <= h.start or one.start >= h.end for h in hits)),
    ]


def summary(source: Source) -> FileReport:
    return FileReport(
        path=source.path,
        rows=source.total,
        broken=source.total - len(source.rows),
        formats=source.formats,
        unused_keys=source.unused_keys,
    )


def by_source(rows: Sequence[Row]) -> dict[str, int]:
    return dict(Counter(str(row.extra["source"]) for row in rows if "source" in row.extra).most_common())


def turns(rows: Sequence[Row]) -> dict[int, int]:
    counts = Counter(sum(turn.role != "system" for turn in row.conversation.messages) for row in rows)
    return dict(sorted(counts.items()))


def lengths(rows: Sequence[Row], options: Options) -> Lengths | None:
    return measure(rows, options.unit, options.count) if rows else None


def order(sources: Sequence[Source]) -> Callable[[Finding], tuple[int, int]]:
    """By file in the order they were named, held-out files last, then by line."""
    rank = {source.path: number for number, source in enumerate(sources)}
    return lambda one: (rank.get(one.file, len(rank)), one.line)
