"""Progress with the time left: a bar on a terminal, a line now and then in a log."""

import time
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """One bar at a time. Use as a context manager.

    Work in steps calls `start`, `advance` and `finish`; work in bytes calls `report_bytes`.

    Args:
        brief: leave nothing behind: no bar once it is over, and no line in a log for work of a few seconds.
    """

    def __init__(self, console: Console, brief: bool = False) -> None:
        self.console = console
        self._brief = brief
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=brief,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None, note="", visible=False)
        self._title, self._total, self._done = "", 0, 0
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._began = self._last_line = time.monotonic()
        self._task = self._bars.add_task(title, total=total, note="")
        if not self._brief and not self.console.is_terminal:
            self.console.print(f"{title} ...")

    def advance(self, note: str = "", steps: int = 1) -> None:
        self._done += steps
        count = f"{self._done}/{self._total}"
        self._show(self._title, self._done, self._total, f"{count} {note}".rstrip())
        if self._line_is_due():
            left = (time.monotonic() - self._began) / self._done * (self._total - self._done)
            parts = [f"{self._title}: {count}", note, f"about {left:.0f} s left"]
            self.console.print(", ".join(part for part in parts if part))

    def finish(self) -> None:
        if not self._brief and not self.console.is_terminal:
            self.console.print(f"{self._title}: done in {time.monotonic() - self._began:.0f} s")

    def report_bytes(self, title: str, done: int, total: int) -> None:
        """Progress in bytes; 0 for what is not known."""
        note = f"{decimal(done)} of {decimal(total)}" if total else decimal(done) if done else ""
        self._show(title, done, total or None, note)
        if self._line_is_due():
            self.console.print(f"{title} {note}".rstrip())

    def _show(self, title: str, done: int, total: int | None, note: str) -> None:
        self._bars.update(self._task, description=title, completed=done, total=total, note=note, visible=True)

    def _line_is_due(self) -> bool:
        if self.console.is_terminal or time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = time.monotonic()
        return True
