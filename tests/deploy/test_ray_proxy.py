"""What a client of a cluster reads when Ray's proxy, and not Polytone, is the one that answers."""

from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

pytest.importorskip("ray.serve", reason="no Ray: make .venv/.cluster", exc_type=ImportError)

from deploy.ray_proxy import ProperErrors

PLAIN = [(b"content-type", b"text/plain")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]


class Proxy:
    """Ray's proxy as far as a client sees it: it passes on what the replica said until it died."""

    def __init__(self, *messages: Message) -> None:
        self.messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self.messages:
            await send(message)


def start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(text: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


async def answer(*messages: Message, path: str = "/v1/chat/completions") -> httpx.Response:
    transport = httpx.ASGITransport(ProperErrors(Proxy(*messages)))
    async with httpx.AsyncClient(transport=transport, base_url="http://cluster") as client:
        return await client.post(path)


async def test_a_replica_that_died_before_it_answered_is_told_as_503() -> None:
    said = await answer()
    assert (said.status_code, said.json()["error"]["code"]) == (503, "replica_lost")
    assert said.headers["retry-after"]


async def test_a_stream_that_broke_off_ends_with_the_error() -> None:
    said = await answer(start(200, EVENTS), body(b'data: {"a": 1}\n\n', more=True))
    first, last, rest = said.text.split("\n\n")
    assert (first, rest) == ('data: {"a": 1}', "")
    assert '"code": "replica_lost"' in last
    assert "[DONE]" not in said.text


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [(500, 503, "replica_lost"), (503, 503, "no_replica"), (408, 503, "no_replica"), (404, 404, "route_not_found")],
)
async def test_the_proxys_own_words_are_replaced(status: int, told: int, code: str) -> None:
    said = await answer(start(status, PLAIN), body(b"Internal: actor 0x12 died at /tmp/x"))
    assert (said.status_code, said.json()["error"]["code"]) == (told, code)
    assert "actor" not in said.text


@pytest.mark.parametrize(
    "messages",
    [
        (start(200, EVENTS), body(b"data: [DONE]\n\n", more=True), body(b"")),
        (start(404, JSON), body(b'{"error": {"code": "model_not_found"}}')),
        (start(200, PLAIN), body(b"polytone_engine_up 1\n")),
    ],
)
async def test_what_polytone_said_is_left_alone(messages: tuple[Any, ...]) -> None:
    said = await answer(*messages)
    assert said.status_code == messages[0]["status"]
    assert said.content == b"".join(message["body"] for message in messages[1:])


async def test_rays_own_health_route_is_left_alone() -> None:
    said = await answer(start(503, PLAIN), body(b"This node is being drained."), path="/-/healthz")
    assert said.text == "This node is being drained."
