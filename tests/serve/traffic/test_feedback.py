"""Feedback: taken once, on disk before its 201, never refused for being early."""

import asyncio
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from polytone.serve.auth.keys import Kind
from polytone.serve.database.session import reading
from polytone.serve.database.tables import FeedbackRow
from polytone.serve.traffic.capture import CompletionRef
from polytone.serve.traffic.content_policy import Policies, Policy
from polytone.serve.traffic.feedback import FeedbackStore
from polytone.serve.traffic.schemas import Annotator, FeedbackBody
from tests.support.serving import Server, eventually, serving

pytestmark = pytest.mark.both_databases


async def give(server: Server, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return await server.client.post("/v1/feedback", json=body, headers=headers)


async def answered(server: Server, voice: str = "acme", **more: Any) -> str:
    return str((await server.chat(voice, **more)).json()["id"])


async def test_a_thumb_is_stored_with_the_version_that_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        completion = await answered(server)
        given = await give(server, completion_id=completion, key="thumb", value="down", annotator={"id": "ann"})
        assert given.status_code == 201
        listed = (await server.client.get("/v1/feedback", params={"adapter": "acme"})).json()
        assert listed == {"feedback": [given.json()], "next": None}
        assert given.json()["version"] == version
        counted = f'polytone_feedback_total{{adapter="acme",key="thumb",value="down",version="{version}"}} 1.0'
        assert counted in server.services.metrics.render().decode()


async def test_feedback_in_the_middle_of_a_stream_is_taken(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.05) as server:
        await server.voice("acme")
        stream = asyncio.create_task(server.chat("acme", stream=True))
        await eventually(lambda: bool(server.services.recorder._pending))
        completion = next(iter(server.services.recorder._pending))
        assert (await give(server, completion_id=completion, key="thumb", value="up")).status_code == 201
        await stream


async def test_the_same_feedback_twice_is_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        body: dict[str, Any] = {
            "completion_id": await answered(server),
            "key": "rating",
            "value": 4,
            "idempotency_key": "k1",
        }
        answers = await asyncio.gather(*(give(server, **body) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["id"] for answer in answers}) == 1
        other = await give(server, **{**body, "value": 2})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
        with reading(server.services.database) as session:
            assert len(session.scalars(select(FeedbackRow)).all()) == 1


async def test_a_feedback_is_superseded_once_by_its_annotator(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        completion, ann = await answered(server), {"id": "ann"}
        first = (await give(server, completion_id=completion, key="thumb", value="up", annotator=ann)).json()["id"]
        change = {"completion_id": completion, "key": "thumb", "value": "down", "supersedes": first}
        assert (await give(server, **change, annotator={"id": "bob"})).status_code == 404
        assert (await give(server, **change, annotator=ann)).status_code == 201
        again = await give(server, **change, annotator=ann)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "already_superseded")
        other = await give(server, **{**change, "key": "comment", "text": "x", "value": None}, annotator=ann)
        assert other.status_code == 400


async def test_a_retraction_names_what_it_retracts(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        given = (await give(server, completion_id=await answered(server), key="thumb", value="up")).json()
        gone = await give(server, key="retract", supersedes=given["id"])
        assert gone.status_code == 201
        assert gone.json()["completion_id"] == given["completion_id"]
        assert (await give(server, key="retract")).status_code == 400
        assert (await give(server, key="retract", supersedes="fb-none")).status_code == 404


async def test_a_vote_keeps_how_it_was_shown(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        pair = {"a": await answered(server), "b": await answered(server), "shown": "b", "blind": True}
        vote = await give(server, pair=pair, key="preference", value="both_bad")
        assert vote.status_code == 201
        assert vote.json()["pair"] == pair
        assert vote.json()["value"] == "both_bad"
        assert (await give(server, pair={**pair, "b": "nope"}, key="preference", value="a")).status_code == 404


async def test_a_conversation_can_be_rated(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        await server.chat("acme", {"x-conversation-id": "c1"})
        assert (await give(server, conversation_id="c1", key="rating", value=5)).status_code == 201
        assert (await give(server, conversation_id="c2", key="rating", value=5)).status_code == 404


BAD = [
    {"key": "thumb", "value": "sideways"},
    {"key": "rating", "value": 6},
    {"key": "rating", "value": "five"},
    {"key": "tag"},
    {"key": "comment", "text": "  "},
    {"key": "correction"},
    {"key": "preference", "value": "a"},
    {"key": "applause", "value": "up"},
    {"key": "thumb", "value": "up", "mood": "good"},
]


@pytest.mark.parametrize("body", BAD, ids=json.dumps)
async def test_nonsense_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        refused = await give(server, completion_id=await answered(server), **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")


async def test_unknown_answers_and_long_texts_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        unknown = await give(server, completion_id="chatcmpl-none", key="thumb", value="up")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "completion_not_found")
        long = await give(server, completion_id=await answered(server), key="comment", text="x" * 20_001)
        assert (long.status_code, long.json()["error"]["code"]) == (413, "text_too_long")


async def test_a_key_sees_its_own_voices_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for voice in ("acme", "zest"):
            await server.voice(voice)
        both = server.key(Kind.INFERENCE, "both")
        only = server.key(Kind.INFERENCE, "only", adapters=frozenset({"acme"}))
        mine = (await server.chat("acme", both)).json()["id"]
        theirs = (await server.chat("zest", both)).json()["id"]
        assert (await give(server, only, completion_id=theirs, key="thumb", value="up")).status_code == 404
        given = await give(server, only, completion_id=mine, key="thumb", value="up")
        assert given.json()["annotator"] == {"id": "only", "kind": "code"}
        await give(server, both, completion_id=theirs, key="thumb", value="up")
        seen = (await server.client.get("/v1/feedback", headers=only)).json()["feedback"]
        assert [one["completion_id"] for one in seen] == [mine]
        assert (await server.client.get("/v1/feedback")).status_code == 401


async def test_pages_follow_each_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        completion = await answered(server)
        ids = [(await give(server, completion_id=completion, key="tag", value=f"t{i}")).json()["id"] for i in range(5)]
        seen: list[str] = []
        cursor: int | None = 0
        while cursor is not None:
            page = (await server.client.get("/v1/feedback", params={"limit": 2, "cursor": cursor})).json()
            seen += [one["id"] for one in page["feedback"]]
            cursor = page["next"]
        assert seen == ids


async def test_who_follows_the_pages_while_others_write_misses_nothing(tmp_path: Path) -> None:
    """On PostgreSQL a row could come into sight after one with a higher number, and was on nobody's next page."""
    async with serving(tmp_path) as server:
        store, known = FeedbackStore(server.services.database), CompletionRef("acme", await server.voice("acme"))
        completion = await answered(server)

        def write(who: int) -> None:
            for number in range(25):
                body = FeedbackBody(key="tag", completion_id=completion, value=f"{who}-{number}")
                store.give(body, known, Annotator(id=str(who)))

        writers = [asyncio.create_task(asyncio.to_thread(write, who)) for who in range(4)]
        seen: list[Any] = []
        rows: list[FeedbackRow] = []
        last = 0
        while rows or not all(writer.done() for writer in writers):
            rows, _ = await asyncio.to_thread(store.page, after=last)
            seen += [row.value for row in rows]
            last = rows[-1].number if rows else last
        rows, _ = await asyncio.to_thread(store.page, after=last)
        seen += [row.value for row in rows]
        await asyncio.gather(*writers)
        assert sorted(seen) == sorted(f"{who}-{number}" for who in range(4) for number in range(25))


async def test_a_used_idempotency_key_shows_and_retracts_nothing(tmp_path: Path) -> None:
    """A retraction with a key that was used before once answered with the other feedback, text and all."""
    async with serving(tmp_path) as server:
        await server.voice("acme")
        completion = await answered(server)
        thumb = (await give(server, completion_id=completion, key="thumb", value="up")).json()["id"]
        await give(server, completion_id=completion, key="comment", text="secret", idempotency_key="1")
        again = await give(server, key="retract", supersedes=thumb, idempotency_key="1")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_conflict")
        assert "secret" not in again.text
        for _ in range(2):
            assert (await give(server, key="retract", supersedes=thumb, idempotency_key="2")).status_code == 201


async def test_a_key_retracts_nothing_of_other_voices(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("zest")
        both = server.key(Kind.INFERENCE, "both")
        only = server.key(Kind.INFERENCE, "only", adapters=frozenset({"acme"}))
        theirs, kim = (await server.chat("zest", both)).json()["id"], {"id": "kim"}
        body = {"completion_id": theirs, "key": "comment", "text": "x", "annotator": kim, "idempotency_key": "1"}
        given = (await give(server, both, **body)).json()["id"]
        assert (await give(server, only, key="retract", supersedes=given, annotator=kim)).status_code == 404


async def test_moments_of_any_zone_are_understood(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        await give(server, completion_id=await answered(server), key="thumb", value="up")
        zone = timezone(timedelta(hours=5))
        for ago, count in ((timedelta(minutes=5), 1), (-timedelta(minutes=5), 0)):
            since = (datetime.now(zone) - ago).isoformat()
            found = (await server.client.get("/v1/feedback", params={"since": since})).json()["feedback"]
            assert len(found) == count


async def test_a_private_conversation_is_not_named_by_feedback_either(tmp_path: Path) -> None:
    async with serving(tmp_path, policies=Policies(Policy.HASHED)) as server:
        await server.voice("acme")
        await server.chat("acme", {"x-conversation-id": "Jo"})
        for _ in range(2):  # from memory, then from its row
            given = await give(server, conversation_id="Jo", key="rating", value=5, idempotency_key="k")
            assert given.status_code == 201
            assert "Jo" not in given.text
            await server.services.recorder.flush()
