"""Times, shares and counts as the pages show them."""

from datetime import datetime


def minute(at: str) -> str:
    """A time of the server's, in UTC and to the minute."""
    try:
        return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M}"
    except ValueError:
        return at


def percent(share: float) -> str:
    """ "5 %", "33.3 %"."""
    return f"{100 * share:.3g} %"


def counted(count: int, noun: str) -> str:
    """ "1 answer", "2,000 answers"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
