"""Requests of the pages to the server, and its refusals. Knows nothing of the pages."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from openai import APIError, APIStatusError, AsyncOpenAI

Json = dict[str, Any]

SECONDS = httpx.Timeout(30, read=120)
NO_KEY = "none"  # the client refuses an empty one; a server without keys ignores it


class ApiError(Exception):
    """The server refused, or cannot be reached: its own message, and its `code`."""

    def __init__(self, message: str, code: str = "unreachable", status: int = 0, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.reasons = reasons


@dataclass(frozen=True)
class Server:
    """A Polytone server at `url`, such as http://127.0.0.1:8000."""

    url: str
    _tls: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    def api(self, key: str | None) -> "Api":
        return Api(self, (key or "").strip())


@dataclass(frozen=True)
class Api:
    """The server for the holder of a key. Every method raises ApiError."""

    server: Server
    key: str = field(repr=False)

    async def models(self) -> list[Json]:
        """The base and the voices; a voice has a `parent`."""
        return cast(list[Json], (await self.get("/v1/models"))["data"])

    async def get(self, path: str, **params: Any) -> Json:
        return await self._json("GET", path, params={k: v for k, v in params.items() if v is not None})

    async def post(self, path: str, body: Json | None = None) -> Json:
        return await self._json("POST", path, json=body or {})

    async def put(self, path: str, body: Json) -> Json:
        return await self._json("PUT", path, json=body)

    async def delete(self, path: str, **params: Any) -> Json:
        return await self._json("DELETE", path, params=params)

    async def upload(self, path: str, content: bytes) -> Json:
        return await self._json("POST", path, content=content, headers={"content-type": "application/gzip"})

    async def text(self, path: str, **params: Any) -> str:
        """A body that is not JSON, such as an export."""
        return (await self._ask("GET", path, params={k: v for k, v in params.items() if v is not None})).text

    async def chat(self, request: Json, conversation: str | None = None) -> AsyncIterator[Json]:
        """Stream a chat completion: its chunks as the server sends them, the last one with the usage."""
        headers = {"x-conversation-id": conversation} if conversation else {}
        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with (
                self._openai() as client,
                await client.chat.completions.create(**body, extra_headers=headers) as stream,
            ):
                async for chunk in stream:
                    yield chunk.model_dump(exclude_unset=True)
        except APIStatusError as error:
            raise refusal(error.status_code, error.body) from None
        except APIError as error:  # in the middle of a stream, or no connection
            raise ApiError(error.message, code=error.code or "unreachable") from None

    @asynccontextmanager
    async def _openai(self) -> AsyncIterator[AsyncOpenAI]:
        async with (
            httpx.AsyncClient(verify=self.server._tls, timeout=SECONDS) as connection,
            AsyncOpenAI(
                base_url=f"{self.server.url}/v1", api_key=self.key or NO_KEY, max_retries=0, http_client=connection
            ) as client,
        ):
            yield client

    async def _json(self, method: str, path: str, **sent: Any) -> Json:
        return cast(Json, (await self._ask(method, path, **sent)).json())

    async def _ask(self, method: str, path: str, headers: dict[str, str] | None = None, **sent: Any) -> httpx.Response:
        sent_headers = {**(headers or {}), **({"authorization": f"Bearer {self.key}"} if self.key else {})}
        try:
            async with httpx.AsyncClient(verify=self.server._tls, timeout=SECONDS) as client:
                response = await client.request(method, f"{self.server.url}{path}", headers=sent_headers, **sent)
        except httpx.HTTPError as error:
            raise ApiError(f"The server cannot be reached ({type(error).__name__}).") from None
        if response.status_code >= 400:
            raise refusal(response.status_code, body_of(response))
        return response


def body_of(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def refusal(status: int, body: Any) -> ApiError:
    """The server's error envelope as an exception; the OpenAI client passes only its content."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(error, dict):
        error = {}
    reasons = tuple(map(reason_text, error.get("reasons") or ()))
    message = error.get("message") or error.get("reason") or f"HTTP {status}"  # /readyz gives a reason
    return ApiError(str(message), str(error.get("code") or "http"), status, reasons)


def reason_text(reason: Any) -> str:
    return str(reason.get("message", reason)) if isinstance(reason, dict) else str(reason)
