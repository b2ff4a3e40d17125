"""The report for people at a terminal."""

from itertools import groupby

from rich.console import Console
from rich.table import Table

from .findings import Finding, Kind
from .report import Report, sentences, stops

SHOWN = 3


def show(report: Report, where: str) -> None:
    """Print tables and sentences; `where` says where the full list is."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(*sentences(report), sep="\n")
    console.print(overview(report))
    for kind, findings in by_kind(report):
        console.print(f"{kind.replace('_', ' ')}: {len(findings)}", style="bold red" if stops(kind) else "bold")
        for one in findings[:SHOWN]:
            console.print(f"  {one.file}:{one.line}: {one.detail}")
        if len(findings) > SHOWN:
            console.print(f"  ... and {len(findings) - SHOWN} more")
    console.print(where if report.findings else "Nothing was found that needs mending.")


def overview(report: Report) -> Table:
    table = Table("what", "rows", box=None, pad_edge=False)
    for file in report.files:
        formats = ", ".join(f"{name} {count}" for name, count in file.formats.items()) or "none usable"
        table.add_row(f"{file.path} ({formats})", str(file.rows))
    for title, counts in (("source", report.by_source), ("language", report.by_language), ("label", report.labels)):
        for name, count in list(counts.items())[:8]:
            table.add_row(f"{title} {name}", str(count))
    for turns, count in list(report.turns.items())[:8]:
        table.add_row(f"{turns} turns", str(count))
    for topic in report.topics:
        table.add_row(f"topic {topic.name}", f"{topic.rows} ({topic.share:.0%})")
    if report.lengths:
        for name in ("row", "prompt", "reply"):
            one = getattr(report.lengths, name)
            words = f"half under {one.p50:g}, 95 % under {one.p95:g}, longest {one.max:g}"
            table.add_row(f"{name} length in {report.lengths.unit}", words)
    return table


def by_kind(report: Report) -> list[tuple[Kind, list[Finding]]]:
    order = list(Kind)
    ranked = sorted(report.findings, key=lambda one: order.index(one.kind))
    return [(kind, list(group)) for kind, group in groupby(ranked, key=lambda one: one.kind)]
