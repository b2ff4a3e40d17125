"""The engine's supervisor: restarts a dead or hanging engine, reconciles versions, reports on this replica."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator

from sqlalchemy.exc import SQLAlchemyError

from polytone.contract.errors import PolytoneError

from .concurrency import in_thread, stop_task, working
from .services import Services

log = logging.getLogger(__name__)

LAST_BACKOFF_SECONDS = 60.0
REPORT_SECONDS = 5.0


class EngineSupervisor:
    """Runs beside the requests; `services.status` has what it saw last."""

    def __init__(self, services: Services, poll_seconds: float, when_ready: str = "ready") -> None:
        """`when_ready` is logged each time that the engine came up with every version."""
        self._services = services
        self._status = services.status
        self._poll_seconds = poll_seconds
        self._when_ready = when_ready
        self._last_report: tuple[float, object] = (0.0, None)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Supervise, record traffic and watch for drift while the block runs; end everything that was started after."""
        services = self._services
        try:
            async with working(self.run()), services.recorder.running(), working(services.drift.run()):
                yield
        finally:
            await self.close()

    def ready(self) -> bool:
        """The engine answers, and every version that should be loaded was tried since it came up."""
        return self._status.settled and self._services.engine.healthy()

    async def run(self) -> None:
        """Supervise the engine until cancelled; a dead or hanging engine is rebuilt with backoff."""
        services, status = self._services, self._status
        failures = 0
        while True:
            began = time.monotonic()
            reporting = asyncio.create_task(self._report_while_starting())
            try:
                # Not wait_for: on Python 3.11 it swallows a cancellation that comes as the start succeeds.
                async with asyncio.timeout(services.limits.start_seconds):
                    await services.engine.start()
            except (PolytoneError, TimeoutError) as error:
                failures += 1
                status.problem = str(error) or "the engine did not start in time"
                log.error("%s", status.problem)
            else:
                log.info("engine up after %.0f s", time.monotonic() - began)
                await stop_task(reporting)
                status.problem = await self._serve_until_dead()
                failures = 0 if status.settled else failures + 1  # one that never got ready may die of what it loads
                log.error("%s; rebuilding it", status.problem)
                services.metrics.engine_restarts_total.inc()
            finally:
                await stop_task(reporting)
            status.settled = False
            services.metrics.engine_up.set(0)
            for request in list(services.inflight):
                request.abort()
            services.adapters.forget_all()
            await services.engine.stop()
            await asyncio.sleep(min(2.0 ** (failures - 1), LAST_BACKOFF_SECONDS) if failures else 0)

    async def close(self) -> None:
        """Stop the engine, leave the list of replicas, close the database."""
        services = self._services
        services.adapters.forget_all()
        await services.engine.stop()
        with contextlib.suppress(SQLAlchemyError):
            await asyncio.to_thread(services.replicas.leave, replica_name())
        await asyncio.to_thread(services.database.dispose)

    async def _serve_until_dead(self) -> str:
        """Reconcile until the engine dies or hangs; returns what happened."""
        services, status = self._services, self._status
        services.metrics.engine_up.set(1)
        hang = HangDetector(services.limits.hang_seconds, services.engine.progress())
        while services.engine.healthy():
            problem = await self._reconcile()
            if not status.settled and problem is None and services.adapters.settled():
                status.settled = True
                log.info("%s", self._when_ready)
            status.problem = problem or (None if status.settled else "voices are being loaded")
            services.metrics.queue_depth.set(services.adapters.waiting)
            await asyncio.sleep(self._poll_seconds)
            if hang.hangs(services.engine.progress(), busy=bool(services.inflight)):
                return f"the engine gave no token for {services.limits.hang_seconds:.0f} s while it was busy"
        return "the engine died"

    async def _reconcile(self) -> str | None:
        """One step; returns what was wrong, if anything. Versions in memory go on answering without a database."""
        services = self._services
        try:
            desired = await in_thread(services.registry.desired)
            services.keyring.refresh(await in_thread(services.keys.with_hashes))
            services.adapters.reconcile(desired)
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
        """When something changed, and every few seconds to say that this replica lives."""
        services = self._services
        states = services.adapters.states()
        routes = {voice: rollout.generation for voice, rollout in services.adapters.rollouts.items()}
        at, reported = self._last_report
        if (states, routes) != reported or time.monotonic() - at > REPORT_SECONDS:
            await in_thread(services.replicas.report, replica_name(), states, routes)
            services.metrics.show_reviews(await in_thread(services.reviews.counts))
            self._last_report = (time.monotonic(), (states, routes))

    async def _report_while_starting(self) -> None:
        while True:
            with contextlib.suppress(SQLAlchemyError):
                self._services.keyring.refresh(await in_thread(self._services.keys.with_hashes))
                await self._report()
            await asyncio.sleep(self._poll_seconds)


class HangDetector:
    """An engine hangs that is busy and gives no token for `seconds`."""

    def __init__(self, seconds: float, progress: int) -> None:
        self._seconds = seconds
        self._progress = progress
        self._moved = time.monotonic()

    def hangs(self, progress: int, busy: bool) -> bool:
        """`progress` is the number of tokens so far."""
        if progress != self._progress or not busy:
            self._progress, self._moved = progress, time.monotonic()
        return time.monotonic() - self._moved > self._seconds


def replica_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"[:64]
