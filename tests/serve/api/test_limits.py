"""Limits: what is too much is refused with the right status and the time to come back; everyone else is answered."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from polytone.contract.errors import InputError, LimitError
from polytone.serve.api.chat_request import CHAT_FIELDS, check_fields
from polytone.serve.auth.keys import Key, Kind
from polytone.serve.auth.rate_limits import Admission, Window
from polytone.serve.limits import RequestLimits
from polytone.serve.logs import JsonLines, TextLines
from tests.support.serving import LOCAL, eventually, serving


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(**limits: Any) -> Key:
    return Key("k1", "bot", Kind.INFERENCE, **limits)


def test_a_window_forgets_after_a_minute_and_says_when() -> None:
    window = Window()
    window.add(3, 100.2)
    window.add(2, 130.0)
    assert window.used(159.0) == 5
    assert 60 <= window.seconds_until(3, 5, 100.2) <= 62
    assert window.used(160.5) == 2
    assert window.seconds_until(1, 5, 160.5) == 0
    assert window.used(200.0) == 0


def test_requests_and_tokens_of_a_key_are_limited_and_come_back() -> None:
    clock = Clock()
    admission = Admission(100, clock)
    bot = key(requests_per_minute=2, tokens_per_minute=100)
    for _ in range(2):
        admission.enter(bot)
        admission.leave(bot, 10)
    with pytest.raises(LimitError) as caught:
        admission.enter(bot)
    assert caught.value.code == "requests_per_minute"
    assert 59 <= caught.value.retry_after <= 62
    assert admission.headers(bot)["x-ratelimit-remaining-requests"] == "0"
    assert admission.headers(bot)["x-ratelimit-remaining-tokens"] == "80"
    clock.now += caught.value.retry_after
    admission.enter(bot)
    admission.leave(bot, 500)
    with pytest.raises(LimitError) as caught:
        admission.enter(bot)
    assert caught.value.code == "tokens_per_minute"
    assert admission.at_once == 0


def test_at_once_is_limited_for_a_key_and_in_all() -> None:
    admission = Admission(2)
    bot = key(concurrent_requests=1)
    admission.enter(bot)
    with pytest.raises(LimitError, match="may have 1"):
        admission.enter(bot)
    admission.enter(None)
    with pytest.raises(LimitError) as caught:
        admission.enter(None)
    assert caught.value.code == "overloaded"
    admission.leave(bot, 0)
    admission.enter(bot)


async def test_a_crowd_is_answered_or_told_when_to_come_back(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.01, at_once=10) as server:
        answers = await asyncio.gather(*(server.chat("tiny", stream=True) for _ in range(60)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(answers) - len(refused) >= 10
        assert refused
        for answer in refused:
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
        for answer in answers:
            assert answer.status_code == 429 or "[DONE]" in answer.text
        assert server.services.admission.at_once == len(server.services.inflight) == 0
        assert 'polytone_rejected_total{reason="overloaded"}' in (await server.client.get("/metrics")).text


@pytest.mark.both_databases
async def test_a_streams_tokens_count_and_its_usage_is_shown_only_if_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        bot = server.key(Kind.INFERENCE, tokens_per_minute=11)
        hidden = await server.chat("tiny", headers=bot, stream=True)
        assert '"usage"' not in hidden.text
        assert hidden.headers["x-ratelimit-limit-tokens"] == "11"
        shown = await server.chat("tiny", headers=bot, stream=True, stream_options={"include_usage": True})
        assert '"usage":{' in shown.text
        refused = await server.chat("tiny", headers=bot)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tokens_per_minute")
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"max_tokens": 201}, 400, "invalid_request", "max_tokens"),
        ({"n": 5}, 400, "invalid_request", "n"),
        ({"messages": [{"role": "user", "content": "x"}] * 21}, 413, "too_many_messages", "messages"),
        ({"audio": {"voice": "x"}}, 400, "unsupported_field", "audio"),
        ({"request_id": "mine"}, 400, "unsupported_field", "request_id"),
        ({"chat_template": "{{ 7 }}"}, 400, "unsupported_field", "chat_template"),
    ],
)
async def test_requests_beyond_the_limits_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    async with serving(tmp_path) as server:
        response = await server.chat("tiny", **change)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, param)


def test_tools_without_a_parser_are_refused_by_the_setting_that_is_missing() -> None:
    limits = RequestLimits(messages=20, output_tokens=200, choices=4, tools=False)
    body = {"model": "tiny", "messages": [], "tools": [{"type": "function", "function": {"name": "find"}}]}
    with pytest.raises(InputError, match="POLYTONE_TOOL_PARSER") as refused:
        check_fields(body, CHAT_FIELDS, limits)
    assert (refused.value.code, refused.value.param) == ("invalid_request", "tools")
    assert check_fields({**body, "tool_choice": "none"}, CHAT_FIELDS, limits) == "tiny"


def test_store_is_refused_with_the_reason() -> None:
    limits = RequestLimits(messages=20, output_tokens=200, choices=4)
    with pytest.raises(InputError, match="content policy") as refused:
        check_fields({"model": "tiny", "store": True}, CHAT_FIELDS, limits)
    assert (refused.value.code, refused.value.param) == ("unsupported_field", "store")


async def test_a_body_too_large_is_refused_announced_or_not(tmp_path: Path) -> None:
    async with serving(tmp_path, body_bytes=1000) as server:

        async def chunks() -> Any:
            for _ in range(100):
                yield b"x" * 100

        for path in ("/v1/chat/completions", "/v1/feedback"):
            for content in (b"x" * 2000, chunks()):
                response = await server.client.post(path, content=content)
                assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert 'polytone_rejected_total{reason="body_too_large"} 2.0' in (await server.client.get("/metrics")).text


async def test_the_key_is_asked_for_before_the_body_is_read(tmp_path: Path) -> None:
    """A stranger's upload costs nothing."""
    async with serving(tmp_path, body_bytes=1000) as server:
        server.key(Kind.ADMIN)

        chunks_read = 0

        async def chunks() -> Any:
            nonlocal chunks_read
            chunks_read += 1
            yield b"x"

        for path in ("/v1/chat/completions", "/admin/adapters/acme/versions"):
            response = await server.client.post(path, content=chunks())
            assert (response.status_code, response.json()["error"]["code"]) == (401, "key_missing")
        assert chunks_read == 0


