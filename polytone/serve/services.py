"""Services that request handlers are given, built once by the composition root."""

from dataclasses import dataclass, field
from typing import Protocol

from polytone.contract.home import Home

from .adapters.manager import AdapterManager
from .adapters.registry import Registry
from .adapters.replicas import Replicas
from .adapters.store import AdapterStore
from .auth.keys import Keyring, KeyStore
from .auth.rate_limits import Admission
from .database.session import Database
from .drift.monitor import DriftMonitor
from .engine.base import Engine
from .limits import ServerLimits
from .metrics import Metrics
from .traffic.recorder import TrafficRecorder
from .traffic.reviews import Reviews


class Abortable(Protocol):
    """A request that the engine is working on."""

    def abort(self) -> None:
        """The engine is gone: end with an error, at once."""


@dataclass
class EngineStatus:
    """What the supervisor last saw of the engine and the database.

    `settled` is true once every version that should be loaded was tried; `problem` is None while nothing is wrong.
    """

    settled: bool = False
    problem: str | None = "the engine is starting"


@dataclass(frozen=True)
class Services:
    """Data only: the parts of the server, and what is under way in it."""

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
    store: AdapterStore | None = None
    inflight: set[Abortable] = field(default_factory=set)
    status: EngineStatus = field(default_factory=EngineStatus)
