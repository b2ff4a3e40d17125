"""A version on this replica: its state, its files, its copy in the engine, and the requests that hold it."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto

from polytone.contract.errors import UnavailableError
from polytone.contract.manifest import Manifest

FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0


class AdapterState(StrEnum):
    """The life of a version here. A ready version may be evicted from the engine's memory and stays ready."""

    PUBLISHED = "published"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    GONE = "gone"  # drained, or the engine it was in was rebuilt; nothing is done with it any more


class EngineState(Enum):
    """What the engine has of a version. Nothing of an answer may leave before it is verified."""

    UNLOADED = auto()
    LOADING = auto()
    LOADED = auto()
    VERIFIED = auto()


@dataclass
class AdapterFiles:
    """What is known of a version's files in the home. Whether they exist is looked up on the disk."""

    corruption: str | None = None  # why they must be fetched again before they are used
    fetched: bool = False  # they came from the adapter store since the engine started
    fetch: "asyncio.Task[bool] | None" = None


@dataclass
class EngineCopy:
    """A version in the engine's memory, and what is under way with it.

    A version may be verified while it is still being loaded: an engine that loads in order answers after the load.
    """

    state: EngineState = EngineState.UNLOADED
    loading: "asyncio.Task[None] | None" = None
    verification: "asyncio.Task[None] | None" = None
    verified_before: bool = False  # by this engine: one token is enough when it is loaded again
    last_used: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one request loads it, the others wait for that


@dataclass
class Backoff:
    """When a version that failed is tried again: after 5 seconds, then twice as long each time, at most 5 minutes."""

    failures: int = 0
    retry_at: float = 0.0

    def fail(self, first_at_once: bool) -> float:
        """Count a failure and return the seconds until the next try; the first one may follow at once."""
        self.failures += 1
        seconds = min(FIRST_RETRY_SECONDS * 2.0 ** (self.failures - 1), LAST_RETRY_SECONDS)
        if self.failures == 1 and first_at_once:
            seconds = 0.0
        self.retry_at = time.monotonic() + seconds
        return seconds

    def is_due(self) -> bool:
        return time.monotonic() >= self.retry_at

    def reset(self) -> None:
        self.failures = 0


class LeaseCount:
    """The number of requests that hold a version."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    def add(self) -> None:
        self.count += 1
        self._none.clear()

    def remove(self) -> None:
        self.count -= 1
        if self.count == 0:
            self._none.set()

    async def wait_for_none(self) -> None:
        await self._none.wait()


@dataclass
class LoadedAdapter:
    """One version on this replica. `reason` says why it failed; `revoked` ends the answers it is still giving."""

    version: str
    state: AdapterState = AdapterState.PUBLISHED
    reason: str | None = None
    manifest: Manifest | None = None
    files: AdapterFiles = field(default_factory=AdapterFiles)
    engine_copy: EngineCopy = field(default_factory=EngineCopy)
    backoff: Backoff = field(default_factory=Backoff)
    leases: LeaseCount = field(default_factory=LeaseCount)
    revoked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def loaded(self) -> bool:
        return self.engine_copy.state in (EngineState.LOADED, EngineState.VERIFIED)

    @property
    def verified(self) -> bool:
        return self.engine_copy.state is EngineState.VERIFIED


@dataclass(frozen=True)
class Route:
    """Who answers a request: a version, or the base (`adapter` is None). Decided once, before the first byte."""

    model: str
    adapter: LoadedAdapter | None

    @property
    def version(self) -> str | None:
        return self.adapter.version if self.adapter else None

    @property
    def manifest(self) -> Manifest | None:
        return self.adapter.manifest if self.adapter else None


@dataclass(frozen=True)
class AdapterLimits:
    """What the engine can hold: the highest rank, versions in memory, versions in one batch, seconds to drain."""

    max_rank: int
    max_resident: int
    max_batch: int
    drain_seconds: float


@dataclass(frozen=True)
class AdapterLease:
    """A request's hold on a version, which is neither evicted nor unloaded until `release`."""

    adapter: LoadedAdapter
    verification: "asyncio.Task[None] | None"
    releases: contextlib.ExitStack

    async def verified(self) -> None:
        """Wait until the version has shown to be the one that was trained.

        Raises:
            UnavailableError: `voice_not_ready`, or `engine_unavailable` if the engine is being rebuilt.
        """
        if self.verification is not None:
            await asyncio.wait({self.verification})
            if self.verification.cancelled() or not self.adapter.verified:
                raise not_ready(self.adapter)

    def release(self) -> None:
        """Give back the slot and the hold. May be called again."""
        self.releases.close()


def not_ready(adapter: LoadedAdapter) -> UnavailableError:
    """The version cannot answer now. The reason is not for clients: it may name paths, and other versions."""
    if adapter.state is AdapterState.GONE:
        return UnavailableError(
            f"{adapter.version} was unloaded meanwhile: the engine was rebuilt, or it was retired. Try again shortly.",
            code="engine_unavailable",
        )
    problem = {
        AdapterState.FAILED: "could not be loaded; the server tries again by itself, and its administrator sees why",
        AdapterState.DRAINING: "is being retired",
    }.get(adapter.state, "is being loaded")
    return UnavailableError(f"{adapter.version} {problem}. Try again shortly.", code="voice_not_ready", param="model")
