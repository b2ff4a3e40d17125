"""One place that renders errors: OpenAI's envelope with a code a program can act on."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from polytone.contract.errors import PolytoneError
from polytone.contract.rows import describe

log = logging.getLogger(__name__)

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
RETRY_AFTER_SECONDS = "5"


def envelope(message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: PolytoneError, headers: dict[str, str] | None = None) -> JSONResponse:
    extra = {"retry-after": RETRY_AFTER_SECONDS} if error.status == 503 else {}
    content = envelope(error.message, error.status, error.code, error.param)
    return JSONResponse(content, error.status, headers={**(headers or {}), **extra})


def install_error_handlers(app: FastAPI) -> None:
    async def polytone_error(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, PolytoneError):
            raise error
        return error_response(error)

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(status, "http_error")
        detail = str(getattr(error, "detail", error))
        return JSONResponse(envelope(detail, status, code), status, headers=getattr(error, "headers", None))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        return JSONResponse(envelope("; ".join(describe(p) for p in problems[:5]), 400, "invalid_request"), 400)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(
            envelope("The server failed at this request; its log says why.", 500, "internal_error"), 500
        )

    app.add_exception_handler(PolytoneError, polytone_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
