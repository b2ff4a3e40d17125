"""Request bodies, read up to a limit."""

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polytone.contract.errors import TooLargeError

TOO_LARGE = 413


class BodyLimit:
    """Middleware that refuses a body of more than `max_bytes`, by its announced length or by the bytes that come.

    Starlette's RequestBodyLimitMiddleware would answer an announced length in plain text, in place of our envelope.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["max_body_bytes"] = self._max_bytes
        announced = Headers(scope=scope).get("content-length", "")
        size = 0

        async def limited() -> Message:
            nonlocal size
            limit = state["max_body_bytes"]
            if announced.isdecimal() and int(announced) > limit:
                raise too_large(limit)
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise too_large(limit)
            return message

        await self._app(scope, limited, send)


def allow_body(request: Request, max_bytes: int) -> None:
    """Let a route take a larger body than others; call it before the body is read."""
    request.state.max_body_bytes = max_bytes


async def read_body(request: Request) -> bytes:
    """Raises TooLargeError `body_too_large`."""
    try:
        return await request.body()
    except HTTPException as error:
        raise TooLargeError(error.detail, code="body_too_large") from None


def too_large(limit: int) -> HTTPException:
    """FastAPI, which reads JSON bodies itself, lets no other kind of error through."""
    return HTTPException(TOO_LARGE, f"The request's body is larger than the {limit} bytes this server takes.")
