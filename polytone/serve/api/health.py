"""/healthz, /readyz and /metrics."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from polytone.serve.auth.keys import Kind
from polytone.serve.services import Services
from polytone.serve.supervisor import EngineSupervisor


def health_routes(services: Services, supervisor: EngineSupervisor) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The app is up; it says nothing about the engine."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """200 once the engine answers and every published version was tried; 503 with the reason until then."""
        if supervisor.ready():
            return JSONResponse({"status": "ready"})
        content = {"status": "not_ready", "reason": services.status.problem or "the engine stopped"}
        return JSONResponse(content, 503, headers={"retry-after": "5"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Polytone's metrics and the engine's own, in Prometheus' text format. With keys, an admin key is needed."""
        services.keyring.authenticate(request.headers.get("authorization"), Kind.ADMIN)
        content = services.metrics.render() + services.engine.metrics()
        return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})

    return router
