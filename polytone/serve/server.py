"""The composition root: builds a listening server with engine, registry and pages from settings."""

import gc
import logging
import signal
import socket
from functools import partial
from types import FrameType

import psutil
import uvicorn
from starlette.types import ASGIApp

from polytone.contract.base import base_folder, load_base
from polytone.contract.errors import InputError
from polytone.contract.files import remove_leftovers
from polytone.contract.version_id import voice_of

from .adapters.fetch import Fetcher
from .adapters.loaded import AdapterLimits
from .adapters.manager import AdapterManager
from .adapters.registry import Registry
from .adapters.replicas import Replicas
from .adapters.store import open_store
from .adapters.validation import ServedBase
from .api.app import create_app
from .api.middleware import is_loopback
from .api.ui_mount import PAGE_PATH, DeferredUi
from .auth.keys import Keyring, KeyStore
from .auth.rate_limits import Admission
from .database.session import Database, open_database
from .drift.baseline import Baselines
from .drift.embedding import token_embedding
from .drift.monitor import DriftMonitor
from .drift.queries import tone_siblings
from .engine.vllm import VllmEngine, VllmOptions
from .limits import RequestLimits, ServerLimits
from .logs import prints_in, set_up_logs
from .metrics import Metrics
from .services import Services
from .settings import Settings
from .supervisor import EngineSupervisor
from .traffic.content_policy import Policies
from .traffic.recorder import TrafficRecorder
from .traffic.reviews import Reviews

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 10
MOST_SIBLINGS = 16


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        InputError: `port_in_use`, or `keys_needed` for a public address without a key.
        NotFoundError: `base_not_found`.
    """
    set_up_logs(settings.json_logs)
    services = build_services(settings)
    check_exposure(settings, services.keyring.required)
    listener = listen(settings.host, settings.port)
    page = DeferredUi(partial(build_page_app, local_url(settings))) if settings.page else None
    warn_of_others(settings, services.replicas)
    url, engine_log = local_url(settings), services.home.root / f"engine-{settings.port}.log"
    supervisor = EngineSupervisor(
        services,
        settings.poll_seconds,
        when_ready=f"ready: {url}/v1" + (f", pages: {url}{PAGE_PATH}/" if page else ""),
    )
    app = create_app(services, supervisor, settings.origins, page)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
    )
    # uvicorn raises the signal that stopped it a second time when it is done; that must not kill us half-way.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ignore)
    if settings.json_logs:  # for a collector, which gets the engine's messages too
        uvicorn.Server(config).run(sockets=[listener])
    else:
        log.info("starting the engine with %s; its messages go to %s", settings.base, engine_log)
        with prints_in(engine_log):
            uvicorn.Server(config).run(sockets=[listener])
        log.info("stopped")
    gc.freeze()  # the interpreter's last collection would take seconds over the engine's libraries


def build_services(settings: Settings) -> Services:
    home = settings.paths()
    base = load_base(home, settings.base)
    store = open_store(settings.adapter_store, settings.max_upload_bytes)
    if store is not None:
        log.info("adapter store: %s; %s is its cache here", store, home.adapters)
    remove_leftovers(home.adapters)
    metrics = Metrics()
    metrics.adapters_limit.set(settings.max_resident_adapters)
    engine = VllmEngine(engine_options(settings, base.max_length))
    limits = AdapterLimits(
        settings.max_lora_rank, settings.max_resident_adapters, settings.max_batch_adapters, settings.drain_seconds
    )
    fetcher = Fetcher(store, ServedBase(home, base, settings.max_lora_rank), metrics) if store is not None else None
    database = open_database(settings.database())
    keys = KeyStore(database)
    registry = Registry(database)
    baselines = build_baselines(settings, database, registry)
    return Services(
        engine=engine,
        database=database,
        registry=registry,
        replicas=Replicas(database),
        keys=keys,
        keyring=Keyring(keys.with_hashes()),
        admission=Admission(settings.max_streams + settings.max_waiting),
        adapters=AdapterManager(engine, home, base, limits, metrics, fetcher),
        metrics=metrics,
        recorder=TrafficRecorder(
            database,
            metrics,
            Policies(settings.content, settings.content_of),
            measure=baselines.measure if settings.drift else None,
            capacity=settings.traffic_queue,
            keep_days=settings.traffic_days,
            recording=settings.traffic,
        ),
        reviews=Reviews(database),
        drift=DriftMonitor(database, baselines, metrics, settings.drift_run_length, settings.drift_quiet_seconds),
        home=home,
        limits=ServerLimits(
            request=RequestLimits(
                messages=settings.max_messages,
                output_tokens=settings.max_output_tokens,
                choices=settings.max_choices,
                tools=settings.tool_parser is not None,
            ),
            body_bytes=settings.max_body_bytes,
            upload_bytes=settings.max_upload_bytes,
            answer_seconds=settings.answer_seconds,
            hang_seconds=settings.hang_seconds,
            start_seconds=settings.start_seconds,
        ),
        store=store,
    )


def build_baselines(settings: Settings, database: Database, registry: Registry) -> Baselines:
    """A version's tone is told from the base's and from that of every other voice's main version."""

    def siblings(version: str) -> list[str]:
        voice = voice_of(version)
        others = sorted((name, rollout) for name, rollout in registry.desired().rollouts.items() if name != voice)
        mains = [rollout.main for _, rollout in others[:MOST_SIBLINGS]]
        return tone_siblings(database, version, mains)

    weights = base_folder(settings.paths(), settings.base) / "source"
    return Baselines(settings.paths(), partial(token_embedding, weights), siblings)


