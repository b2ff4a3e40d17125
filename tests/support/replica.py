"""Replicas in processes of their own: the app over the double, on a real socket."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path

import uvicorn

from bench.running import ServerProcess, free_port, running
from polytone.contract.home import Home
from tests.support.postgresql import DATABASE_URL

from .serving import serving


@contextmanager
def replicas(homes: list[Home], database_url: str) -> Iterator[list[ServerProcess]]:
    """One for each home. They have just been started when the block begins, all at the same moment."""
    with ExitStack() as stack:
        yield [stack.enter_context(replica(home, database_url)) for home in homes]


def replica(home: Home, database_url: str) -> AbstractContextManager[ServerProcess]:
    port = free_port()
    command = [sys.executable, "-m", __name__, str(home.root), str(port)]
    return running(command, {DATABASE_URL: database_url}, port, home.root / "log")


async def serve(root: Path, port: int) -> None:
    async with serving(root, traffic_queue=10_000, quiet_seconds=3600) as server:
        server.engine.ids = count(port * 1_000_000)  # no two replicas give out the same id
        listening = uvicorn.Server(uvicorn.Config(server.app, port=port, log_config=None, lifespan="off"))
        # uvicorn raises the signal that ended it once more when it is done; that one shall not kill us half-way.
        signal.signal(signal.SIGTERM, lambda *_: None)
        await listening.serve()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
