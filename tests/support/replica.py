"""Replicas in processes of their own: the app over the double, on a real socket."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import uvicorn

from polytone.contract.home import Home
from tests.support.postgresql import DATABASE_URL
from tests.support.processes import free_port

from .serving import serving


@dataclass(frozen=True)
class Replica:
    """`log` is what it wrote so far."""

    port: int
    log: Path
    popen: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def replicas(homes: list[Home], database_url: str) -> Iterator[list[Replica]]:
    """One for each home. They have just been started when the block begins, all at the same moment."""
    started = [start(home, database_url) for home in homes]
    try:
        yield started
    finally:
        for one in started:
            one.popen.terminate()
        for one in started:
            one.popen.wait(timeout=60)


def start(home: Home, database_url: str) -> Replica:
    port, log = free_port(), home.root / "log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, "-m", __name__, str(home.root), str(port)],
            env={**os.environ, DATABASE_URL: database_url},
            stdout=output,
            stderr=output,
        )
    return Replica(port, log, popen)


async def serve(root: Path, port: int) -> None:
    async with serving(root, traffic_queue=10_000, quiet_seconds=3600) as server:
        server.engine.ids = count(port * 1_000_000)  # no two replicas give out the same id
        listening = uvicorn.Server(uvicorn.Config(server.app, port=port, log_config=None, lifespan="off"))
        # uvicorn raises the signal that ended it once more when it is done; that one shall not kill us half-way.
        signal.signal(signal.SIGTERM, lambda *_: None)
        await listening.serve()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
