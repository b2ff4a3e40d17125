"""Every answer leaves a row, with what its policy allows, and never at the request's expense."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from polytone.contract.digests import digest_text
from polytone.contract.errors import InputError
from polytone.serve.auth.keys import Kind
from polytone.serve.database.session import now, reading
from polytone.serve.database.tables import AnswerRow
from polytone.serve.engine.events import ReplyBuilder, parse_event
from polytone.serve.traffic.content_policy import Policies, Policy
from polytone.serve.traffic.forget import delete_before, find_text
from polytone.serve.traffic.text_hash import text_hasher
from tests.support.serving import HELLO, Server, eventually, serving

pytestmark = pytest.mark.both_databases


async def rows(server: Server) -> list[AnswerRow]:
    await server.services.recorder.flush()
    with reading(server.services.database) as session:
        return list(session.scalars(select(AnswerRow).order_by(AnswerRow.at)))


async def test_an_answer_leaves_a_row_streamed_or_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        whole = (await server.chat("acme", {"x-conversation-id": "c1"}, temperature=0.5)).json()
        streamed = await server.chat("acme", stream=True, user="u1")
        one, other = await rows(server)
        assert (one.id, one.version, one.voice, one.conversation) == (whole["id"], version, "acme", "c1")
        assert (other.conversation, other.completion_tokens) == ("u1", 5)
        assert other.id in streamed.text
        for row in (one, other):
            assert row.prompt == HELLO
            assert row.reply["content"].split() == [version] * 5
            assert (row.status, row.base) == (200, server.base.id)
        assert one.parameters["temperature"] == 0.5
        assert other.first_token_seconds is not None
        assert other.seconds >= other.first_token_seconds


async def test_a_policy_keeps_hashes_or_nothing(tmp_path: Path) -> None:
    policies = Policies(Policy.FULL, {"shy": Policy.HASHED, "mute": Policy.NONE})
    async with serving(tmp_path, policies=policies) as server:
        for voice in ("open", "shy", "mute"):
            await server.voice(voice)
            await server.chat(voice, {"x-conversation-id": "Jo"})
        seen, shy, mute = await rows(server)
        assert seen.prompt is not None
        assert seen.conversation == "Jo"
        for row in (shy, mute):
            assert (row.prompt, row.reply) == (None, None)
            assert row.conversation != "Jo"
            assert row.completion_tokens == 5
        assert shy.prompt_sha256 == seen.prompt_sha256
        assert shy.reply_sha256 is not None
        assert (mute.prompt_sha256, mute.reply_sha256) == (None, None)


async def test_an_answer_that_breaks_off_leaves_what_there_was(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.05) as server:
        await server.voice("acme")
        asked = asyncio.create_task(server.chat("acme", stream=True))
        await eventually(lambda: server.engine.running == 1)
        await asyncio.sleep(0.12)
        server.engine.up = False
        await asked
        (row,) = await rows(server)
        assert row.status == 503
        assert 0 < len(row.reply["content"].split()) < 5


async def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytone.serve.traffic.recorder.FLUSH_SECONDS", 60)
    async with serving(tmp_path, traffic_queue=2) as server:
        await server.voice("acme")
        ids = [(await server.chat("acme")).json()["id"] for _ in range(3)]
        assert "polytone_traffic_dropped_total 1.0" in server.services.metrics.render().decode()
        assert {row.id for row in await rows(server)} == set(ids[:2])


async def test_an_outage_of_the_database_only_delays_the_rows(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        writing = server.services.recorder._write
        failed = 0

        def broken(batch: Any) -> None:
            nonlocal failed
            from sqlalchemy.exc import OperationalError

            failed += 1
            raise OperationalError("INSERT", {}, Exception("gone"))

        server.services.recorder._write = broken  # type: ignore[method-assign]
        await server.chat("acme")
        await eventually(lambda: failed > 0)
        server.services.recorder._write = writing  # type: ignore[method-assign]
        assert len(await rows(server)) == 1


async def test_a_person_is_forgotten_with_what_was_said(tmp_path: Path) -> None:
    async with serving(tmp_path, policies=Policies(Policy.FULL, {"shy": Policy.HASHED})) as server:
        for voice in ("acme", "shy"):
            await server.voice(voice)
        gone = [(await server.chat(v, {"x-conversation-id": "Jo"})).json()["id"] for v in ("acme", "shy")]
        stays = (await server.chat("acme", {"x-conversation-id": "Al"})).json()["id"]
        for completion in (*gone, stays):
            said = {"completion_id": completion, "key": "comment", "text": "Jo lives in Ely"}
            assert (await server.client.post("/v1/feedback", json=said)).status_code == 201
        answer = await server.client.delete("/admin/traffic", params={"conversation_id": "Jo"})
        assert answer.json() == {"deleted": 2}
        assert [row.id for row in await rows(server)] == [stays]
        left = (await server.client.get("/v1/feedback")).json()["feedback"]
        assert [one["completion_id"] for one in left] == [stays]
        audit = (await server.client.get("/admin/audit")).text
        assert '"forget"' in audit
        assert "Jo" not in audit


async def test_a_text_is_found_and_forgotten_by_its_hash(tmp_path: Path) -> None:
    """Hashes were stored for every answer, and nothing ever looked a text up by them."""
    policies = Policies(Policy.FULL, {"shy": Policy.HASHED, "mute": Policy.NONE})
    async with serving(tmp_path, policies=policies) as server:

        async def ask(voice: str, conversation: str | None, *said: str) -> str:
            messages = [{"role": "user", "content": text} for text in said]
            headers = {"x-conversation-id": conversation} if conversation else None
            body = {"model": voice, "messages": messages}
            return str((await server.client.post("/v1/chat/completions", json=body, headers=headers)).json()["id"])

        secret, versions = "My name is Robin.", {}
        for voice in ("open", "shy", "mute"):
            versions[voice] = await server.voice(voice)
        first = [
            await ask("open", "c1", secret),
            await ask("shy", "c2", " My  name is\nRobin. "),
            await ask("shy", None, secret),
        ]
        await ask("open", "c1", secret, "Where is my parcel?")
        stays = [await ask("mute", "c3", secret), await ask("open", "c4", "My name is Kim.")]
        kept = (await server.client.post("/v1/conversations")).json()["id"]
        await server.client.post(f"/v1/conversations/{kept}/turns", json={"role": "user", "content": secret})
        assert len(await rows(server)) == 6
        database = server.services.database
        assert [row.id for row in find_text(database, secret)] == first
        reply = " ".join([versions["open"]] * 5)
        assert stays[1] in {row.id for row in find_text(database, reply)}
        found = (await server.client.post("/admin/traffic/find", json={"text": secret})).json()["answers"]
        assert [one["completion_id"] for one in found] == first
        both = {"params": {"conversation_id": "c1"}, "json": {"text": secret}}
        refusals: tuple[dict[str, Any], ...] = ({}, both, {"json": {"text": " "}})
        for refused in refusals:
            answer = await server.client.request("DELETE", "/admin/traffic", **refused)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        forgotten = await server.client.request("DELETE", "/admin/traffic", json={"text": secret})
        assert forgotten.json() == {"deleted": 4}
        assert {row.id for row in await rows(server)} == set(stays)
        assert (await server.client.get(f"/v1/conversations/{kept}")).status_code == 404
        assert find_text(database, secret) == []
        audit = (await server.client.get("/admin/audit")).text
        assert '"text"' in audit
        assert "Robin" not in audit
        with pytest.raises(InputError, match="is empty"):
            find_text(database, " \n")


async def test_hashes_of_one_database_say_nothing_in_another(tmp_path: Path) -> None:
    """A hash without a key can be tested against a list of guesses."""
    async with (
        serving(tmp_path / "one") as one,
        serving(tmp_path / "other", shared_database=f"sqlite:///{tmp_path}/other.db") as other,
    ):
        hashers = [text_hasher(server.services.database) for server in (one, one, other)]
        hashes = [hasher.hash("My name is Robin.") for hasher in hashers]
        assert hashes[0] == hashes[1] != hashes[2]
        assert digest_text("My name is Robin.") not in hashes


async def test_old_answers_are_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        await server.chat("acme")
        await rows(server)
        assert delete_before(server.services.database, now() - timedelta(days=1)) == 0
        assert delete_before(server.services.database, now() + timedelta(seconds=1)) == 1


async def test_forgetting_needs_an_admin_key(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        inference = server.key(Kind.INFERENCE)
        answer: httpx.Response = await server.client.delete(
            "/admin/traffic", params={"conversation_id": "Jo"}, headers=inference
        )
        assert answer.status_code == 403


def test_tool_calls_are_put_together_from_a_stream() -> None:
    def chunk(delta: str, reason: str = "null") -> str:
        return f'data: {{"id":"x","choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}\n\n'

    events = [
        chunk('{"role":"assistant","content":""}'),
        chunk('{"tool_calls":[{"index":0,"id":"t1","function":{"name":"find","arguments":""}}]}'),
        chunk('{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":"}}]}'),
        chunk('{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}', '"tool_calls"'),
        "data: [DONE]\n\n",
    ]
    reply = ReplyBuilder()
    for event in events:
        reply.add(parse_event(event))
    assert reply.finish_reason == "tool_calls"
    call = {"type": "function", "id": "t1", "function": {"name": "find", "arguments": '{"a":1}'}}
    assert reply.message() == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_a_text_completion_is_a_reply_too() -> None:
    response = {"choices": [{"text": "so it goes", "finish_reason": "length"}]}
    reply = ReplyBuilder()
    reply.add_response(response)
    assert (reply.message(), reply.finish_reason) == ({"role": "assistant", "content": "so it goes"}, "length")


async def test_two_flushes_at_once_write_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytone.serve.traffic.recorder.FLUSH_SECONDS", 60)
    monkeypatch.setattr("polytone.serve.traffic.recorder.BATCH", 2)
    async with serving(tmp_path) as server:
        await server.voice("acme")
        ids = {(await server.chat("acme")).json()["id"] for _ in range(7)}
        await asyncio.gather(*(server.services.recorder.flush() for _ in range(4)))
        assert {row.id for row in await rows(server)} == ids


async def test_one_answer_that_cannot_be_written_takes_no_other_with_it(tmp_path: Path) -> None:
    """A lone surrogate in a name once ended the writer for good."""
    async with serving(tmp_path) as server:
        await server.voice("acme")
        refused = await server.client.post(
            "/v1/chat/completions",
            content=b'{"model":"acme","messages":[{"role":"user","content":"hi"}],"user":"\\ud800"}',
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "user")
        odd = await server.client.post(
            "/v1/chat/completions", content=b'{"model":"acme","messages":[{"role":"user","content":"\\ud800"}]}'
        )
        assert odd.status_code == 200
        good = (await server.chat("acme")).json()["id"]
        assert good in {row.id for row in await rows(server)}
        later = (await server.chat("acme")).json()["id"]
        assert later in {row.id for row in await rows(server)}


async def test_numbers_that_are_no_json_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        body = b'{"model":"acme","messages":[{"role":"user","content":"hi"}],"temperature":NaN}'
        assert (await server.client.post("/v1/chat/completions", content=body)).status_code == 400


async def test_a_private_voice_keeps_no_parameter_that_has_words(tmp_path: Path) -> None:
    async with serving(tmp_path, policies=Policies(Policy.HASHED)) as server:
        await server.voice("acme")
        await server.chat("acme", stop=["Jo"], temperature=0.5)
        (row,) = await rows(server)
        assert row.parameters["temperature"] == 0.5
        assert "Jo" not in str(row.parameters)


async def test_answers_of_too_many_bytes_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytone.serve.traffic.recorder.FLUSH_SECONDS", 60)
    monkeypatch.setattr("polytone.serve.traffic.recorder.MOST_BYTES", 300)
    async with serving(tmp_path) as server:
        await server.voice("acme")
        for _ in range(3):
            await server.chat("acme")
        assert len(await rows(server)) == 1
        assert "polytone_traffic_dropped_total 2.0" in server.services.metrics.render().decode()


async def test_a_body_without_end_is_refused_before_the_key_is_looked_at(tmp_path: Path) -> None:
    async with serving(tmp_path, body_bytes=10_000) as server:
        server.key(Kind.ADMIN)
        refused = await server.client.post("/v1/feedback", content=b'{"text": "' + b"x" * 20_000 + b'"}')
        assert refused.status_code == 413
