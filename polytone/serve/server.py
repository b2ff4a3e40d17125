"""The composition root: settings -> a listening server with engine, registry and chat page."""

import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.responses import RedirectResponse

from polytone.contract.base import base_folder, load_base
from polytone.contract.errors import InputError

from .app import create_app
from .database import open_database
from .metrics import Metrics
from .registry import Registry
from .runtime import Runtime
from .settings import Settings
from .vllm_engine import VllmEngine, VllmOptions
from .voices import Voices

SHUTDOWN_SECONDS = 10


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        InputError: `port_in_use`.
        NotFoundError: `base_not_found`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "alembic", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    runtime = build_runtime(settings)
    listener = listen(settings.host, settings.port)
    app = create_app(runtime)
    if settings.page:
        mount_page(app, f"http://{bracket(settings.host)}:{settings.port}")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
    )
    # uvicorn raises the signal that ended it once more when it is done; that one shall not kill us half-way.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ignore)
    uvicorn.Server(config).run(sockets=[listener])


def build_runtime(settings: Settings) -> Runtime:
    home = settings.paths()
    base = load_base(home, settings.base)
    metrics = Metrics()
    engine = VllmEngine(engine_options(settings, base.max_length))
    voices = Voices(engine, home, base, settings.max_lora_rank, settings.drain_seconds, metrics)
    registry = Registry(open_database(settings.database()))
    return Runtime(engine, registry, voices, metrics, settings.poll_seconds)


def engine_options(settings: Settings, longest: int) -> VllmOptions:
    import torch

    folder = base_folder(settings.paths(), settings.base)
    return VllmOptions(
        model=folder / ("source" if torch.cuda.is_available() else "nf4-dense"),
        base_id=settings.base,
        max_context=min(settings.max_context, longest),
        max_streams=settings.max_streams,
        max_lora_rank=settings.max_lora_rank,
        max_batch_adapters=settings.max_batch_adapters,
        max_resident_adapters=settings.max_resident_adapters,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_share=settings.gpu_memory_share,
    )


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Stop what uses the port, or choose another: "
            f"polytone serve --port {port + 1}",
            code="port_in_use",
            param="port",
        ) from None
    listener.set_inheritable(False)
    return listener


def mount_page(app: FastAPI, url: str) -> None:
    from polytone.ui.page import mount

    mount(app, url, path="/ui")

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/ui/")


def bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def ignore(_number: int, _frame: FrameType | None) -> None:
    return
