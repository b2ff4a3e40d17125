"""Documents that training writes: Markdown from Jinja2 templates, and plots."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tabulate import tabulate

from polytone.contract.files import write_whole


def render(template: Path, **values: Any) -> str:
    """Fill in a template; a value that it names and nobody gives is an error.

    `one_line` and `quoted` are filters for text of any kind: on one line that ends no table cell, and as a quotation.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(one_line=one_line, quoted=quoted)
    return environment.get_template(template.name).render(**values)


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table of texts."""
    return str(tabulate([list(row) for row in rows], headers=list(headers), tablefmt="github", disable_numparse=True))


def one_line(text: str) -> str:
    """The text on one line, without anything that would end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def save_png(figure: Any, target: Path) -> None:
    """Write a matplotlib figure, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    write_whole(target, content.getvalue())
