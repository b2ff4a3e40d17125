"""The HTTP app, with the routes that Polytone offers and no other."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, nullcontext

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from polytone import __version__
from polytone.serve.services import Services
from polytone.serve.supervisor import EngineSupervisor

from .adapters import adapter_routes
from .audit import audit_routes
from .chat import chat_routes
from .conversations import conversation_routes
from .drift import drift_routes
from .errors import install_error_handlers
from .feedback import export_routes, feedback_routes
from .health import health_routes
from .inflight import VERSION_HEADER
from .keys import key_routes
from .middleware import ID_HEADER, RequestGuard
from .models import model_routes
from .request_body import BodyLimit
from .reviews import review_routes
from .traffic import traffic_routes
from .ui_mount import DeferredUi, UiMiddleware

EXPOSED = (ID_HEADER, VERSION_HEADER)


def create_app(
    services: Services, supervisor: EngineSupervisor, origins: Collection[str] = (), page: DeferredUi | None = None
) -> FastAPI:
    """Build the app; the supervisor and the page start and stop with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with supervisor.running(), page.running() if page else nullcontext():
            yield

    app = FastAPI(
        title="Polytone",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    install_error_handlers(app)
    if page is not None:
        app.add_middleware(UiMiddleware, page=page)
    app.add_middleware(BodyLimit, max_bytes=services.limits.body_bytes)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("*",),  # OpenAI's clients send several of their own, x-stainless-*
            expose_headers=EXPOSED,
        )
    app.add_middleware(RequestGuard, keyring=services.keyring, origins=origins)
    for routes in (
        chat_routes,
        model_routes,
        feedback_routes,
        conversation_routes,
        adapter_routes,
        key_routes,
        audit_routes,
        review_routes,
        export_routes,
        drift_routes,
        traffic_routes,
    ):
        # Not include_router, which builds every route a second time.
        app.router.routes.extend(routes(services).routes)
    app.router.routes.extend(health_routes(services, supervisor).routes)
    return app
