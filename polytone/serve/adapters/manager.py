"""The versions on this replica: which should be here, which answer, and which are drained.

A version is published -> loading -> ready -> draining -> gone, or failed, which is tried again with backoff. More
versions may be published than fit into the engine's memory: a ready version that has to make room is evicted, and
loaded again when it is asked for.
"""

import asyncio
import contextlib
import logging

from polytone.contract.base import Base
from polytone.contract.errors import NotFoundError, PolytoneError, UnavailableError
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.serve.engine.base import Engine
from polytone.serve.metrics import Metrics

from .batch_slots import BatchSlots
from .fetch import Fetcher
from .loaded import AdapterLease, AdapterLimits, AdapterState, EngineState, LoadedAdapter, Route, not_ready
from .loader import AdapterLoader
from .registry import Desired
from .rollout import Rollout, choose

log = logging.getLogger(__name__)

CROWDED = 0.9
FETCH_PATIENCE_SECONDS = 10.0  # of a request; the fetch itself goes on


class AdapterManager:
    """Brings this replica's engine to the desired state and routes requests."""

    def __init__(
        self,
        engine: Engine,
        home: Home,
        base: Base,
        limits: AdapterLimits,
        metrics: Metrics,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._engine = engine
        self._home = home
        self.base = base
        self._limits = limits
        self._metrics = metrics
        self._fetcher = fetcher
        self._routes: dict[str, Rollout] = {}
        self._desired: dict[str, Rollout] = {}
        self._crowded = False
        self._start_empty()

    def _start_empty(self) -> None:
        """Begin with an engine that holds nothing."""
        self._adapters: dict[str, LoadedAdapter] = {}
        self._slots = BatchSlots(min(self._limits.max_batch, self._limits.max_resident))
        self._loader = AdapterLoader(
            self._engine,
            self._home,
            self.base,
            self._limits,
            self._metrics,
            self._fetcher,
            self._adapters,
            self._slots,
        )

    @property
    def rollouts(self) -> dict[str, Rollout]:
        """Voice -> the rollout that answers for it here and now."""
        return dict(self._routes)

    @property
    def max_rank(self) -> int:
        return self._limits.max_rank

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot for their version."""
        return self._slots.waiting

    def settled(self) -> bool:
        """Every version that should be loaded has been tried."""
        return not any(adapter.state is AdapterState.LOADING for adapter in self._adapters.values())

    def states(self) -> dict[str, tuple[str, str | None]]:
        """Version -> its state here, and why it failed."""
        return {adapter.version: (adapter.state.value, adapter.reason) for adapter in self._adapters.values()}

    def loaded(self) -> set[str]:
        """The versions in the engine's memory."""
        return {adapter.version for adapter in self._adapters.values() if adapter.loaded}

    def manifest(self, version: str) -> Manifest | None:
        adapter = self._adapters.get(version)
        return adapter.manifest if adapter else None

    def route(self, model: str, sticky: str | None = None) -> Route:
        """Decide who answers for a model name: the base's id, a voice or a version.

        Raises:
            NotFoundError: `model_not_found`. There is no fallback to the base.
            UnavailableError: `voice_not_ready`, with the state it is in.
        """
        if model == self.base.id:
            return Route(model, None)
        rollout = self._routes.get(model) or self._desired.get(model)
        version = choose(model, rollout, sticky) if rollout else model
        adapter = self._adapters.get(version)
        if adapter is not None and adapter.state in (AdapterState.READY, AdapterState.PUBLISHED):
            return Route(model, adapter)
        if adapter is not None and (rollout is not None or adapter.state is not AdapterState.DRAINING):
            raise not_ready(adapter)
        if rollout is not None:
            raise UnavailableError(
                f"{version} is not loaded yet. Try again shortly.", code="voice_not_ready", param="model"
            )
        raise NotFoundError(f"There is no model {model!r} here.", code="model_not_found", param="model")

    async def acquire(self, adapter: LoadedAdapter, patience: float | None = FETCH_PATIENCE_SECONDS) -> AdapterLease:
        """Wait until the engine can work on a request for the version, and hold it until the lease is released.
        Nothing of the answer may leave before `AdapterLease.verified`.

        Args:
            patience: seconds to wait for its files, where they come from the adapter store; None is for ever.

        Raises:
            UnavailableError: `voice_not_ready` if it cannot be loaded, `engine_unavailable`.
        """
        loader, slots = self._loader, self._slots  # others after the engine is rebuilt
        with contextlib.ExitStack() as releases:
            adapter.leases.add()
            releases.callback(adapter.leases.remove)
            await loader.ensure_files(adapter, patience)
            await slots.acquire(adapter.version)
            releases.callback(slots.release, adapter.version)
            verification = await loader.ensure_loaded(adapter)
            return AdapterLease(adapter, verification, releases.pop_all())

    def forget_all(self) -> None:
        """The engine is a new one, and nothing is loaded. Rollouts stay desired and answer once they are ready."""
        self._loader.close()
        self._routes.clear()
        self._slots.fail_waiting(
            UnavailableError("The engine is being rebuilt. Try again shortly.", code="engine_unavailable")
        )
        self._start_empty()
        self._update_gauges()

    def reconcile(self, desired: Desired) -> None:
        """One step towards the desired state: move routes, drain what is not wanted, start to load what is missing."""
        self._desired = dict(desired.rollouts)
        self._move_routes()
        self._drain_unwanted(desired)
        answering = {version for rollout in desired.rollouts.values() for version in rollout.versions}
        for version in sorted(desired.versions, key=lambda version: (version not in answering, version)):
            adapter = self._adapters.get(version)
            if adapter is None:
                adapter = self._adapters[version] = LoadedAdapter(version)
                if self._has_room() or self._takes_over(version):
                    self._start_loading(adapter)
            elif (adapter.state is AdapterState.FAILED and adapter.backoff.is_due()) or (
                adapter.state is AdapterState.PUBLISHED and self._takes_over(version)
            ):
                self._start_loading(adapter)
        self._move_routes()
        self._warn_of_crowding(len(desired.versions))
        self._update_gauges()

    def _has_room(self) -> bool:
        taken = sum(adapter.loaded or adapter.state is AdapterState.LOADING for adapter in self._adapters.values())
        return taken < self._limits.max_resident

    def _takes_over(self, version: str) -> bool:
        """Whether the version is to replace one that answers now; it must be verified before it does."""
        return any(
            version in rollout.versions and self._routes.get(voice) not in (None, rollout)
            for voice, rollout in self._desired.items()
        )

    def _move_routes(self) -> None:
        """A route moves once every new version is ready; until then the old one goes on answering."""
        for voice in set(self._routes) - set(self._desired):
            del self._routes[voice]
        for voice, rollout in self._desired.items():
            if self._routes.get(voice) != rollout and self._may_answer(voice, rollout):
                parts = ", ".join(f"{part.version} ({part.weight})" for part in rollout.parts)
                log.info("%s is now answered by %s", voice, parts)
                self._routes[voice] = rollout

    def _may_answer(self, voice: str, rollout: Rollout) -> bool:
        """Whether each of its versions is ready. Where nobody answers yet, it may also be loaded when asked for."""
        enough = {AdapterState.READY} if voice in self._routes else {AdapterState.READY, AdapterState.PUBLISHED}
        adapters = [self._adapters.get(part.version) for part in rollout.parts if part.weight]
        return all(adapter is not None and adapter.state in enough for adapter in adapters)

    def _drain_unwanted(self, desired: Desired) -> None:
        wanted = desired.versions | {version for rollout in self._routes.values() for version in rollout.versions}
        for version, adapter in list(self._adapters.items()):
            if version in wanted:
                continue  # one that is draining already goes on to its end, and is loaded anew after it
            unused = adapter.leases.count == 0 and adapter.engine_copy.state is EngineState.UNLOADED
            if unused and adapter.state in (AdapterState.FAILED, AdapterState.PUBLISHED):
                self._forget(adapter)
            elif adapter.state in (AdapterState.READY, AdapterState.FAILED, AdapterState.PUBLISHED):
                adapter.state = AdapterState.DRAINING
                self._loader.spawn(self._drain(adapter))

    def _forget(self, adapter: LoadedAdapter) -> None:
        adapter.state = AdapterState.GONE
        del self._adapters[adapter.version]

    def _start_loading(self, adapter: LoadedAdapter) -> None:
        adapter.state = AdapterState.LOADING
        self._loader.spawn(self._verify_new(adapter))

    async def _verify_new(self, adapter: LoadedAdapter) -> None:
        """Load and verify a version before anyone asks for it; it waits for a slot as a request does."""
        with contextlib.suppress(PolytoneError):
            lease = await self.acquire(adapter, patience=None)
            try:
                await lease.verified()
            finally:
                lease.release()
        self._move_routes()
        self._update_gauges()

    async def _drain(self, adapter: LoadedAdapter) -> None:
        """Let the version's answers finish, up to the deadline; then end them; then free its memory."""
        if not await self._wait_for_answers(adapter):
            log.warning("%s still has %d answers at the deadline; ending them", adapter.version, adapter.leases.count)
            adapter.revoked.set()
            await self._wait_for_answers(adapter)
        await self._loader.remove(adapter)
        self._forget(adapter)
        self._update_gauges()
        log.info("%s is gone: drained and unloaded", adapter.version)

    async def _wait_for_answers(self, adapter: LoadedAdapter) -> bool:
        """Wait for the end of the version's answers, as long as a drain may take. Returns whether they ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.drain_seconds):
                await adapter.leases.wait_for_none()
        return adapter.leases.count == 0

    def _warn_of_crowding(self, published: int) -> None:
        limit = self._limits.max_resident
        crowded = published > CROWDED * limit
        if crowded and not self._crowded:
            log.warning(
                "%d versions are published and %d fit in memory (POLYTONE_MAX_RESIDENT_ADAPTERS). Versions that "
                "were not asked for lately are evicted, and their next answer waits until they are loaded again.",
                published,
                limit,
            )
        self._crowded = crowded

    def _update_gauges(self) -> None:
        self._metrics.adapters_resident.set(len(self.loaded()))
        self._metrics.adapters_published.set(len(self._adapters))
