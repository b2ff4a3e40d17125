"""Progress in a log: whole lines, seldom, and none for short work that asks to leave nothing behind."""

import io

import pytest
from rich.console import Console

from polytone.progress import Progress


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A log in which every line is due; a clock that advances by a second at each look."""
    seconds = iter(range(1000))
    monkeypatch.setattr("polytone.progress.time.monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr("polytone.progress.SECONDS_BETWEEN_LINES", 0.0)
    return io.StringIO()


def test_a_line_without_a_note_has_no_stray_comma(log: io.StringIO) -> None:
    """A log of an evaluation said `16/48 , about 22 s left`."""
    with Progress(Console(file=log)) as progress:
        progress.start("Replies", total=48)
        progress.advance(steps=16)
        progress.advance("loss 2.31")
        progress.finish()
    first, second, third, last = log.getvalue().splitlines()
    assert first == "Replies ..."
    assert second.startswith("Replies: 16/48, about ")
    assert third.startswith("Replies: 17/48, loss 2.31, about ")
    assert last.startswith("Replies: done in ")


def test_bytes_are_told_in_units_and_short_work_says_nothing(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress(Console(file=log), brief=True) as progress:
        progress.report_bytes("Copying", 1_500_000, 3_000_000)
        monkeypatch.setattr("polytone.progress.SECONDS_BETWEEN_LINES", 1e9)
        progress.report_bytes("Copying", 2_500_000, 3_000_000)
    assert log.getvalue() == "Copying 1.5 MB of 3.0 MB\n"
