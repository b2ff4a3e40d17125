"""POST /v1/chat/completions and /v1/completions: route once, then answer whole or as a stream."""

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from polytone.contract.errors import DeniedError, InputError, PolytoneError, UnavailableError
from polytone.contract.version_id import voice_of
from polytone.serve.auth.keys import Key, Kind
from polytone.serve.engine.base import Body, EngineError
from polytone.serve.services import Services

from .chat_request import CHAT_FIELDS, COMPLETION_FIELDS, check_fields, complete_request, parse_body
from .errors import error_response, for_stream
from .inflight import InflightRequest, close_stream, engine_gone
from .openapi import CHAT, COMPLETION
from .request_body import read_body

VERSION_HEADER = "x-polytone-adapter"
CONVERSATION_HEADER = "x-conversation-id"
OTHER = ("other", "other")
LONGEST_CONVERSATION_ID = 128

Answer = Callable[[Body, str | None], Coroutine[Any, Any, Body | AsyncIterator[str]]]


def chat_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["chat"])

    @router.post("/chat/completions", response_model=None, openapi_extra=CHAT)
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions; `model` is the base, a voice or a pinned version."""
        return await respond(services, request, services.engine.chat, CHAT_FIELDS)

    @router.post("/completions", response_model=None, openapi_extra=COMPLETION)
    async def completions(request: Request) -> Response:
        """OpenAI's text completions; `model` likewise."""
        return await respond(services, request, services.engine.complete, COMPLETION_FIELDS)

    return router


async def respond(services: Services, request: Request, answer: Answer, fields: frozenset[str]) -> Response:
    key: Key | None = None
    try:
        key = services.keyring.authenticate(request.headers.get("authorization"), Kind.INFERENCE)
        request.state.key = key.name if key else None
        raw = await read_body(request, services.limits.body_bytes)
        body = parse_body(raw)
        model = check_fields(body, fields, services.limits.request)
        if key is not None and not key.allows(model, voice_of(model)):
            raise DeniedError(f"The key {key.name} may not use {model}.", code="model_not_allowed", status=403)
        if not services.engine.healthy():
            raise UnavailableError(
                f"No answers now: {services.status.problem or 'the engine stopped'}.", code="engine_unavailable"
            )
        conversation = conversation_of(request, body)
        route = services.adapters.route(model, sticky_by(conversation, key))
        services.admission.enter(key)
    except PolytoneError as error:
        services.metrics.requests_total.labels(*OTHER, error.status).inc()
        services.metrics.rejected_total.labels(error.code).inc()
        error.headers = services.admission.headers(key)
        raise
    request.state.answered_by = route.version or route.model
    return await answer_inflight(InflightRequest(services, route, key, request, conversation, len(raw)), body, answer)


async def answer_inflight(inflight: InflightRequest, body: Body, answer: Answer) -> Response:
    """Answer within the exchange: it is closed here, or by the stream that is returned."""
    headers = {VERSION_HEADER: inflight.route.version or inflight.route.model, **inflight.limit_headers()}
    try:
        await inflight.acquire()
        asked = complete_request(body, inflight.route.manifest, inflight.limits)
        wants_usage = ask_for_usage(asked)
        result = await inflight.run_or_abort(answer(asked, inflight.route.version))
        if isinstance(result, dict):
            await inflight.proven()
            inflight.count_usage(result.get("usage"))
            inflight.capture(asked, result)
            inflight.close(200)
            return JSONResponse(result, headers=headers)
        # The first event comes before the status is sent, so that what fails early is an HTTP error.
        first = await inflight.run_or_abort(first_event(result))
        try:
            await inflight.proven()
        except BaseException:
            await close_stream(result)
            raise
    except PolytoneError as error:
        inflight.close(error.status)
        return error_response(error, headers)
    except BaseException:
        inflight.close(500)
        raise
    inflight.first_byte()
    events = [first]
    inflight.capture(asked, events)
    return EventStream(inflight, events, result, wants_usage, headers)


class EventStream(StreamingResponse):
    """Server-sent events. Whatever ends it, the engine's request ends and the version is let go."""

    def __init__(
        self,
        inflight: InflightRequest,
        events: list[str],
        rest: AsyncIterator[str],
        wants_usage: bool,
        headers: dict[str, str],
    ) -> None:
        """`events` has the first one; the others are added to it as they come."""
        super().__init__(self._stream(events), media_type="text/event-stream", headers=headers)
        self._exchange = inflight
        self._rest = rest
        self._wants_usage = wants_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await close_stream(self._rest)
            self._exchange.close()

    async def _stream(self, events: list[str]) -> AsyncIterator[str]:
        inflight = self._exchange
        try:
            yield events[0]
            while (event := await inflight.next_event(self._rest)) is not None:
                if event.startswith('data: {"error"'):
                    raise error_of(event, inflight.engine_lives())
                if '"usage":{' in event and '"choices":[]' in event:
                    inflight.count_usage(json.loads(event.removeprefix("data: "))["usage"])
                    if not self._wants_usage:
                        continue
                events.append(event)
                yield event
            inflight.close(200)
        except PolytoneError as error:
            inflight.close(error.status)
            yield for_stream(error)


def conversation_of(request: Request, body: Body) -> str | None:
    """What names the conversation: its id, else the user; else the answer stands alone."""
    named = request.headers.get(CONVERSATION_HEADER) or body.get("user")
    if not isinstance(named, str) or not named:
        return None
    if not named.isprintable():  # control characters and lone surrogates, which no database takes
        raise InputError(
            "user and x-conversation-id: only printable characters, please.", code="invalid_request", param="user"
        )
    return named[:LONGEST_CONVERSATION_ID]


def sticky_by(conversation: str | None, key: Key | None) -> str | None:
    """What keeps a conversation on one version: what names it, else the key."""
    if conversation is not None:
        return f"{key.id if key else ''}/{conversation}"
    return key.id if key else None


def ask_for_usage(body: Body) -> bool:
    """Have the engine end a stream with its usage; returns whether the client asked for that."""
    options = body.get("stream_options")
    if not body.get("stream") or (options is not None and not isinstance(options, dict)):
        return True  # nothing to hide, or something for the engine to refuse
    wanted = bool((options or {}).get("include_usage"))
    body["stream_options"] = {**(options or {}), "include_usage": True}
    return wanted


async def first_event(events: AsyncIterator[str]) -> str:
    """The first event of a stream; an error in its place is raised."""
    event = await anext(events)
    if event.startswith('data: {"error"'):
        await close_stream(events)
        raise error_of(event, engine_lives=True)
    return event


def error_of(event: str, engine_lives: bool) -> EngineError:
    """An error event of the engine as ours."""
    error = json.loads(event.removeprefix("data: "))["error"]
    status = error["code"] if isinstance(error.get("code"), int) else 500
    if status >= 500 and not engine_lives:
        return engine_gone()
    code = "invalid_request" if status < 500 else "engine_error"
    return EngineError(str(error.get("message")), code=code, status=status, param=error.get("param"))
