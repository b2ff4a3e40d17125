"""Bring versions into the engine and take them out again: fetch, check, load, verify; evict."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from polytone.contract.adapter import check_servable, read_version
from polytone.contract.base import Base
from polytone.contract.errors import CheckError, PolytoneError, UnavailableError
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, Manifest
from polytone.serve.engine.base import Engine
from polytone.serve.metrics import Metrics

from .batch_slots import BatchSlots
from .fetch import Fetcher
from .fingerprint import verify
from .loaded import AdapterLimits, AdapterState, EngineState, LoadedAdapter, not_ready

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECKS_AT_ONCE = 4
LOADS_AT_ONCE = 4  # each waits for the end of the engine's step; together they wait for one


class AdapterLoader:
    """Loads and evicts `adapters` in one engine. A rebuilt engine gets a new loader; `close` ends the old one's work.

    Args:
        slots: versions that hold one are answering and cannot be evicted.
        fetcher: gets missing and corrupt files from the adapter store, if there is one.
    """

    def __init__(
        self,
        engine: Engine,
        home: Home,
        base: Base,
        limits: AdapterLimits,
        metrics: Metrics,
        fetcher: Fetcher | None,
        adapters: dict[str, LoadedAdapter],
        slots: BatchSlots,
    ) -> None:
        self._engine = engine
        self._home = home
        self._base = base
        self._limits = limits
        self._metrics = metrics
        self._fetcher = fetcher
        self._adapters = adapters
        self._slots = slots
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task that `close` cancels."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """The engine is gone, and every version in it."""
        for task in self._tasks:
            task.cancel()
        for adapter in self._adapters.values():
            adapter.state = AdapterState.GONE
        self._adapters.clear()

    async def ensure_files(self, adapter: LoadedAdapter, patience: float | None) -> None:
        """Wait until the version's files are in the home. Call it before the version takes a slot: a slow store must
        not keep a slot from others.

        Args:
            patience: seconds to wait for the fetch, which goes on after that; None waits for its end.

        Raises:
            UnavailableError: `voice_not_ready`, `engine_unavailable`.
        """
        if self._fetcher is None or adapter.verified:
            return
        if adapter.files.fetch is None:
            adapter.files.fetch = self.spawn(self._fetch(adapter, self._fetcher))
        fetch = adapter.files.fetch
        await asyncio.wait({fetch}, timeout=patience)
        require_current(adapter)
        if not fetch.done():
            raise UnavailableError(
                f"{adapter.version} is being fetched from the adapter store. Try again shortly.",
                code="voice_not_ready",
                param="model",
            )
        if not fetch.result():
            raise not_ready(adapter)

    async def ensure_loaded(self, adapter: LoadedAdapter) -> "asyncio.Task[None] | None":
        """Check the files and load them into the engine. Requests that come meanwhile wait for the same load.

        Returns the verification, which may still be under way, or None if the version is verified.

        Raises:
            UnavailableError: `voice_not_ready`, `engine_unavailable`.
        """
        copy = adapter.engine_copy
        copy.last_used = time.monotonic()
        if adapter.verified:
            return None
        async with copy.lock:
            if adapter.state is AdapterState.FAILED:  # the request before this one tried
                raise not_ready(adapter)
            if not adapter.verified and copy.verification is None:
                await self._load(adapter)
            return copy.verification

    async def remove(self, adapter: LoadedAdapter) -> None:
        """Free the version's memory once what is under way with it has ended."""
        copy = adapter.engine_copy
        if unfinished := {task for task in (copy.loading, copy.verification) if task is not None}:
            await asyncio.wait(unfinished)
        async with self._loads:
            if adapter.loaded:
                await self._unload(adapter)

    async def _fetch(self, adapter: LoadedAdapter, fetcher: Fetcher) -> bool:
        """Fetch files that are missing or corrupt, to the end even if the request has left. Returns whether there are
        files to load; if not, the version has failed.
        """
        files = adapter.files
        try:
            manifest = self._home.adapter_folder(adapter.version) / MANIFEST
            if files.corruption is None and await asyncio.to_thread(manifest.is_file):
                return True
            await fetcher.fetch(adapter.version)
            files.corruption, files.fetched = None, True
            return True
        except Exception as error:
            reason = reason_of(error, f"fetching {adapter.version}")
            if files.corruption is None:
                await self._fail(adapter, reason)
                return False
            if isinstance(error, PolytoneError) and await asyncio.to_thread(is_whole, self._home, adapter.version):
                log.warning("trying %s again with the files that are here: %s", adapter.version, reason)
                return True
            await self._fail(adapter, f"{files.corruption} {reason}")
            return False
        finally:
            files.fetch = None

    async def _load(self, adapter: LoadedAdapter) -> None:
        """Load a version and start to verify it."""
        copy, started = adapter.engine_copy, time.monotonic()
        try:
            manifest = await self._read(adapter)
            require_current(adapter)
            check_servable(manifest, self._base, self._limits.max_rank)
            if copy.state is EngineState.UNLOADED:  # otherwise a request that left meanwhile had it loaded
                await self._submit_load(adapter)
            loading = copy.loading
            if loading is not None and not self._engine.loads_in_order:
                await asyncio.shield(loading)
        except Exception as error:
            await self._fail(adapter, reason_of(error, f"loading {adapter.version}"))
            raise not_ready(adapter) from error
        adapter.manifest = manifest  # answers that begin before the verification ends need the voice's own defaults
        copy.verification = self.spawn(self._verify_loaded(adapter, manifest, loading, started))

    async def _read(self, adapter: LoadedAdapter) -> Manifest:
        """Check the version's files and read its manifest."""
        async with self._checks:
            try:
                return await asyncio.to_thread(read_version, self._home, adapter.version)
            except (CheckError, OSError) as error:
                adapter.files.corruption = str(error)
                raise

    async def _submit_load(self, adapter: LoadedAdapter) -> None:
        """Send the load to the engine, in the same pause between two steps in which another version is evicted."""
        await self._loads.acquire()
        try:
            require_current(adapter)
        except UnavailableError:
            self._loads.release()
            raise
        adapter.engine_copy.state = EngineState.LOADING
        evicting = asyncio.ensure_future(self._make_room())
        load = asyncio.ensure_future(self._engine.load(adapter.version, self._home.adapter_folder(adapter.version)))
        # A task of its own: if the request leaves, the version in the engine must still be counted.
        adapter.engine_copy.loading = self.spawn(self._finish_load(adapter, evicting, load))
        await asyncio.sleep(0)  # both reach the engine now, before any request for this version

    async def _finish_load(
        self, adapter: LoadedAdapter, evicting: "asyncio.Future[None]", load: "asyncio.Future[None]"
    ) -> None:
        copy = adapter.engine_copy
        try:
            await asyncio.shield(asyncio.wait({evicting, load}))
        finally:
            await asyncio.wait({evicting, load})
            copy.state = EngineState.LOADED if load.exception() is None else EngineState.UNLOADED
            copy.loading = None
            self._loads.release()
        load.result()

    async def _make_room(self) -> None:
        """Evict the versions that were asked for the longest ago. Those in use hold a slot, and slots are fewer."""
        while self._in_memory() > self._limits.max_resident:
            evictable = [
                adapter
                for adapter in self._adapters.values()
                if adapter.loaded
                and adapter.engine_copy.verification is None
                and not self._slots.holds(adapter.version)
            ]
            if not evictable:
                return
            oldest = min(evictable, key=lambda adapter: adapter.engine_copy.last_used)
            await self._unload(oldest)
            self._metrics.adapter_evictions_total.inc()
            log.info("%s was evicted to make room", oldest.version)

    def _in_memory(self) -> int:
        """Versions in the engine's memory, with those on their way there."""
        states = [adapter.engine_copy.state for adapter in self._adapters.values()]
        return len(states) - states.count(EngineState.UNLOADED)

    async def _verify_loaded(
        self, adapter: LoadedAdapter, manifest: Manifest, loading: "asyncio.Task[None] | None", started: float
    ) -> None:
        """Compare the engine's answers with the fingerprint; the version is ready or failed after it."""
        copy = adapter.engine_copy
        steps: list[Awaitable[None]] = [verify(self._engine, manifest, copy.verified_before)]
        if loading is not None:
            steps.insert(0, asyncio.shield(loading))  # if the load fails, its error says why the answers did
        try:
            results = await asyncio.gather(*steps, return_exceptions=True)
            if errors := [result for result in results if isinstance(result, BaseException)]:
                raise errors[0]
            require_current(adapter)
        except Exception as error:
            if isinstance(error, CheckError) and error.code == "fingerprint_mismatch" and not adapter.files.fetched:
                # The digest does not cover the manifest, which says what to expect.
                adapter.files.corruption = error.message
            await self._fail(adapter, reason_of(error, f"verifying {adapter.version}"))
        else:
            self._become_ready(adapter, time.monotonic() - started)
        finally:
            copy.verification = None

    def _become_ready(self, adapter: LoadedAdapter, seconds: float) -> None:
        adapter.engine_copy.state, adapter.engine_copy.verified_before = EngineState.VERIFIED, True
        adapter.reason, adapter.files.corruption = None, None
        adapter.backoff.reset()
        if adapter.state is not AdapterState.DRAINING:
            adapter.state = AdapterState.READY
        self._metrics.adapter_load_seconds.observe(seconds)
        self._metrics.adapter_loads_total.labels(result="ready").inc()
        log.info("%s is ready: loaded and verified (%.2f s)", adapter.version, seconds)

    async def _fail(self, adapter: LoadedAdapter, reason: str) -> None:
        if adapter.state is AdapterState.GONE:
            return
        store_may_have_better_files = adapter.files.corruption is not None and self._fetcher is not None
        seconds = adapter.backoff.fail(first_at_once=store_may_have_better_files)
        adapter.reason, adapter.manifest = reason, None
        adapter.engine_copy.verified_before = False
        if adapter.state is not AdapterState.DRAINING:
            adapter.state = AdapterState.FAILED
        log.error("%s failed, next try in %.0f s: %s", adapter.version, seconds, reason)
        self._metrics.adapter_loads_total.labels(result="failed").inc()
        if adapter.loaded:
            await self._unload(adapter)

    async def _unload(self, adapter: LoadedAdapter) -> None:
        adapter.engine_copy.state = EngineState.UNLOADED
        try:
            await self._engine.unload(adapter.version)
        except PolytoneError as error:
            log.warning("%s could not be unloaded: %s", adapter.version, error.message)


def require_current(adapter: LoadedAdapter) -> None:
    """Raises: UnavailableError: `engine_unavailable` if the version is gone, with its engine or by itself."""
    if adapter.state is AdapterState.GONE:
        raise not_ready(adapter)


def reason_of(error: Exception, doing: str) -> str:
    """The error's message. One that is not ours is logged with its traceback."""
    if isinstance(error, PolytoneError):
        return error.message
    log.error("%s failed unexpectedly", doing, exc_info=error)
    return f"unexpected {type(error).__name__}: {error}"


def is_whole(home: Home, version: str) -> bool:
    """Whether the version's files match their digest."""
    try:
        read_version(home, version)
    except (PolytoneError, OSError):
        return False
    return True
