"""The versions on this replica: brought up, proven, routed to, drained and unloaded.

Life of a version: published -> loading -> ready -> draining -> gone, or failed(reason), which is tried again with
backoff. A ready version may be asleep: proven, but not in the engine's memory, because more are published than fit
there. It is loaded again when it is asked for; the one that was asked for the longest ago makes room.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from polytone.contract.adapter import MANIFEST, Manifest, check_servable, read_version
from polytone.contract.base import Base
from polytone.contract.errors import CheckError, NotFoundError, PolytoneError, UnavailableError
from polytone.contract.home import Home
from polytone.serve.engine.base import Engine
from polytone.serve.metrics import Metrics

from .batch_slots import BatchSlots
from .fetch import Fetcher
from .fingerprint import verify
from .registry import Desired
from .rollout import Rollout, choose

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0
CHECKS_AT_ONCE = 4
LOADS_AT_ONCE = 4  # each waits for the engine's step to end; together they wait for one
CROWDED = 0.9
FETCH_PATIENCE_SECONDS = 10.0  # of a request; what it waits for goes on


class AdapterState(StrEnum):
    PUBLISHED = "published"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass
class LoadedAdapter:
    """One version on this replica and the answers it is giving.

    It is `loaded` while the engine holds it, and `verified` once it was proven there since: before that, no byte of an
    answer leaves. While it is loaded (`entry`) and proven (`proof`) the engine may work on answers already.
    `corruption` says why its files here are not to be trusted; they are fetched again then, if there is a store.
    """

    version: str
    state: AdapterState = AdapterState.PUBLISHED
    reason: str | None = None
    manifest: Manifest | None = None
    corruption: str | None = None
    fetched: bool = False
    fetch: "asyncio.Task[None] | None" = None
    loaded: bool = False
    verified: bool = False
    entry: "asyncio.Task[None] | None" = None
    proof: "asyncio.Task[None] | None" = None
    bringing_up: asyncio.Lock = field(default_factory=asyncio.Lock)
    used: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    revoked: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Route:
    """Who answers a request: a version, or the base (`voice` is None). Decided once, before the first byte."""

    model: str
    voice: LoadedAdapter | None

    @property
    def version(self) -> str | None:
        return self.voice.version if self.voice else None

    @property
    def manifest(self) -> Manifest | None:
        return self.voice.manifest if self.voice else None


@dataclass(frozen=True)
class AdapterLimits:
    """What the engine can hold: the highest rank, versions in memory, versions in one batch, seconds to drain."""

    max_rank: int
    max_resident: int
    max_batch: int
    drain_seconds: float


@dataclass
class AdapterLease:
    """A version that answers: it is neither unloaded nor put to sleep until `release`, which may be called again."""

    voice: LoadedAdapter | None
    slots: BatchSlots
    has_slot: bool = False
    open: bool = True
    proof: "asyncio.Task[None] | None" = None

    async def proven(self) -> None:
        """Wait until the version has shown to be the one that was trained.

        Raises:
            UnavailableError: `voice_not_ready`.
        """
        if self.voice is not None and self.proof is not None:
            await asyncio.wait({self.proof})
            if self.proof.cancelled() or not self.voice.verified:
                raise not_ready(self.voice)

    def release(self) -> None:
        if self.voice is None or not self.open:
            return
        self.open = False
        if self.has_slot:
            self.slots.release(self.voice.version)
        self.voice.in_flight -= 1
        if self.voice.in_flight == 0:
            self.voice.idle.set()


class AdapterManager:
    """Brings this replica's engine to the desired state, one load at a time, and routes requests."""

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
        self._fetcher = fetcher
        self._home = home
        self.base = base
        self._limits = limits
        self._metrics = metrics
        self._voices: dict[str, LoadedAdapter] = {}
        self._routes: dict[str, Rollout] = {}
        self._wanted: dict[str, Rollout] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = self._new_slots()
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)
        self._entering = set[str]()
        self._checking = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._crowded = False

    @property
    def rollouts(self) -> dict[str, Rollout]:
        """Voice -> the rollout that answers for it here and now."""
        return dict(self._routes)

    @property
    def max_rank(self) -> int:
        return self._limits.max_rank

    @property
    def waiting(self) -> int:
        """Requests that wait for their version's turn in the engine."""
        return self._slots.waiting

    def settled(self) -> bool:
        """Every version that should be loaded has been tried."""
        return not any(voice.state is AdapterState.LOADING for voice in self._voices.values())

    def states(self) -> dict[str, tuple[str, str | None]]:
        return {voice.version: (voice.state.value, voice.reason) for voice in self._voices.values()}

    def loaded(self) -> set[str]:
        return {voice.version for voice in self._voices.values() if voice.loaded}

    def manifest(self, version: str) -> Manifest | None:
        voice = self._voices.get(version)
        return voice.manifest if voice else None

    def route(self, model: str, sticky: str | None = None) -> Route:
        """Find who answers for a model name: the base's id, a voice or a pinned version.

        Raises:
            NotFoundError: `model_not_found`. There is no fallback to the base.
            UnavailableError: `voice_not_ready`, with the state it is in.
        """
        if model == self.base.id:
            return Route(model, None)
        rollout = self._routes.get(model) or self._wanted.get(model)
        version = choose(model, rollout, sticky) if rollout else model
        voice = self._voices.get(version)
        if voice is not None and voice.state in (AdapterState.READY, AdapterState.PUBLISHED):
            return Route(model, voice)
        if rollout is not None or (voice is not None and voice.state is not AdapterState.DRAINING):
            state = f"{voice.state.value}{f' ({voice.reason})' if voice.reason else ''}" if voice else "not loaded yet"
            raise UnavailableError(f"{version} is {state}. Try again shortly.", code="voice_not_ready", param="model")
        known = ", ".join([self.base.id, *sorted(self._routes)])
        raise NotFoundError(
            f"The model {model!r} does not exist here. There are: {known}.",
            code="model_not_found",
            param="model",
        )

    async def acquire(self, route: Route, patience: float | None = FETCH_PATIENCE_SECONDS) -> "AdapterLease":
        """Wait for the version's turn and hold it in the engine until the answer is let go. The engine may work on
        the answer then; nothing of it may leave before `AdapterLease.proven`.

        Args:
            patience: seconds to wait for its files, where they come from the adapter store; None is for ever.

        Raises:
            UnavailableError: `voice_not_ready` if it cannot be brought up, `engine_unavailable`.
        """
        held = AdapterLease(route.voice, self._slots)
        if route.voice is not None:
            route.voice.in_flight += 1
            route.voice.idle.clear()
            try:
                if self._fetcher is not None and not route.voice.verified:
                    await self._bring_here(route.voice, self._fetcher, patience)
                await self._slots.acquire(route.voice.version)
                held.has_slot = True
                held.proof = await self._bring_up(route.voice)
            except BaseException:
                held.release()
                raise
        return held

    def forget_all(self) -> None:
        """The engine is a new one: nothing is loaded. Rollouts stay wanted, and are not ready until loaded."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._voices.clear()
        self._routes.clear()
        self._slots.fail_waiting(
            UnavailableError("The engine is being rebuilt. Try again shortly.", code="engine_unavailable")
        )
        self._slots = self._new_slots()
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)
        self._entering = set[str]()
        self._count()

    def reconcile(self, desired: Desired) -> None:
        """One step towards the desired state: move routes, retire what is unwanted, start to load what is missing."""
        self._wanted = dict(desired.rollouts)
        self._move_routes()
        self._retire_unwanted(desired)
        answering = {version for rollout in desired.rollouts.values() for version in rollout.versions}
        for version in sorted(desired.versions, key=lambda version: (version not in answering, version)):
            voice = self._voices.get(version)
            if voice is None:
                voice = self._voices[version] = LoadedAdapter(version)
                if self._fits() or self._replaces(version):
                    self._start(voice)
            elif (voice.state is AdapterState.FAILED and time.monotonic() >= voice.retry_at) or (
                voice.state is AdapterState.PUBLISHED and self._replaces(version)
            ):
                self._start(voice)
        self._move_routes()
        self._warn_of_crowding(len(desired.versions))
        self._count()

    def _new_slots(self) -> BatchSlots:
        return BatchSlots(min(self._limits.max_batch, self._limits.max_resident))

    def _fits(self) -> bool:
        taken = sum(voice.loaded or voice.state is AdapterState.LOADING for voice in self._voices.values())
        return taken < self._limits.max_resident

    def _replaces(self, version: str) -> bool:
        """Whether `version` shall take over from one that answers now; it must be proven before it does."""
        return any(
            version in rollout.versions and self._routes.get(voice) not in (None, rollout)
            for voice, rollout in self._wanted.items()
        )

    def _move_routes(self) -> None:
        """A route moves once every new version is proven; until then the old one goes on answering."""
        for voice in set(self._routes) - set(self._wanted):
            del self._routes[voice]
        for voice, rollout in self._wanted.items():
            if self._routes.get(voice) == rollout:
                continue
            states = {
                found.state if (found := self._voices.get(part.version)) else None
                for part in rollout.parts
                if part.weight
            }
            asleep = (
                AdapterState.READY if voice in self._routes else AdapterState.PUBLISHED
            )  # nobody answers yet: load when asked
            if states <= {AdapterState.READY, asleep}:
                log.info(
                    "%s is now answered by %s", voice, ", ".join(f"{p.version} ({p.weight})" for p in rollout.parts)
                )
                self._routes[voice] = rollout

    def _retire_unwanted(self, desired: Desired) -> None:
        keep = desired.versions | {version for rollout in self._routes.values() for version in rollout.versions}
        for version, voice in list(self._voices.items()):
            if version in keep:
                continue  # one that is draining already goes on to its end, and is loaded anew after it
            if (
                voice.state in (AdapterState.FAILED, AdapterState.PUBLISHED)
                and not voice.in_flight
                and voice.entry is None
            ):
                del self._voices[version]
            elif voice.state in (AdapterState.READY, AdapterState.FAILED, AdapterState.PUBLISHED):
                voice.state = AdapterState.DRAINING
                self._spawn(self._drain(voice))

    def _start(self, voice: LoadedAdapter) -> None:
        voice.state = AdapterState.LOADING
        self._spawn(self._prove(voice))

    async def _prove(self, voice: LoadedAdapter) -> None:
        """Bring a version up for the first time here; it takes its turn like any request."""
        with contextlib.suppress(PolytoneError):
            held = await self.acquire(Route(voice.version, voice), patience=None)
            try:
                await held.proven()
            finally:
                held.release()
        self._move_routes()
        self._count()

    async def _bring_here(self, voice: LoadedAdapter, fetcher: Fetcher, patience: float | None) -> None:
        """Wait until the version's files are in the home. Before its turn: a slow store takes no slot from others.

        Raises:
            UnavailableError: `voice_not_ready`, also while they are on their way for longer than `patience` seconds.
        """
        if voice.fetch is None:
            voice.fetch = self._spawn(self._fetch(voice, fetcher))
        fetch = voice.fetch
        await asyncio.wait({fetch}, timeout=patience)
        self._still_mine(voice)
        if not fetch.done():
            raise UnavailableError(
                f"{voice.version} is being fetched from the adapter store. Try again shortly.",
                code="voice_not_ready",
                param="model",
            )
        if voice.state is AdapterState.FAILED and time.monotonic() < voice.retry_at:
            raise not_ready(voice)

    async def _fetch(self, voice: LoadedAdapter, fetcher: Fetcher) -> None:
        """Fetch what is not here, or not as it should be; to its end, even if whoever asked leaves."""
        try:
            manifest = self._home.adapter_folder(voice.version) / MANIFEST
            if voice.corruption is None and await asyncio.to_thread(manifest.is_file):
                return
            await fetcher.fetch(voice.version)
            voice.corruption, voice.fetched = None, True
        except PolytoneError as error:
            if voice.corruption is not None and await asyncio.to_thread(is_whole, self._home, voice.version):
                log.warning("%s is tried again with the files that are here: %s", voice.version, error.message)
            else:
                await self._fail(voice, f"{voice.corruption} {error.message}" if voice.corruption else error.message)
        except Exception as error:
            log.exception("fetching %s failed unexpectedly", voice.version)
            await self._fail(voice, f"unexpected {type(error).__name__}: {error}")
        finally:
            voice.fetch = None

    async def _bring_up(self, voice: LoadedAdapter) -> "asyncio.Task[None] | None":
        """Check the files and load them into the engine; whoever asks for it meanwhile waits. Returns the proof, which
        is a request like others and may be under way, or None if it was given before.
        """
        voice.used = time.monotonic()
        if voice.verified:
            return None
        async with voice.bringing_up:
            if voice.state is AdapterState.FAILED and time.monotonic() < voice.retry_at:
                raise not_ready(voice)  # whoever came before just tried
            if not voice.verified and voice.proof is None:
                await self._wake(voice)
            return voice.proof

    async def _wake(self, voice: LoadedAdapter) -> None:
        began = time.monotonic()
        try:
            manifest = await self._read(voice)
            check_servable(manifest, self.base, self._limits.max_rank)
            if not voice.loaded and voice.entry is None:  # whoever brought it here may have left before the proof
                await self._enter(voice)
            entry = voice.entry
            if entry is not None and not self._engine.loads_in_order:
                await asyncio.shield(entry)
        except PolytoneError as error:
            await self._fail(voice, error.message)
        except Exception as error:
            log.exception("loading %s failed unexpectedly", voice.version)
            await self._fail(voice, f"unexpected {type(error).__name__}: {error}")
        else:
            again = voice.manifest is not None
            voice.manifest = manifest  # answers that are worked on during the proof need the voice's own defaults
            voice.proof = self._spawn(self._prove_loaded(voice, manifest, again, began, entry))
            return
        raise not_ready(voice)

    async def _read(self, voice: LoadedAdapter) -> Manifest:
        async with self._checking:
            try:
                return await asyncio.to_thread(read_version, self._home, voice.version)
            except (CheckError, OSError) as error:
                voice.corruption = str(error)
                raise

    async def _prove_loaded(
        self, voice: LoadedAdapter, manifest: Manifest, again: bool, began: float, entry: "asyncio.Task[None] | None"
    ) -> None:
        """Compare the fingerprint; the version is awake or failed after it."""
        try:
            loaded = asyncio.shield(entry) if entry is not None else asyncio.sleep(0)
            both = await asyncio.gather(loaded, verify(self._engine, manifest, again), return_exceptions=True)
            if failures := [result for result in both if isinstance(result, BaseException)]:
                raise failures[0]  # where the load failed, that says why the proof did
            self._still_mine(voice)
        except PolytoneError as error:
            if error.code == "fingerprint_mismatch" and not voice.fetched:
                voice.corruption = error.message  # the digest does not cover the manifest, which says what to expect
            await self._fail(voice, error.message)
        except Exception as error:
            log.exception("proving %s failed unexpectedly", voice.version)
            await self._fail(voice, f"unexpected {type(error).__name__}: {error}")
        else:
            voice.verified = True
            voice.reason, voice.corruption, voice.failures = None, None, 0
            if voice.state is not AdapterState.DRAINING:
                voice.state = AdapterState.READY
            seconds = time.monotonic() - began
            self._metrics.adapter_load_seconds.observe(seconds)
            self._metrics.adapter_loads_total.labels(result="ready").inc()
            log.info("%s is ready: loaded and its fingerprint matches (%.2f s)", voice.version, seconds)
        finally:
            voice.proof = None

    async def _enter(self, voice: LoadedAdapter) -> None:
        """Send it to the engine, to be loaded in the same pause between steps in which another makes room for it."""
        loading, entering = self._loading, self._entering  # others after the engine is rebuilt
        await loading.acquire()
        try:
            self._still_mine(voice)
        except BaseException:
            loading.release()
            raise
        entering.add(voice.version)
        leaving = asyncio.ensure_future(self._make_room())
        load = asyncio.ensure_future(self._engine.load(voice.version, self._home.adapter_folder(voice.version)))
        # To its end, even if whoever asked leaves: nobody would count what is in the engine otherwise.
        voice.entry = self._spawn(self._entered(voice, leaving, load, loading, entering))
        await asyncio.sleep(0)  # both are on their way to the engine now, before any request for this version

    async def _entered(
        self,
        voice: LoadedAdapter,
        leaving: "asyncio.Future[None]",
        load: "asyncio.Future[None]",
        loading: asyncio.Semaphore,
        entering: set[str],
    ) -> None:
        try:
            await asyncio.shield(asyncio.wait({leaving, load}))
        finally:
            await asyncio.wait({leaving, load})
            entering.discard(voice.version)
            voice.entry, voice.loaded = None, load.exception() is None
            loading.release()
        load.result()

    def _still_mine(self, voice: LoadedAdapter) -> None:
        if self._voices.get(voice.version) is not voice:
            raise UnavailableError("The engine was rebuilt meanwhile.", code="engine_unavailable")

    async def _make_room(self) -> None:
        """Put the version to sleep that was asked for the longest ago. One in use holds a slot, and slots are fewer."""
        while len(self.loaded()) + len(self._entering) > self._limits.max_resident:
            asleep = min(
                (v for v in self._voices.values() if v.loaded and not v.proof and not self._slots.holds(v.version)),
                key=lambda v: v.used,
                default=None,
            )
            if asleep is None:
                return
            await self._unload(asleep)
            self._metrics.adapter_evictions_total.inc()
            log.info("%s was put to sleep to make room", asleep.version)

    async def _fail(self, voice: LoadedAdapter, reason: str) -> None:
        voice.failures += 1
        voice.manifest = None  # the next proof is a whole one
        wait = min(FIRST_RETRY_SECONDS * 2 ** (voice.failures - 1), LAST_RETRY_SECONDS)
        if voice.failures == 1 and voice.corruption is not None and self._fetcher is not None:
            wait = 0.0  # the store may have better files
        voice.reason, voice.retry_at = reason, time.monotonic() + wait
        if voice.state is not AdapterState.DRAINING:
            voice.state = AdapterState.FAILED
        log.error("%s failed, next try in %.0f s: %s", voice.version, wait, reason)
        self._metrics.adapter_loads_total.labels(result="failed").inc()
        if voice.loaded:
            await self._unload(voice)

    async def _drain(self, voice: LoadedAdapter) -> None:
        """Let answers under way end, up to the deadline; then end them; then free the adapter's memory."""
        if voice.in_flight:
            try:
                async with asyncio.timeout(self._limits.drain_seconds):
                    await voice.idle.wait()
            except TimeoutError:
                log.warning("%s still had %d answers at the deadline; ending them", voice.version, voice.in_flight)
                voice.revoked.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.drain_seconds):
                        await voice.idle.wait()
        if unfinished := {task for task in (voice.entry, voice.proof) if task is not None}:
            await asyncio.wait(unfinished)
        async with self._loading:
            if voice.loaded:
                await self._unload(voice)
        if self._voices.get(voice.version) is voice:
            del self._voices[voice.version]
        self._count()
        log.info("%s is gone: drained and unloaded", voice.version)

    async def _unload(self, voice: LoadedAdapter) -> None:
        voice.loaded = voice.verified = False
        try:
            await self._engine.unload(voice.version)
        except PolytoneError as error:
            log.warning("%s could not be unloaded: %s", voice.version, error.message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _warn_of_crowding(self, published: int) -> None:
        limit = self._limits.max_resident
        crowded = published > CROWDED * limit
        if crowded and not self._crowded:
            log.warning(
                "%d versions are published and %d fit in memory (POLYTONE_MAX_RESIDENT_ADAPTERS). Beyond that, a voice "
                "that was not asked for lately is loaded again when it is, and its first answer is slower.",
                published,
                limit,
            )
        self._crowded = crowded

    def _count(self) -> None:
        self._metrics.adapters_resident.set(len(self.loaded()))
        self._metrics.adapters_published.set(len(self._voices))


def is_whole(home: Home, version: str) -> bool:
    """Whether its files are what their digest says, if not what was trained."""
    try:
        read_version(home, version)
    except (PolytoneError, OSError):
        return False
    return True


def not_ready(voice: LoadedAdapter) -> UnavailableError:
    return UnavailableError(f"{voice.version} is failed ({voice.reason}).", code="voice_not_ready", param="model")
