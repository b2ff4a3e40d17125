"""Work that goes on beside a block and ends with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def working(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do `work` while the block runs; it is cancelled at the block's end, however that ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await stop_task(task)


async def stop_task(task: "asyncio.Task[None]") -> None:
    """Cancel and wait. Who is cancelled while waiting here stays cancelled: suppressing that hung a shutdown."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
