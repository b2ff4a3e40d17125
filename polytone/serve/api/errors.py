"""One place that renders errors: OpenAI's envelope with a code a program can act on."""

import json
import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from polytone.contract.errors import LimitError, PolytoneError
from polytone.contract.models import describe_problems

log = logging.getLogger(__name__)

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
RETRY_AFTER_SECONDS = 5


def envelope(message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: PolytoneError, headers: dict[str, str] | None = None) -> JSONResponse:
    said = {**error.headers, **(headers or {})}
    if isinstance(error, LimitError):
        said["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif error.status == 503:
        said["retry-after"] = str(RETRY_AFTER_SECONDS)
    elif error.status == 401:
        said["www-authenticate"] = "Bearer"
    content = envelope(error.message, error.status, error.code, error.param)
    if error.reasons:
        content["error"]["reasons"] = list(error.reasons)
    return JSONResponse(content, error.status, headers=said)


def for_stream(error: PolytoneError) -> str:
    """The error as a server-sent event, where the status is already gone."""
    return f"data: {json.dumps(envelope(error.message, error.status, error.code, error.param))}\n\n"


def install_error_handlers(app: FastAPI) -> None:
    async def polytone_error(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, PolytoneError):
            raise error
        return error_response(error)

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        code = {404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(status, "http_error")
        detail = str(getattr(error, "detail", error))
        return JSONResponse(envelope(detail, status, code), status, headers=getattr(error, "headers", None))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        first = problems[0]["loc"] if problems else ()
        return JSONResponse(
            envelope(describe_problems(problems[:5]), 400, "invalid_request", str(first[-1]) if first else None),
            400,
        )

    async def database_gone(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s: the database cannot be reached: %s", request.method, request.url.path, type(error).__name__)
        return JSONResponse(
            envelope("The database cannot be reached. Nothing was changed.", 503, "database_unavailable"),
            503,
            headers={"retry-after": str(RETRY_AFTER_SECONDS)},
        )

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(
            envelope("The server failed at this request; its log says why.", 500, "internal_error"), 500
        )

    app.add_exception_handler(PolytoneError, polytone_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(SQLAlchemyError, database_gone)
    app.add_exception_handler(Exception, unexpected)
