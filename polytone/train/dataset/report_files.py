"""The report as files: report.json, report.md and plots."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polytone.contract.files import write_together
from polytone.train.documents import one_line, table

from .report import Report, sentences
from .terminal import by_kind

SHOWN = 50
PLOTS = ("findings.png", "lengths.png", "topics.png", "groups.png")


def write_report(folder: Path, report: Report) -> None:
    """Write the report's files into `folder`, replacing those of an earlier report.

    Raises:
        StorageError: the disk refused; no file was written.
    """
    drawn = {name: plot for name, plot in plots(report).items() if plot}
    files = {"report.json": report.model_dump_json(by_alias=True, indent=1).encode(), **drawn}
    files["report.md"] = document(report, [name for name in PLOTS if name in drawn]).encode()
    for name in set(PLOTS) - set(drawn):
        (folder / name).unlink(missing_ok=True)
    write_together({folder / name: content for name, content in files.items()})


def document(report: Report, drawn: list[str]) -> str:
    """The report as Markdown, with the pictures in `drawn`."""
    parts = ["# Conversations checked", "", *(f"- {one}" for one in sentences(report)), ""]
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in drawn]
    for title, counts in (("Sources", report.by_source), ("Languages", report.by_language), ("Labels", report.labels)):
        parts += section(title, ("", "rows"), [(name, str(count)) for name, count in counts.items()])
    parts += section("Turns", ("turns", "rows"), [(str(k), str(v)) for k, v in report.turns.items()])
    topics = [(one.name, str(one.rows), f"{one.share:.1%}", f"{one.reply_words:g}") for one in report.topics]
    parts += section("Topics", ("distinctive words", "rows", "share", "words per reply"), topics)
    parts += section(
        "Sensitive mentions",
        ("attribute", "rows", "measure", "with", "without", "95 % interval of the difference"),
        group_rows(report),
    )
    if any(group.differences for group in report.groups):
        parts += ["", *(f"- {name}: {meaning}" for name, meaning in report.measures.items())]
    for kind, findings in by_kind(report):
        title = f"{kind.replace('_', ' ').capitalize()}: {len(findings)}"
        parts += section(title, ("row", "problem"), [(str(one.place), one.detail) for one in findings[:SHOWN]])
        if len(findings) > SHOWN:
            parts += ["", f"The other {len(findings) - SHOWN} are in report.json."]
    return "\n".join(parts) + "\n"


def section(title: str, headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    return ["", f"## {title}", "", table(headers, [[one_line(cell) for cell in row] for row in rows])]


def group_rows(report: Report) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in report.groups:
        rows += [
            (one.attribute, str(one.rows), d.measure, f"{d.mentioned:g}", f"{d.others:g}", f"{d.low:g} to {d.high:g}")
            for d in one.differences
        ] or [(one.attribute, str(one.rows), "too few rows", "", "", "")]
    return rows


def plots(report: Report) -> dict[str, bytes]:
    """Name -> PNG, empty where there is nothing to draw."""
    kinds = [(kind.replace("_", " "), len(findings)) for kind, findings in by_kind(report)]
    drawn = {
        "findings.png": bars("findings", kinds),
        "topics.png": bars("rows by topic", [(one.name, one.rows) for one in report.topics]),
        "groups.png": intervals(report),
        "lengths.png": b"",
    }
    if report.lengths:
        one = report.lengths.row
        quantiles = [
            ("shortest", one.min),
            ("5 %", one.p5),
            ("median", one.p50),
            ("95 %", one.p95),
            ("99 %", one.p99),
            ("longest", one.max),
        ]
        drawn["lengths.png"] = bars(f"length of rows in {report.lengths.unit}", quantiles)
    return drawn


def bars(title: str, values: list[tuple[str, int]] | list[tuple[str, float]]) -> bytes:
    from matplotlib.figure import Figure

    if not values:
        return b""
    figure = Figure(figsize=(8, 0.4 * len(values) + 1.2), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh([name for name, _ in reversed(values)], [value for _, value in reversed(values)], color="#4878a8")
    axes.bar_label(drawn, fmt="%g", padding=3)
    axes.set_title(title)
    axes.margins(x=0.12)
    return png(figure)


def intervals(report: Report) -> bytes:
    """A panel for every measure: differences between rows that mention an attribute and others, with intervals."""
    from matplotlib.figure import Figure

    compared = [group for group in report.groups if group.differences]
    if not compared:
        return b""
    figure = Figure(figsize=(3 * len(report.measures), 0.4 * len(compared) + 1.4), layout="constrained")
    for number, (axes, name) in enumerate(
        zip(figure.subplots(1, len(report.measures), sharey=True), report.measures, strict=True)
    ):
        for place, group in enumerate(compared):
            one = group.differences[number]
            axes.plot([one.low, one.high], [place, place], color="#4878a8")
            axes.plot(one.difference, place, "o", color="#4878a8")
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_yticks(range(len(compared)), [group.attribute for group in compared])
    return png(figure)


def png(figure: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()
