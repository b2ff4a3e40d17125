"""POST /v1/chat/completions and /v1/completions: route once, then answer whole or as a stream."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from polytone.contract.adapter import Manifest
from polytone.contract.errors import InputError, PolytoneError, UnavailableError

from .engine import Body, EngineError
from .errors import envelope, error_response
from .runtime import Runtime
from .voices import Route

VERSION_HEADER = "x-polytone-adapter"
CLIENT_LEFT = 499
OTHER = ("other", "other")

Answer = Callable[[Body, str | None], Coroutine[Any, Any, Body | AsyncIterator[str]]]
T = TypeVar("T")


def chat_routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["chat"])

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions; `model` is the base, a voice or a pinned version."""
        return await respond(runtime, request, runtime.engine.chat)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        """OpenAI's text completions; `model` likewise."""
        return await respond(runtime, request, runtime.engine.complete)

    return router


async def respond(runtime: Runtime, request: Request, answer: Answer) -> Response:
    began = time.monotonic()
    try:
        body = await read_body(request)
        if not runtime.engine.healthy():
            raise UnavailableError(
                f"No answers now: {runtime.problem or 'the engine stopped'}.", code="engine_unavailable"
            )
        route = runtime.voices.route(model_of(body))
    except PolytoneError as error:
        runtime.metrics.requests_total.labels(*OTHER, error.status).inc()
        raise
    exchange = Exchange(runtime, route, began)
    headers = {VERSION_HEADER: route.version or route.model}
    try:
        result = await exchange.unless_ended(request, answer(with_defaults(body, route.manifest), route.version))
        if isinstance(result, dict):
            exchange.close(200)
            return JSONResponse(result, headers=headers)
        # The first event comes before the status is sent, so that what fails early is an HTTP error.
        first = await exchange.unless_ended(request, first_event(result))
    except PolytoneError as error:
        exchange.close(error.status)
        return error_response(error, headers)
    except BaseException:
        exchange.close(500)
        raise
    exchange.first_byte()
    return StreamingResponse(exchange.events(first, result), media_type="text/event-stream", headers=headers)


class Exchange:
    """One answer under way: its version is held and it is counted until `close`, which may be called again."""

    def __init__(self, runtime: Runtime, route: Route, began: float) -> None:
        self._metrics = runtime.metrics
        self._route = route
        self._began = began
        self._hold = runtime.voices.answering(route)
        self._hold.__enter__()
        self._metrics.in_flight.inc()
        self._open = True

    @property
    def _labels(self) -> tuple[str, str]:
        version = self._route.version
        return (version.partition("@")[0], version) if version else (self._route.model, self._route.model)

    def first_byte(self) -> None:
        self._metrics.ttft_seconds.labels(*self._labels).observe(time.monotonic() - self._began)

    def close(self, status: int) -> None:
        if not self._open:
            return
        self._open = False
        self._hold.__exit__(None, None, None)
        self._metrics.in_flight.dec()
        self._metrics.requests_total.labels(*self._labels, status).inc()
        self._metrics.request_seconds.labels(*self._labels).observe(time.monotonic() - self._began)

    async def unless_ended(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancel it, and with it the engine's request, when the client leaves or the version goes."""
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(client_left(request))
        ends: set[asyncio.Future[Any]] = {left}
        if self._route.voice is not None:
            ends.add(asyncio.ensure_future(self._route.voice.revoked.wait()))
        try:
            await asyncio.wait({task, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if left.done():
                raise EngineError("The client left.", code="client_left", status=CLIENT_LEFT)
            raise EngineError(f"{self._route.version} was retired meanwhile.", code="version_retired", status=503)
        finally:
            for end in (task, *ends):
                end.cancel()

    async def events(self, first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
        """The stream's events. Whatever ends it, the engine's request ends and the version is let go."""
        status = CLIENT_LEFT
        try:
            yield first
            async for event in rest:
                if self._route.voice is not None and self._route.voice.revoked.is_set():
                    raise EngineError(f"{self._route.version} was retired.", code="version_retired", status=503)
                yield event
            status = 200
        except PolytoneError as error:
            status = error.status
            yield f"data: {json.dumps(envelope(error.message, error.status, error.code, error.param))}\n\n"
        finally:
            await close_stream(rest)
            self.close(status)


async def read_body(request: Request) -> Body:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InputError(f"The request's body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InputError("The request's body must be a JSON object.", code="invalid_json")
    return body


def model_of(body: Body) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InputError(
            "model: name the base, a voice or a pinned version; GET /v1/models lists them.",
            code="invalid_request",
            param="model",
        )
    return model


def with_defaults(body: Body, manifest: Manifest | None) -> Body:
    """The request with the voice's own system prompt and sampling where it gives none."""
    if manifest is None:
        return body
    filled = dict(body)
    sampling = manifest.sampling.model_dump(exclude_none=True) if manifest.sampling else {}
    if "max_completion_tokens" in body:
        sampling.pop("max_tokens", None)
    for key, value in sampling.items():
        if filled.get(key) is None:
            filled[key] = value
    messages = body.get("messages")
    if manifest.system_prompt and isinstance(messages, list):
        roles = [message.get("role") for message in messages if isinstance(message, dict)]
        if not {"system", "developer"} & set(roles):
            filled["messages"] = [{"role": "system", "content": manifest.system_prompt}, *messages]
    return filled


async def first_event(events: AsyncIterator[str]) -> str:
    """The first event of a stream; an error in its place is raised."""
    event = await anext(events)
    try:
        content = json.loads(event.removeprefix("data: "))
    except ValueError:
        return event
    if isinstance(content, dict) and (error := content.get("error")):
        await close_stream(events)
        status = error.get("code") if isinstance(error.get("code"), int) else 500
        code = "invalid_request" if status < 500 else "engine_error"
        raise EngineError(str(error.get("message")), code=code, status=status, param=error.get("param"))
    return event


async def client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def close_stream(events: AsyncIterator[str]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(events, "aclose", None)
    if close is not None:
        await close()
