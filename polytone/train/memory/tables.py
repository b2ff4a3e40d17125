"""An estimate as tables for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from .plan import EVALUATION_ROWS, METHODS

GB = 1_000_000_000


def show(console: Console, report: dict[str, Any]) -> None:
    """The report for people: items by method, batches and lengths, and what fits where."""
    console.print(
        f"{report['model']}: {report['parameters']:,} parameters. Memory of training on {report['device']}, in GB "
        f"(10^9 bytes), {report['batch']} rows of {report['length']} tokens at a time:",
        highlight=False,
    )
    console.print(items_table(report), grid_table(report), cards_table(report))
    console.print(f"What {report['method']} assumes:", highlight=False)
    for item in report["items"]:
        if item["bytes"]:
            console.print(f"- {item['name']}: {item['assumption']}.", highlight=False, markup=False)
    if report["method"] == "qlora":
        console.print(
            f"A whole polytone train, which then measures the voice on {EVALUATION_ROWS} held-out rows at a time: "
            f"{report['run_bytes'] / GB:.3f} GB where those are as long.",
            highlight=False,
        )


def items_table(report: dict[str, Any]) -> Table:
    table = Table("", *METHODS)
    for number, item in enumerate(report["items"]):
        found = [report["methods"][one]["items"][number]["bytes"] for one in METHODS]
        if any(found):
            table.add_row(item["name"], *(f"{size / GB:.3f}" if size else "-" for size in found))
    table.add_section()
    table.add_row("total", *(f"{report['methods'][one]['total_bytes'] / GB:.3f}" for one in METHODS))
    return table


def grid_table(report: dict[str, Any]) -> Table:
    table = Table("rows", "tokens", *METHODS)
    for row in report["grid"]:
        sizes = (f"{row['total_bytes'][one] / GB:.2f}" for one in METHODS)
        table.add_row(str(row["batch"]), str(row["length"]), *sizes)
    return table


def cards_table(report: dict[str, Any]) -> Table:
    table = Table("largest batch on", "tokens", *METHODS)
    for card in report["cards"]:
        for length in card["largest_batch"]["full"]:
            found = (card["largest_batch"][one][length] for one in METHODS)
            table.add_row(where(card), length, *(str(size) if size else "does not fit" for size in found))
    return table


def where(card: dict[str, Any]) -> str:
    mine = card["name"].startswith("this machine")
    return f"{card['name']}, {card['bytes'] / GB:.1f} GB free" if mine else str(card["name"])
