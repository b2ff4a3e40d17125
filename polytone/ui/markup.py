"""HTML made of texts that nobody has checked: everything is escaped."""

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape

TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})


class Html(Markup):
    """HTML that was made here. `format` and `join` escape everything else, for browsers and for Gradio's templates."""

    __slots__ = ()

    @classmethod
    def escape(cls, s: Any, /) -> "Html":
        return s if isinstance(s, Html) else cls(escape(s).translate(TEMPLATE_SIGNS))


def joined(*parts: object) -> Html:
    return Html().join(map(Html.escape, parts))


def heading(text: object) -> Html:
    return Html("<h2>{}</h2>").format(text)


def paragraph(text: object, look: str = "") -> Html:
    return Html('<p class="{}">{}</p>').format(look, text) if look else Html("<p>{}</p>").format(text)


def listing(items: Iterable[object]) -> Html:
    return Html("<ul>{}</ul>").format(joined(*(Html("<li>{}</li>").format(item) for item in items)))


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table whose first column names its rows; narrow screens show each row as a list of its cells."""
    head = joined(*(Html('<th scope="col">{}</th>').format(one) for one in headers))
    body = joined(*(Html("<tr>{}</tr>").format(joined(*cells(headers, row))) for row in rows))
    return Html('<table class="facts"><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(
        caption, head, body
    )


def cells(headers: Sequence[str], row: Sequence[object]) -> Iterable[Html]:
    first = Html('<th scope="row" data-label="{}">{}</th>')
    other = Html('<td data-label="{}">{}</td>')
    for number, (header, value) in enumerate(zip(headers, row, strict=True)):
        yield (other if number else first).format(header, value)


def pairs(caption: str, rows: Iterable[tuple[object, object]]) -> Html:
    """A table of names and values."""
    row = Html('<tr><th scope="row">{}</th><td>{}</td></tr>')
    body = joined(*(row.format(name, value) for name, value in rows))
    return Html('<table class="facts pairs"><caption>{}</caption><tbody>{}</tbody></table>').format(caption, body)


def success(text: object) -> Html:
    """A message that something was done; screen readers read it when it appears."""
    return Html('<div class="message good" role="status">{}</div>').format(text)


def failure(text: object, reasons: Sequence[object] = ()) -> Html:
    """A message that something was refused or went wrong, with every reason."""
    more = listing(reasons) if reasons else ""
    return Html('<div class="message bad" role="alert">{}{}</div>').format(paragraph(text), more)
