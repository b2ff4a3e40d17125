"""Background tasks and threads that end with the block that started them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


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


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, but who is cancelled waits for the thread's end: it may hold a connection that is about
    to be closed, or write what would be written again."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
