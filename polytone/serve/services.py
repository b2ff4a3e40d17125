"""What runs beside the requests: keep the engine up, bring this replica to the desired state, say how it stands."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from polytone.contract.errors import PolytoneError
from polytone.contract.home import Home

from .adapters.manager import AdapterManager
from .adapters.registry import Registry
from .adapters.replicas import Replicas
from .adapters.store import AdapterStore
from .api.chat_request import RequestLimits
from .auth.keys import Keyring, KeyStore
from .auth.rate_limits import Admission
from .concurrency import in_thread, stop_task, working
from .database.session import Database
from .drift.monitor import DriftMonitor
from .engine.base import Engine
from .metrics import Metrics
from .traffic.recorder import TrafficRecorder
from .traffic.reviews import Reviews

log = logging.getLogger(__name__)

LAST_BACKOFF_SECONDS = 60.0
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class ServerLimits:
    """What this server takes and how long it waits; bytes and seconds."""

    request: RequestLimits
    body_bytes: int
    upload_bytes: int
    answer_seconds: float
    hang_seconds: float
    start_seconds: float


class Answer(Protocol):
    """An answer under way."""

    def abort(self) -> None:
        """The engine is gone."""


@dataclass
class Services:
    """Everything a request handler needs, built once by the composition root. `answers` are those under way."""

    engine: Engine
    database: Database
    registry: Registry
    replicas: Replicas
    keys: KeyStore
    keyring: Keyring
    admission: Admission
    adapters: AdapterManager
    metrics: Metrics
    recorder: TrafficRecorder
    drift: DriftMonitor
    reviews: Reviews
    home: Home
    limits: ServerLimits
    poll_seconds: float
    store: AdapterStore | None = None
    answers: set[Answer] = field(default_factory=set)
    settled: bool = False
    problem: str | None = "the engine is starting"
    _reported: tuple[float, object] = field(default=(0.0, None))

    def ready(self) -> bool:
        """The engine answers, and every version that should be loaded was tried since it came up."""
        return self.settled and self.engine.healthy()

    async def run(self) -> None:
        """Supervise the engine until cancelled; a dead or hanging engine is rebuilt with backoff."""
        failures = 0
        while True:
            began = time.monotonic()
            reconciling = asyncio.create_task(self._report_while_starting())
            try:
                # Not wait_for: on Python 3.11 it swallows a cancellation that comes as the start succeeds.
                async with asyncio.timeout(self.limits.start_seconds):
                    await self.engine.start()
            except (PolytoneError, TimeoutError) as error:
                failures += 1
                self.problem = str(error) or "the engine did not start in time"
                log.error("%s", self.problem)
            else:
                log.info("engine up after %.0f s", time.monotonic() - began)
                await stop_task(reconciling)
                self.problem = await self._serve_until_dead()
                failures = 0 if self.settled else failures + 1  # one that never got ready may die of what it loads
                log.error("%s; rebuilding it", self.problem)
                self.metrics.engine_restarts_total.inc()
            finally:
                await stop_task(reconciling)
            self.settled = False
            self.metrics.engine_up.set(0)
            for answer in list(self.answers):
                answer.abort()
            self.adapters.forget_all()
            await self.engine.stop()
            await asyncio.sleep(min(2.0 ** (failures - 1), LAST_BACKOFF_SECONDS) if failures else 0)

    async def close(self) -> None:
        self.adapters.forget_all()
        await self.engine.stop()
        with contextlib.suppress(SQLAlchemyError):
            await asyncio.to_thread(self.replicas.leave, replica_name())
        await asyncio.to_thread(self.database.dispose)

    async def _serve_until_dead(self) -> str:
        """Reconcile until the engine dies or hangs; returns what happened."""
        self.metrics.engine_up.set(1)
        progress, moved = self.engine.progress(), time.monotonic()
        while self.engine.healthy():
            problem = await self._reconcile()
            self.settled = self.settled or (problem is None and self.adapters.settled())
            self.problem = problem or (None if self.settled else "voices are being loaded")
            self.metrics.queue_depth.set(self.adapters.waiting)
            await asyncio.sleep(self.poll_seconds)
            if self.engine.progress() != progress or not self.answers:
                progress, moved = self.engine.progress(), time.monotonic()
            elif time.monotonic() - moved > self.limits.hang_seconds:
                return f"the engine gave no token for {self.limits.hang_seconds:.0f} s while it was busy"
        return "the engine died"

    async def _reconcile(self) -> str | None:
        """One step; returns what was wrong, if anything. What is in memory goes on without a database."""
        try:
            desired = await in_thread(self.registry.desired)
            self.keyring.refresh(await in_thread(self.keys.with_hashes))
            self.adapters.reconcile(desired)
            await self._report()
        except SQLAlchemyError as error:
            problem = f"the database cannot be reached: {type(error).__name__}"
            log.error("%s", problem)
            return problem
        except Exception as error:
            log.exception("reconciling failed")
            return f"reconciling failed: {type(error).__name__}"
        return None

    async def _report(self) -> None:
        """When something changed, and now and then to say that this replica lives."""
        states = self.adapters.states()
        routes = {voice: rollout.generation for voice, rollout in self.adapters.rollouts.items()}
        last, said = self._reported
        if (states, routes) != said or time.monotonic() - last > REPORT_SECONDS:
            await in_thread(self.replicas.report, replica_name(), states, routes)
            self.metrics.show_reviews(await in_thread(self.reviews.counts))
            self._reported = (time.monotonic(), (states, routes))

    async def _report_while_starting(self) -> None:
        while True:
            with contextlib.suppress(SQLAlchemyError):
                self.keyring.refresh(await in_thread(self.keys.with_hashes))
                await self._report()
            await asyncio.sleep(self.poll_seconds)


@contextlib.asynccontextmanager
async def running(services: Services) -> AsyncIterator[None]:
    """Run the runtime while the block does, and end everything it started after."""
    try:
        async with working(services.run()), services.recorder.running(), working(services.drift.run()):
            yield
    finally:
        await services.close()


def replica_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"[:64]
