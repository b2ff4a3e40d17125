"""Middleware for Ray's HTTP proxy that renders its own refusals as Polytone does: OpenAI's envelope with a stable code.

Named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray_proxy:middlewares where Ray is started.
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polytone.contract.errors import NotFoundError, PolytoneError, UnavailableError
from polytone.serve.api.errors import error_response, for_stream

JSON, STREAM = "application/json", "text/event-stream"
RAYS_ROUTES = "/-/"  # its health and route listing, for load balancers


def middlewares() -> list[Middleware]:
    return [Middleware(ProperErrors)]


class ProperErrors:
    """Pure ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAYS_ROUTES):
            await self._app(scope, receive, send)
            return
        status, kind, ended = 0, "", False

        def is_rays() -> bool:
            return status >= 400 and not kind.startswith(JSON)

        async def passing(message: Message) -> None:
            nonlocal status, kind, ended
            if message["type"] == "http.response.start":
                status, kind = message["status"], Headers(raw=message["headers"]).get("content-type", "")
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not is_rays():
                await send(message)

        await self._app(scope, receive, passing)
        if not status or is_rays():  # a replica that died leaves an answer that has not even begun
            await error_response(refusal(status))(scope, receive, send)
        elif not ended and kind.startswith(STREAM):
            await send({"type": "http.response.body", "body": for_stream(lost()).encode()})


def refusal(status: int) -> PolytoneError:
    """Our error for a status of the proxy's own; 0 where it sent none."""
    if status == 404:
        return NotFoundError("Nothing is served here.", code="route_not_found")
    if status in (408, 429, 503):
        return UnavailableError("No replica takes this request now. Try again shortly.", code="no_replica")
    return lost()


def lost() -> PolytoneError:
    return UnavailableError("The replica that worked on this answer is gone. Ask again.", code="replica_lost")
