"""Several answers streamed at once, and the signal that ends them early."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

SECONDS_BETWEEN_MOMENTS = 0.05

T = TypeVar("T")


class Halt:
    """Ends the streams of one session. A session has one, for all of its streams."""

    def __init__(self) -> None:
        self._requested: asyncio.Event | None = None

    def begin(self) -> asyncio.Event:
        """A new event, for new streams: they end when it is set."""
        self._requested = asyncio.Event()
        return self._requested

    def now(self) -> None:
        if self._requested is not None:
            self._requested.set()


async def side_by_side(
    streams: Sequence[AsyncIterator[T]], now: Sequence[T], halt: asyncio.Event
) -> AsyncGenerator[tuple[T, ...], None]:
    """The latest value of each stream, whenever one changes, starting from `now`; once more when all have ended.

    A slow reader misses values in between, so nothing piles up. Closing this closes every stream, and so does `halt`.
    """
    latest, changed = list(now), asyncio.Event()

    async def follow(number: int, stream: AsyncIterator[T]) -> None:
        async for one in stream:
            latest[number] = one
            changed.set()

    tasks = [asyncio.create_task(follow(number, stream)) for number, stream in enumerate(streams)]
    halted = asyncio.create_task(halt.wait())
    for task in (*tasks, halted):
        task.add_done_callback(lambda _: changed.set())
    try:
        while not halted.done() and not all(task.done() for task in tasks):
            await changed.wait()
            changed.clear()
            yield tuple(latest)
            await asyncio.sleep(SECONDS_BETWEEN_MOMENTS)
        for task in tasks:
            if task.done():
                task.result()
        yield tuple(latest)
    finally:
        for task in (*tasks, halted):
            task.cancel()
        await asyncio.gather(*tasks, halted, return_exceptions=True)
