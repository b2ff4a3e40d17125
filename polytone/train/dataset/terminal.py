"""The report on a terminal."""

from itertools import groupby

from rich.console import Console
from rich.table import Table

from .findings import Finding, Kind
from .report import Report, sentences, stops
from .wording import counted

SHOWN = 3


def show(report: Report, full_list: str) -> None:
    """Print tables and sentences; `full_list` says where every finding is."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(*sentences(report), sep="\n")
    console.print(overview(report))
    for kind, findings in by_kind(report):
        console.print(f"{kind.replace('_', ' ')}: {len(findings)}", style="bold red" if stops(kind) else "bold")
        for one in findings[:SHOWN]:
            console.print(f"  {one.file}:{one.line}: {one.detail}")
        if len(findings) > SHOWN:
            console.print(f"  ... and {len(findings) - SHOWN} more")
    console.print(full_list if report.findings else "No problems found.")


def overview(report: Report) -> Table:
    table = Table("what", "rows", box=None, pad_edge=False)
    for file in report.files:
        formats = ", ".join(f"{name} {count}" for name, count in file.formats.items()) or "none usable"
        table.add_row(f"{file.path} ({formats})", str(file.rows))
    for title, counts in (("source", report.by_source), ("language", report.by_language), ("label", report.labels)):
        for name, count in list(counts.items())[:8]:
            table.add_row(f"{title} {name}", str(count))
    for turns, count in list(report.turns.items())[:8]:
        table.add_row(counted(turns, "turn"), str(count))
    for topic in report.topics:
        table.add_row(f"topic {topic.name}", f"{topic.rows} ({topic.share:.0%})")
    if report.lengths:
        for name in ("row", "prompt", "reply"):
            one = getattr(report.lengths, name)
            lengths = f"median {one.p50:.0f}, 95 % up to {one.p95:.0f}, longest {one.max:.0f}"
            table.add_row(f"{name} length in {report.lengths.unit}", lengths)
    return table


def by_kind(report: Report) -> list[tuple[Kind, list[Finding]]]:
    order = list(Kind)
    ranked = sorted(report.findings, key=lambda one: order.index(one.kind))
    return [(kind, list(group)) for kind, group in groupby(ranked, key=lambda one: one.kind)]