def check_exposure(settings: Settings, has_keys: bool) -> None:
    """Nothing but this machine is served without keys."""
    if has_keys:
        return
    if not is_loopback(settings.host):
        raise InputError(
            f"POLYTONE_HOST: {settings.host!r} is not a loopback address, and there is no key yet. Make one first: "
            "polytone keys create --kind admin --name operator",
            code="keys_needed",
            param="host",
        )
    log.warning(
        "no keys: serving this machine only, and anyone on it may do anything. "
        "polytone keys create --kind admin --name operator changes that"
    )


def warn_of_others(settings: Settings, replicas: Replicas) -> None:
    """Two servers may share a home; who starts a second one by mistake pays for a second engine."""
    if settings.database_url is None and (others := sorted(filter(may_run, replicas.living()))):
        names = ", ".join(others)
        log.warning("another replica uses this home: %s. Both answer, each with an engine of its own", names)


def may_run(replica: str) -> bool:
    """Whether a replica that was heard from lately may still run; of one on this machine its process says so."""
    host, _, process = replica.rpartition(":")
    return host != socket.gethostname() or not process.isdecimal() or psutil.pid_exists(int(process))


def engine_options(settings: Settings, longest: int) -> VllmOptions:
    return VllmOptions(
        base=base_folder(settings.paths(), settings.base),
        base_id=settings.base,
        max_context=min(settings.max_context, longest),
        max_streams=settings.max_streams,
        max_lora_rank=settings.max_lora_rank,
        max_batch_adapters=settings.max_batch_adapters,
        max_resident_adapters=settings.max_resident_adapters,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_share=settings.gpu_memory_share,
        tool_parser=settings.tool_parser,
        cpu_lora=settings.cpu_lora,
        cpu_threads=settings.cpu_threads,
    )


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # only that keeps another from binding it too
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


def build_page_app(url: str) -> ASGIApp:
    """The pages as an app of their own; importing Gradio takes seconds."""
    from polytone.ui.page import page_app

    return page_app(url, PAGE_PATH)


def local_url(settings: Settings) -> str:
    """Where the page reaches the API on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def ignore(_number: int, _frame: FrameType | None) -> None:
    return
