"""Small pieces of HTML made of texts that nobody trusts."""

import html
from collections.abc import Iterable, Sequence

TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})


class Safe(str):
    """HTML that was made here; everything else is escaped."""

    __slots__ = ()


def escaped(text: object) -> Safe:
    """Text that neither the browser nor Gradio's HTML templates take for anything else."""
    return text if isinstance(text, Safe) else Safe(html.escape(str(text)).translate(TEMPLATE_SIGNS))


def joined(*parts: object) -> Safe:
    return Safe("".join(map(escaped, parts)))


def heading(text: object) -> Safe:
    return Safe(f"<h2>{escaped(text)}</h2>")


def paragraph(text: object, look: str = "") -> Safe:
    return Safe(f'<p class="{look}">{escaped(text)}</p>' if look else f"<p>{escaped(text)}</p>")


def listing(items: Iterable[object]) -> Safe:
    return Safe(f"<ul>{''.join(f'<li>{escaped(item)}</li>' for item in items)}</ul>")


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Safe:
    """A table whose first column names its rows; narrow screens show each row as a list of its cells."""
    head = "".join(f'<th scope="col">{escaped(one)}</th>' for one in headers)
    body = "".join(f"<tr>{''.join(cells(headers, row))}</tr>" for row in rows)
    return Safe(
        f'<table class="facts"><caption>{escaped(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def cells(headers: Sequence[str], row: Sequence[object]) -> Iterable[str]:
    for number, (header, value) in enumerate(zip(headers, row, strict=True)):
        tag, scope = ("th", ' scope="row"') if number == 0 else ("td", "")
        yield f'<{tag}{scope} data-label="{escaped(header)}">{escaped(value)}</{tag}>'


def pairs(caption: str, rows: Iterable[tuple[object, object]]) -> Safe:
    """What is known of one thing."""
    body = "".join(f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td></tr>' for name, value in rows)
    return Safe(f'<table class="facts pairs"><caption>{escaped(caption)}</caption><tbody>{body}</tbody></table>')


def told_well(text: object) -> Safe:
    """That something was done; screen readers say it when it appears."""
    return Safe(f'<div class="told good" role="status">{escaped(text)}</div>')


def told_badly(text: object, reasons: Sequence[object] = ()) -> Safe:
    """That something was refused or went wrong, with every reason."""
    more = listing(reasons) if reasons else ""
    return Safe(f'<div class="told bad" role="alert">{paragraph(text)}{more}</div>')
