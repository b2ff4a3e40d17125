"""Errors as HTTP responses: OpenAI's envelope with a code that programs can act on."""

import json
import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Route

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
    all_headers = {**error.headers, **(headers or {})}
    if isinstance(error, LimitError):
        all_headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif error.status == 503:
        all_headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    elif error.status == 401:
        all_headers["www-authenticate"] = "Bearer"
    content = envelope(error.message, error.status, error.code, error.param)
    if error.reasons:
        content["error"]["reasons"] = list(error.reasons)
    return JSONResponse(content, error.status, headers=all_headers)


def for_stream(error: PolytoneError) -> str:
    """The error as a server-sent event, where the status is already gone."""
    return f"data: {json.dumps(envelope(error.message, error.status, error.code, error.param))}\n\n"


def no_route(app: FastAPI, path: str) -> str:
    """Names the resources beside it: /v1/models for /v1/embeddings, /admin/keys for /admin/users."""
    paths = [route.path for route in app.routes if isinstance(route, Route) and "{" not in route.path]
    beside = sorted({other for other in paths if other.split("/")[1] == path.split("/")[1]})
    return f"There is no route {path[:200]}. There are {', '.join(beside or sorted(set(paths)))}; see docs/http.md."


def why_not_read(request: Request) -> str:
    content_type = request.headers.get("content-type")
    return f"its content-type is {content_type[:100]}" if content_type else "it came without a content-type"


def install_error_handlers(app: FastAPI) -> None:
    async def polytone_error(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, PolytoneError):
            raise error
        return error_response(error)

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        code = {404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(status, "http_error")
        headers = getattr(error, "headers", None) or {}
        if status == 404:
            message = no_route(app, request.url.path)
        elif status == 405:
            message = f"{request.url.path} does not take {request.method}. It takes {headers.get('Allow', 'others')}."
        else:
            message = str(getattr(error, "detail", error))
        return JSONResponse(envelope(message, status, code), status, headers=headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        first = problems[0]["loc"] if problems else ()
        if isinstance(getattr(error, "body", None), bytes):
            message = f"The body was not read as JSON: {why_not_read(request)}. Send content-type: application/json."
        else:
            message = describe_problems(problems[:5])
        return JSONResponse(envelope(message, 400, "invalid_request", str(first[-1]) if first else None), 400)

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
