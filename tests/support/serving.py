"""A running app over the double, for the tests of the server."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from polytone.contract.base import Base
from polytone.contract.home import Home
from polytone.serve.adapters.fetch import Fetcher
from polytone.serve.adapters.loaded import AdapterLimits
from polytone.serve.adapters.manager import AdapterManager
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.replicas import Replicas
from polytone.serve.adapters.store import AdapterStore
from polytone.serve.adapters.validation import ServedBase
from polytone.serve.api.app import create_app
from polytone.serve.auth.keys import Keyring, KeyStore, Kind
from polytone.serve.auth.rate_limits import Admission
from polytone.serve.database.session import Database, open_database
from polytone.serve.drift.baseline import Baselines
from polytone.serve.drift.embedding import DIMENSION
from polytone.serve.drift.monitor import DriftMonitor
from polytone.serve.drift.queries import tone_siblings
from polytone.serve.limits import RequestLimits, ServerLimits
from polytone.serve.metrics import Metrics
from polytone.serve.services import Services
from polytone.serve.supervisor import EngineSupervisor
from polytone.serve.traffic.content_policy import Policies
from polytone.serve.traffic.recorder import TrafficRecorder
from polytone.serve.traffic.reviews import Reviews

from .adapters import make_base, make_version
from .fake_engine import FakeEngine

HELLO = [{"role": "user", "content": "Hello"}]
LOCAL = "http://127.0.0.1:8000"


@dataclass
class Server:
    """A running app with what a test needs to move it."""

    home: Home
    base: Base
    engine: FakeEngine
    registry: Registry
    services: Services
    supervisor: EngineSupervisor
    app: FastAPI
    client: httpx.AsyncClient

    async def chat(self, model: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": HELLO, **more}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def until_ready(self, *versions: str) -> None:
        await eventually(lambda: all(self.state(version) == "ready" for version in versions))

    def state(self, version: str) -> str:
        return self.services.adapters.states().get(version, ("gone", None))[0]

    def add(self, name: str, seed: int = 0, **changes: Any) -> str:
        version = make_version(self.home, self.base, name, seed, **changes).version
        self.registry.publish(version, "test")
        return version

    async def voice(self, name: str, seed: int = 0, **changes: Any) -> str:
        """A version that answers for its voice."""
        version = self.add(name, seed, **changes)
        self.registry.promote(name, version, "test")
        await eventually(lambda: self.answers(name) == version)
        await self.until_ready(version)
        return version

    def answers(self, name: str) -> str | None:
        rollout = self.services.adapters.rollouts.get(name)
        return rollout.main if rollout else None

    def key(self, kind: Kind, name: str | None = None, **limits: Any) -> dict[str, str]:
        """The header of a new key."""
        text = self.services.keys.create(name or f"{kind}-key", kind, "test", **limits)[1]
        self.services.keyring.refresh(self.services.keys.with_hashes())
        return {"authorization": f"Bearer {text}"}


async def eventually(condition: Any, seconds: float = 30.0) -> None:  # for two busy cores
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def database_url(home: Home) -> str:
    """SQLite in the home, or the PostgreSQL that the test is to run on (see conftest.py)."""
    return os.environ.get("POLYTONE_DATABASE_URL", home.database_url)


def open_migrated(home: Home, shared_database: str | None) -> Database:
    """Open the test's database. A new SQLite starts as a copy of a migrated one, since to migrate takes longest."""
    url = shared_database or database_url(home)
    file = Path(home.database_url.removeprefix("sqlite:///"))
    if url == home.database_url and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(migrated_sqlite())
    return open_database(url)


@cache
def migrated_sqlite() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/database")
        with database.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        database.dispose()
        return Path(folder, "database").read_bytes()


def embed_by_letters(texts: list[str]) -> Any:
    """How often each letter comes: a real embedding, if a crude one, that needs no base."""
    counts = np.array([[text.lower().count(chr(97 + i % 26)) for i in range(DIMENSION)] for text in texts], float)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


@asynccontextmanager
async def serving(
    root: Path,
    step_seconds: float = 0.0,
    drain_seconds: float = 1.0,
    max_resident: int = 16,
    max_batch: int = 8,
    at_once: int = 128,
    origins: tuple[str, ...] = (),
    policies: Policies = Policies(),
    store: AdapterStore | None = None,
    shared_database: str | None = None,
    base: Base | None = None,
    engine: FakeEngine | None = None,
    **limits: float,
) -> AsyncIterator[Server]:
    home = Home(root)
    base = base or make_base(home)
    engine = engine or FakeEngine(base.id, step_seconds)
    metrics = Metrics()
    database = open_migrated(home, shared_database)
    keys = KeyStore(database)
    fetcher = Fetcher(store, ServedBase(home, base, 16), metrics) if store is not None else None
    baselines = Baselines(home, lambda: embed_by_letters, lambda version: tone_siblings(database, version, []))
    services = Services(
        engine=engine,
        database=database,
        registry=Registry(database),
        replicas=Replicas(database),
        keys=keys,
        keyring=Keyring(keys.with_hashes()),
        admission=Admission(at_once),
        adapters=AdapterManager(
            engine, home, base, AdapterLimits(16, max_resident, max_batch, drain_seconds), metrics, fetcher
        ),
        metrics=metrics,
        recorder=TrafficRecorder(
            database, metrics, policies, baselines.measure, capacity=int(limits.get("traffic_queue", 1000))
        ),
        reviews=Reviews(database),
        drift=DriftMonitor(
            database, baselines, metrics, limits.get("run_length", 20_000), limits.get("quiet_seconds", 0)
        ),
        home=home,
        limits=ServerLimits(
            request=RequestLimits(messages=20, output_tokens=200, choices=4),
            body_bytes=int(limits.get("body_bytes", 200_000)),
            upload_bytes=int(limits.get("upload_bytes", 1_000_000)),
            answer_seconds=limits.get("answer_seconds", 30),
            hang_seconds=limits.get("hang_seconds", 30),
            start_seconds=limits.get("start_seconds", 30),
        ),
        store=store,
    )
    supervisor = EngineSupervisor(services, poll_seconds=0.01)
    app = create_app(services, supervisor, origins)
    async with (
        supervisor.running(),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client,
    ):
        await eventually(supervisor.ready)
        yield Server(home, base, engine, services.registry, services, supervisor, app, client)
