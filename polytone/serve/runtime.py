"""What runs beside the requests: keep the engine up, bring this replica to the desired state, say how it stands."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from polytone.contract.errors import PolytoneError

from .engine import Engine
from .metrics import Metrics
from .registry import Registry
from .voices import Voices

log = logging.getLogger(__name__)

LAST_BACKOFF_SECONDS = 60.0


@dataclass
class Runtime:
    """Everything a request handler needs, built once by the composition root."""

    engine: Engine
    registry: Registry
    voices: Voices
    metrics: Metrics
    poll_seconds: float
    settled: bool = False
    problem: str | None = "the engine is starting"

    def ready(self) -> bool:
        """The engine answers, and every published version has been tried since it came up."""
        return self.settled and self.engine.healthy()

    async def run(self) -> None:
        """Supervise the engine until cancelled; a dead engine is rebuilt with backoff."""
        failures = 0
        await self._report()
        while True:
            began = time.monotonic()
            try:
                await self.engine.start()
            except PolytoneError as error:
                failures += 1
                self.problem = error.message
                log.error("%s", error.message)
            else:
                failures = 0
                log.info("engine up after %.0f s", time.monotonic() - began)
                await self._serve_until_dead()
                log.error("the engine died; rebuilding it")
                self.metrics.engine_restarts_total.inc()
            self.settled = False
            self.metrics.engine_up.set(0)
            self.voices.forget_all()
            await self.engine.stop()
            await asyncio.sleep(min(2.0**failures, LAST_BACKOFF_SECONDS) if failures else 0)

    async def close(self) -> None:
        await self.engine.stop()
        with contextlib.suppress(SQLAlchemyError):
            await asyncio.to_thread(self.registry.leave, replica_name())
        await asyncio.to_thread(self.registry.close)

    async def _serve_until_dead(self) -> None:
        self.metrics.engine_up.set(1)
        while self.engine.healthy():
            try:
                await self._reconcile()
                self.settled, self.problem = True, None
            except SQLAlchemyError as error:
                self.problem = f"the database cannot be reached: {type(error).__name__}"
                log.error("%s", self.problem)
            await asyncio.sleep(self.poll_seconds)
        self.problem = "the engine died and is being rebuilt"

    async def _reconcile(self) -> None:
        desired = await asyncio.to_thread(self.registry.desired)
        await self.voices.reconcile(desired)
        await self._report()

    async def _report(self) -> None:
        await asyncio.to_thread(self.registry.report, replica_name(), self.voices.states())


@contextlib.asynccontextmanager
async def running(runtime: Runtime) -> AsyncIterator[None]:
    """Run the runtime while the block does, and end everything it started after."""
    task = asyncio.create_task(runtime.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await runtime.close()


def replica_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"[:64]
