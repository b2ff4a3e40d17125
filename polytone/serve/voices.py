"""The versions on this replica: brought up, proven, routed to, drained and unloaded.

Life of a version: loading -> ready -> draining -> gone, or failed(reason), which is tried again with backoff.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from polytone.contract.adapter import Manifest, check_servable, read_version
from polytone.contract.base import Base
from polytone.contract.errors import NotFoundError, PolytoneError, UnavailableError
from polytone.contract.home import Home

from .engine import Engine
from .metrics import Metrics
from .registry import Desired
from .verify import verify

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass
class Voice:
    """One version on this replica and the answers it is giving."""

    version: str
    state: State = State.LOADING
    reason: str | None = None
    manifest: Manifest | None = None
    failures: int = 0
    retry_at: float = 0.0
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    revoked: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Route:
    """Who answers a request: a version, or the base (`voice` is None). Decided once, before the first byte."""

    model: str
    voice: Voice | None

    @property
    def version(self) -> str | None:
        return self.voice.version if self.voice else None

    @property
    def manifest(self) -> Manifest | None:
        return self.voice.manifest if self.voice else None


class Voices:
    """Brings this replica's engine to the desired state, one load at a time, and routes requests."""

    def __init__(
        self, engine: Engine, home: Home, base: Base, max_rank: int, drain_seconds: float, metrics: Metrics
    ) -> None:
        self._engine = engine
        self._home = home
        self.base = base
        self._max_rank = max_rank
        self._drain_seconds = drain_seconds
        self._metrics = metrics
        self._voices: dict[str, Voice] = {}
        self._aliases: dict[str, str] = {}
        self._wanted: dict[str, str] = {}
        self._drains: set[asyncio.Task[None]] = set()

    @property
    def aliases(self) -> dict[str, str]:
        """Alias -> the version that answers for it here and now."""
        return dict(self._aliases)

    def states(self) -> dict[str, tuple[str, str | None]]:
        return {voice.version: (voice.state.value, voice.reason) for voice in self._voices.values()}

    def manifest(self, version: str) -> Manifest | None:
        voice = self._voices.get(version)
        return voice.manifest if voice else None

    def route(self, model: str) -> Route:
        """Find who answers for a model name: the base's id, an alias or a pinned version.

        Raises:
            NotFoundError: `model_not_found`. There is no fallback to the base.
            UnavailableError: `voice_not_ready`, with the state it is in.
        """
        if model == self.base.id:
            return Route(model, None)
        version = self._aliases.get(model) or self._wanted.get(model, model)
        voice = self._voices.get(version)
        if voice is not None and voice.state is State.READY:
            return Route(model, voice)
        if (voice is not None and voice.state is not State.DRAINING) or model in self._wanted:
            state = f"{voice.state.value}{f' ({voice.reason})' if voice.reason else ''}" if voice else "not loaded yet"
            raise UnavailableError(f"{model} is {state}. Try again shortly.", code="voice_not_ready", param="model")
        known = ", ".join([self.base.id, *sorted(self._aliases)])
        raise NotFoundError(
            f"The model {model!r} does not exist here. There are: {known}.",
            code="model_not_found",
            param="model",
        )

    @contextmanager
    def answering(self, route: Route) -> Iterator[None]:
        """Count an answer under way, so that its version is not unloaded under it."""
        voice = route.voice
        if voice is None:
            yield
            return
        voice.in_flight += 1
        voice.idle.clear()
        try:
            yield
        finally:
            voice.in_flight -= 1
            if voice.in_flight == 0:
                voice.idle.set()

    def forget_all(self) -> None:
        """The engine is a new one: nothing is loaded. Aliases stay known, and are `voice_not_ready` until loaded."""
        for task in self._drains:
            task.cancel()
        self._voices.clear()
        self._aliases.clear()

    async def reconcile(self, desired: Desired) -> None:
        """One step towards the desired state: move aliases, retire what is unwanted, load what is missing."""
        self._wanted = dict(desired.aliases)
        self._move_aliases()
        self._retire_unwanted(desired)
        for version in sorted(desired.versions, key=lambda v: (v not in desired.aliases.values(), v)):
            voice = self._voices.get(version)
            due = voice is not None and voice.state is State.FAILED and time.monotonic() >= voice.retry_at
            if voice is None or due:
                await self._load(voice or Voice(version))
                self._move_aliases()
        ready = sum(voice.state is State.READY for voice in self._voices.values())
        self._metrics.adapters_resident.set(ready)

    def _move_aliases(self) -> None:
        """An alias moves once its new version is ready; until then the old one goes on answering."""
        for alias in set(self._aliases) - set(self._wanted):
            del self._aliases[alias]
        for alias, version in self._wanted.items():
            voice = self._voices.get(version)
            if voice is not None and voice.state is State.READY and self._aliases.get(alias) != version:
                log.info("%s is now answered by %s", alias, version)
                self._aliases[alias] = version

    def _retire_unwanted(self, desired: Desired) -> None:
        keep = desired.versions | set(self._aliases.values())
        for version, voice in list(self._voices.items()):
            if version in keep:
                continue  # one that is draining already goes on to its end, and is loaded anew after it
            if voice.state is State.FAILED:
                del self._voices[version]
            elif voice.state is State.READY:
                voice.state = State.DRAINING
                task = asyncio.create_task(self._drain(voice))
                self._drains.add(task)
                task.add_done_callback(self._drains.discard)

    async def _load(self, voice: Voice) -> None:
        voice.state, began = State.LOADING, time.monotonic()
        self._voices[voice.version] = voice
        loaded = False
        try:
            manifest = await asyncio.to_thread(read_version, self._home, voice.version)
            check_servable(manifest, self.base, self._max_rank)
            await self._engine.load(voice.version, self._home.adapter_folder(voice.version))
            loaded = True
            await verify(self._engine, manifest)
        except PolytoneError as error:
            self._fail(voice, error.message)
        except Exception as error:
            log.exception("loading %s failed unexpectedly", voice.version)
            self._fail(voice, f"unexpected {type(error).__name__}: {error}")
        else:
            voice.manifest, voice.state, voice.reason, voice.failures = manifest, State.READY, None, 0
            seconds = time.monotonic() - began
            self._metrics.adapter_load_seconds.observe(seconds)
            self._metrics.adapter_loads_total.labels(result="ready").inc()
            log.info("%s is ready: loaded and its fingerprint matches (%.2f s)", voice.version, seconds)
            return
        self._metrics.adapter_loads_total.labels(result="failed").inc()
        if loaded:
            await self._unload_quietly(voice.version)

    def _fail(self, voice: Voice, reason: str) -> None:
        voice.failures += 1
        wait = min(FIRST_RETRY_SECONDS * 2 ** (voice.failures - 1), LAST_RETRY_SECONDS)
        voice.state, voice.reason, voice.retry_at = State.FAILED, reason, time.monotonic() + wait
        log.error("%s failed, next try in %.0f s: %s", voice.version, wait, reason)

    async def _drain(self, voice: Voice) -> None:
        """Let answers under way end, up to the deadline; then end them; then free the adapter's memory."""
        if voice.in_flight:
            try:
                await asyncio.wait_for(voice.idle.wait(), self._drain_seconds)
            except TimeoutError:
                log.warning("%s still had %d answers at the deadline; ending them", voice.version, voice.in_flight)
                voice.revoked.set()
                await asyncio.wait_for(voice.idle.wait(), self._drain_seconds)
        await self._unload_quietly(voice.version)
        self._voices.pop(voice.version, None)
        log.info("%s is gone: drained and unloaded", voice.version)

    async def _unload_quietly(self, version: str) -> None:
        try:
            await self._engine.unload(version)
        except PolytoneError as error:
            log.warning("%s could not be unloaded: %s", version, error.message)
