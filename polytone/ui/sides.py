"""Several answers that come at once, and what ends them early."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

SECONDS_BETWEEN_MOMENTS = 0.05

T = TypeVar("T")


class Halt:
    """Ends what a session has under way. It is the session's own, and outlives what it ends."""

    def __init__(self) -> None:
        self._wanted: asyncio.Event | None = None

    def begin(self) -> asyncio.Event:
        """For something new: it is to end once the event is set."""
        self._wanted = asyncio.Event()
        return self._wanted

    def now(self) -> None:
        if self._wanted is not None:
            self._wanted.set()


async def side_by_side(
    streams: Sequence[AsyncIterator[T]], now: Sequence[T], halt: asyncio.Event
) -> AsyncGenerator[tuple[T, ...], None]:
    """What each stream has come to, whenever one went on, beginning from `now`; the last time when all have ended.

    Who reads slowly misses what lies between, and nothing piles up. To leave this is to leave every stream, and so
    is `halt`.
    """
    latest, moved = list(now), asyncio.Event()

    async def follow(number: int, stream: AsyncIterator[T]) -> None:
        async for one in stream:
            latest[number] = one
            moved.set()

    tasks = [asyncio.create_task(follow(number, stream)) for number, stream in enumerate(streams)]
    halted = asyncio.create_task(halt.wait())
    for task in (*tasks, halted):
        task.add_done_callback(lambda _: moved.set())
    try:
        while not halted.done() and not all(task.done() for task in tasks):
            await moved.wait()
            moved.clear()
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
