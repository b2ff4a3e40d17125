"""POST /v1/chat/completions and /v1/completions, and the reasons for which a request is refused."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from polytone.contract.errors import DeniedError, InputError, NotFoundError, PolytoneError, UnavailableError
from polytone.contract.version_id import voice_of
from polytone.serve.auth.keys import Key, Kind
from polytone.serve.engine.base import Body
from polytone.serve.services import Services

from .chat_request import CHAT_FIELDS, COMPLETION_FIELDS, check_fields, parse_body
from .inflight import InflightRequest, answer
from .models import missing_model
from .request_body import read_body

CONVERSATION_HEADER = "x-conversation-id"
OTHER = ("other", "other")
LONGEST_CONVERSATION_ID = 128


def chat_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["chat"])

    @router.post("/chat/completions", response_model=None)
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions; `model` is the base, a voice or a pinned version."""
        return await answer(*await admit(services, request, CHAT_FIELDS), services.engine.chat)

    @router.post("/completions", response_model=None)
    async def completions(request: Request) -> Response:
        """OpenAI's text completions; `model` likewise."""
        return await answer(*await admit(services, request, COMPLETION_FIELDS), services.engine.complete)

    return router


async def admit(services: Services, request: Request, fields: frozenset[str]) -> tuple[InflightRequest, Body]:
    """Authenticate, validate, route and admit a request to the engine; a refusal is counted by its code."""
    key: Key | None = None
    try:
        key = services.keyring.authenticate(request.headers.get("authorization"), Kind.INFERENCE)
        request.state.key = key.name if key else None
        raw = await read_body(request)
        body = parse_body(raw)
        model = check_fields(body, fields, services.limits.request)
        if key is not None and not key.allows(model, voice_of(model)):
            raise DeniedError(f"The key {key.name} may not use {model}.", code="model_not_allowed", status=403)
        if not services.engine.healthy():
            raise UnavailableError(
                f"No answers now: {services.status.problem or 'the engine stopped'}.", code="engine_unavailable"
            )
        conversation = conversation_of(request, body)
        try:
            route = services.adapters.route(model, sticky_by(conversation, key))
        except NotFoundError:
            raise await missing_model(services, model, key) from None
        services.admission.enter(key)
    except PolytoneError as error:
        services.metrics.requests_total.labels(*OTHER, error.status).inc()
        services.metrics.rejected_total.labels(error.code).inc()
        error.headers = services.admission.headers(key)
        raise
    request.state.answered_by = route.version or route.model
    return InflightRequest(services, request, route, key, conversation, body_bytes=len(raw)), body


def conversation_of(request: Request, body: Body) -> str | None:
    """The conversation's name: its id, else the user; None for a single answer."""
    name = request.headers.get(CONVERSATION_HEADER) or body.get("user")
    if not isinstance(name, str) or not name:
        return None
    if not name.isprintable():  # control characters and lone surrogates, which no database takes
        raise InputError(
            "user and x-conversation-id: only printable characters are accepted.", code="invalid_request", param="user"
        )
    return name[:LONGEST_CONVERSATION_ID]


def sticky_by(conversation: str | None, key: Key | None) -> str | None:
    """The text that keeps a conversation on one version: its name, else the key's id."""
    if conversation is not None:
        return f"{key.id if key else ''}/{conversation}"
    return key.id if key else None
