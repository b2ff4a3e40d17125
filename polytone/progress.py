"""Progress with time left, for people: a bar on a terminal, a line now and then in a log."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """One bar at a time. Use as a context manager; `start`, `advance` and `finish` follow the work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._title, self._total, self._done = "", 0, 0
        self._began = self._spoke = 0.0

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._began = self._spoke = time.monotonic()
        self._task = self._bars.add_task(title, total=total, note="")
        if not self.console.is_terminal:
            self.console.print(f"{title} ...")

    def advance(self, note: str = "", steps: int = 1) -> None:
        self._done += steps
        if self._task is not None:
            self._bars.update(self._task, advance=steps, note=note)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            left = (now - self._began) / self._done * (self._total - self._done)
            self.console.print(f"{self._title}: {self._done}/{self._total} {note}, about {left:.0f} s left")

    def finish(self) -> None:
        if not self.console.is_terminal:
            self.console.print(f"{self._title}: done in {time.monotonic() - self._began:.0f} s")
