"""What holds for every request before a route sees it: an id, the right host and origin, safe headers, one log line."""

import logging
import re
import time
import uuid
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polytone.contract.errors import DeniedError, PolytoneError
from polytone.serve.auth.keys import Keyring
from polytone.serve.logs import REQUEST_ID

from .errors import error_response

log = logging.getLogger("polytone.requests")

ID_HEADER = "x-request-id"
GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
LIMITED = re.compile(r"/v1/(chat/)?completions|/admin/adapters/[^/]+/versions")
QUIET = ("/healthz", "/readyz", "/metrics", "/ui")
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
API_POLICY = "default-src 'none'; frame-ancestors 'none'"


class RequestGuard:
    """Pure ASGI, so that streams pass through untouched."""

    def __init__(
        self, app: ASGIApp, keyring: Keyring, origins: Iterable[str] = (), body_bytes: int = 2_000_000
    ) -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._keyring = keyring
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(ID_HEADER, "")
        number = given if GOOD_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        token = REQUEST_ID.set(number)
        scope.setdefault("state", {})
        began, status = time.monotonic(), 0
        origin = headers.get("origin")

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                said = MutableHeaders(scope=message)
                said[ID_HEADER] = number
                for name, value in SAFE.items():
                    said.setdefault(name, value)
                if not scope["path"].startswith("/ui"):
                    said.setdefault("content-security-policy", API_POLICY)
                    said.setdefault("cache-control", "no-store")
                if origin in self._origins:
                    said["access-control-allow-origin"] = str(origin)
                    said["access-control-expose-headers"] = "x-request-id, x-polytone-adapter"
                    said.add_vary_header("origin")
            await send(message)

        try:
            await self._route(scope, headers, receive, send_with_headers)
        finally:
            if not scope["path"].startswith(QUIET):
                log_line(scope, status, time.monotonic() - began)
            REQUEST_ID.reset(token)

    async def _route(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            self._check_host(headers)
            self._check_origin(headers)
        except PolytoneError as error:
            await error_response(error)(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and headers.get("origin") in self._origins:
            await preflight(scope, receive, send)
            return
        if not LIMITED.fullmatch(scope["path"]):  # these look at the key first, and read up to a limit of their own
            receive = self._limited(receive)
        await self._app(scope, receive, send)

    def _limited(self, receive: Receive) -> Receive:
        """FastAPI reads a whole body before it asks for the key; nobody shall fill the memory with one."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._body_bytes:
                raise HTTPException(413, f"The request's body is larger than the {self._body_bytes} bytes allowed.")
            return message

        return limited

    def _check_host(self, headers: Headers) -> None:
        """Without keys only this machine is served; a page that lets its own name point here is not this machine."""
        if not self._keyring.required and not is_local(headers.get("host", "")):
            raise DeniedError(
                "Without keys this server answers under a loopback name only, such as 127.0.0.1.",
                code="host_not_allowed",
                status=403,
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self._origins or urlsplit(origin).netloc == headers.get("host"):
            return
        raise DeniedError(
            f"Pages from {origin[:200]} may not call this server. List the origin in POLYTONE_ORIGINS if they should.",
            code="origin_not_allowed",
            status=403,
        )


async def preflight(scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.responses import Response

    allowed = {
        "access-control-allow-methods": "GET, POST, PUT, DELETE",
        "access-control-allow-headers": "authorization, content-type, x-conversation-id, x-request-id",
        "access-control-max-age": "600",
    }
    await Response(status_code=204, headers=allowed)(scope, receive, send)


def is_local(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def log_line(scope: Scope, status: int, seconds: float) -> None:
    """No content, no query, no header: who asked for what, and how it went."""
    state: dict[str, Any] = scope["state"]
    log.info(
        "%s %s %d",
        scope["method"],
        scope["path"],
        status,
        extra={
            "fields": {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 1),
                "version": state.get("answered_by"),
                "key": state.get("key"),
            }
        },
    )