async def test_an_answer_that_takes_too_long_ends_with_an_error(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.2, answer_seconds=0.3) as server:
        stream = await server.chat("tiny", stream=True)
        assert "deadline_exceeded" in stream.text
        assert "[DONE]" not in stream.text
        await eventually(lambda: server.engine.running == 0)


async def test_answers_carry_an_id_and_safe_headers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        response = await server.chat("tiny", headers={"x-request-id": "ticket-7"})
        assert response.headers["x-request-id"] == "ticket-7"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"
        assert (await server.chat("tiny", headers={"x-request-id": "a b\n"})).headers["x-request-id"].startswith("req-")


async def test_the_log_has_who_and_what_and_never_a_word_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as server:
        bot = server.key(Kind.INFERENCE, "bot")
        with caplog.at_level("INFO"):
            await server.chat("tiny", headers={"x-request-id": "ticket-8", **bot}, user="secret-user")
        record = next(record for record in caplog.records if record.name == "polytone.requests")
        line = json.loads(JsonLines().format(record))
        assert (line["key"], line["version"], line["status"]) == ("bot", "tiny", 200)
        for formatter in (JsonLines(), TextLines()):
            for record in caplog.records:
                text = formatter.format(record)
                assert "Hello" not in text
                assert "secret-user" not in text
                assert bot["authorization"] not in text


async def test_pages_from_elsewhere_may_not_call_unless_listed(tmp_path: Path) -> None:
    async with serving(tmp_path, origins=("https://desk.example",)) as server:
        evil = await server.chat("tiny", headers={"origin": "https://evil.example"})
        assert (evil.status_code, evil.json()["error"]["code"]) == (403, "origin_not_allowed")
        own = await server.chat("tiny", headers={"origin": LOCAL})
        assert own.status_code == 200
        listed = await server.chat("tiny", headers={"origin": "https://desk.example"})
        assert listed.headers["access-control-allow-origin"] == "https://desk.example"
        assert listed.headers["access-control-expose-headers"] == "x-request-id, x-polytone-adapter"


async def test_openais_client_may_call_from_a_page_that_is_listed(tmp_path: Path) -> None:
    """Its own headers are asked for in the preflight; a list of ours that lacked them stopped it in browsers."""
    headers = "authorization,content-type,x-conversation-id,x-stainless-lang,x-stainless-retry-count"
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": headers}
    async with serving(tmp_path, origins=("https://desk.example",)) as server:

        async def asked(origin: str) -> Any:
            return await server.client.options("/v1/chat/completions", headers={"origin": origin, **preflight})

        listed = await asked("https://desk.example")
        assert (listed.status_code, listed.headers["access-control-allow-headers"]) == (200, headers)
        assert listed.headers["access-control-allow-origin"] == "https://desk.example"
        assert "POST" in listed.headers["access-control-allow-methods"]
        evil = await asked("https://evil.example")
        assert (evil.status_code, evil.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in evil.headers


async def test_without_keys_only_a_loopback_name_is_served(tmp_path: Path) -> None:
    """A page whose name points at 127.0.0.1 is same-origin with itself, and still not this machine."""
    async with serving(tmp_path) as server:
        rebound = await server.chat("tiny", headers={"host": "evil.example:8000"})
        assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host_not_allowed")
        for host in ("localhost:8000", "[::1]:8000", "127.0.0.1"):
            assert (await server.chat("tiny", headers={"host": host})).status_code == 200
        bot = server.key(Kind.INFERENCE)
        assert (await server.chat("tiny", headers={"host": "api.example", **bot})).status_code == 200
