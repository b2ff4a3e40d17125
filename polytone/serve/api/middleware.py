"""Middleware for every request: an id, the host and origin it may come from, safe headers, one log line."""

import logging
import re
import time
import uuid
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polytone.contract.errors import DeniedError
from polytone.serve.auth.keys import Keyring
from polytone.serve.logs import REQUEST_ID

from .errors import error_response

log = logging.getLogger("polytone.requests")

ID_HEADER = "x-request-id"
GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET = ("/healthz", "/readyz", "/metrics", "/ui")
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
API_POLICY = "default-src 'none'; frame-ancestors 'none'"


class RequestGuard:
    """Pure ASGI, so that streams pass through untouched. Stands before CORS, which refuses no request."""

    def __init__(self, app: ASGIApp, keyring: Keyring, origins: Collection[str] = ()) -> None:
        self._app = app
        self._keyring = keyring
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id = headers.get(ID_HEADER, "")
        request_id = client_id if GOOD_ID.fullmatch(client_id) else f"req-{uuid.uuid4().hex}"
        token = REQUEST_ID.set(request_id)
        scope.setdefault("state", {})
        began, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers[ID_HEADER] = request_id
                for name, value in SAFE.items():
                    response_headers.setdefault(name, value)
                if not scope["path"].startswith("/ui"):
                    response_headers.setdefault("content-security-policy", API_POLICY)
                    response_headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._wrong_host(headers) or self._wrong_origin(headers)
        try:
            await (error_response(refusal) if refusal else self._app)(scope, receive, send_with_headers)
        finally:
            if not scope["path"].startswith(QUIET):
                log_line(scope, status, time.monotonic() - began)
            REQUEST_ID.reset(token)

    def _wrong_host(self, headers: Headers) -> DeniedError | None:
        """Without keys only this machine is served; a page that lets its own name point here is not this machine."""
        if self._keyring.required or is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or ""):
            return None
        return DeniedError(
            "Without keys this server answers under a loopback name only, such as 127.0.0.1.",
            code="host_not_allowed",
            status=403,
        )

    def _wrong_origin(self, headers: Headers) -> DeniedError | None:
        origin = headers.get("origin")
        if origin is None or origin in self._origins or urlsplit(origin).netloc == headers.get("host"):
            return None
        return DeniedError(
            f"Pages from {origin[:200]} may not call this server. List the origin in POLYTONE_ORIGINS if they should.",
            code="origin_not_allowed",
            status=403,
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
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
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1000, 1),
            "version": state.get("answered_by"),
            "key": state.get("key"),
        },
    )
