"""Polytone on Ray Serve, the second composition root: replicas of the same app, each with an engine of its own, on one
database and one adapter store.

    serve run deploy.ray_app:build min_replicas=2 max_replicas=4

Settings are POLYTONE_* as for `polytone serve`. See docs/cluster.md.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from polytone.contract.errors import InputError
from polytone.serve.api.app import create_app
from polytone.serve.logs import set_up_logs
from polytone.serve.server import build_services, listen
from polytone.serve.settings import Settings, read_settings
from polytone.serve.supervisor import EngineSupervisor

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
PORTS_TRIED = 32
DRAIN_MARGIN_SECONDS = 10


class ClusterArgs(BaseModel):
    """What the application is built with: `serve run deploy.ray_app:build NAME=VALUE`, or `args` in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=1, description="Replicas that are always there.")
    max_replicas: int = Field(1, ge=1, description="Most replicas; more come when requests wait.")
    cpus: float = Field(1, gt=0, description="Cores that Ray sets aside for a replica.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray sets aside for a replica.")
    host: str = Field("127.0.0.1", description="Address of each replica's own port; in a cluster the pod's, 0.0.0.0.")
    port: int = Field(9464, ge=1, le=65000, description="First port to try for a replica's own /metrics and /readyz.")
    settings: dict[str, Any] = Field({}, description="Settings of the server that differ from POLYTONE_*.")
    release: str = Field("", description="Any text; a new one rolls every replica over.")


def build(args: ClusterArgs) -> Application:
    """The Serve application.

    Raises:
        InputError: `settings_invalid`.
    """
    settings = read_settings(**args.settings)
    at_once = settings.max_streams + settings.max_waiting
    deployment = serve.deployment(
        serve.ingress()(PolytoneReplica),
        name="Polytone",
        max_ongoing_requests=at_once,
        max_queued_requests=at_once,
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=max(args.min_replicas, args.max_replicas),
            target_ongoing_requests=settings.max_streams,  # more than the engine works on at once are a queue
        ),
        # A conversation stays where its prefix is cached, and goes elsewhere only where that replica takes no more.
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        graceful_shutdown_timeout_s=settings.answer_seconds + DRAIN_MARGIN_SECONDS,
        health_check_timeout_s=settings.hang_seconds,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
    )
    return deployment.bind(args.settings, args.host, args.port, args.release)


class PolytoneReplica:
    """One replica; Ray calls it by these names."""

    def __init__(self, settings: dict[str, Any], host: str, port: int, release: str) -> None:
        self.settings = read_settings(**settings)
        set_up_logs(self.settings.json_logs)
        self.services = build_services(self.settings)
        self.supervisor = EngineSupervisor(self.services, self.settings.poll_seconds)
        self.listener = first_free(host, port)
        if not self.services.keyring.required:
            raise InputError(
                "A cluster is served with keys only: whoever reaches Ray's proxy would reach everything. "
                "Make one first: polytone keys create --kind admin --name operator",
                code="keys_needed",
            )

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self.services, self.supervisor, self.settings.origins)
        app.router.lifespan_context = ready_lifespan(app, self.supervisor, self.settings, self.listener)
        return app

    def check_health(self) -> None:
        """A dead engine is rebuilt in its replica; where that takes longer than three looks, Ray takes another."""
        if not self.services.engine.healthy():
            raise RuntimeError(self.services.status.problem or "the engine stopped")


def ready_lifespan(
    app: FastAPI, supervisor: EngineSupervisor, settings: Settings, listener: socket.socket
) -> Callable[[FastAPI], AbstractAsyncContextManager[Any]]:
    """The app's lifespan, which begins only once the engine answers: Ray sends requests as soon as it has begun.

    Beside it the same app listens on the replica's own port, for /metrics: Ray's proxy would ask any replica.
    """
    started = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running_app: FastAPI) -> AsyncIterator[Any]:
        async with started(running_app) as state, listening(app, listener):
            await until_ready(supervisor, settings)
            yield state

    return lifespan


async def until_ready(supervisor: EngineSupervisor, settings: Settings) -> None:
    async with asyncio.timeout(settings.start_seconds):
        while not supervisor.ready():  # noqa: ASYNC110 - the engine has no event to wait for
            await asyncio.sleep(settings.poll_seconds)


@asynccontextmanager
async def listening(app: FastAPI, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    answering = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await answering


def first_free(host: str, port: int) -> socket.socket:
    """A listener on the first port from `port` on that is free: replicas may share a machine."""
    for tried in range(port, port + PORTS_TRIED):
        with suppress(InputError):
            return listen(host, tried)
    raise InputError(
        f"{host}: no port from {port} to {port + PORTS_TRIED - 1} is free.", code="port_in_use", param="port"
    )
