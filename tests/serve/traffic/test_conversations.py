"""What testers keep of their conversations: trees of turns that belong to the key that made them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from polytone.contract.export import export_manifest_path, read_export_manifest
from polytone.contract.rows import Conversation
from polytone.serve.auth.keys import Kind
from tests.support.serving import Server, serving

pytestmark = pytest.mark.both_databases

PATH = "/v1/conversations"
BAD: tuple[dict[str, Any], ...] = (
    {"parent": "turn_99"},
    {"parent": "a\0b"},
    {"role": "nobody"},
    {"content": "a\0b"},
    {"content": "\ud800"},
    {"details": {"long": "x" * 70_000}},
    {"details": {"a": ["\0"]}},
    {"details": {"a": "\ud800"}},
    {"details": {"\0": 1}},
    {"details": {"a": float("nan")}},
    {"details": {"a": json.loads("[" * 60 + "]" * 60)}},
    {"details": []},
    {"id": "mine"},
    {"unknown": 1},
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as server:
        yield server


async def begin(server: Server, headers: dict[str, str] | None = None) -> str:
    answer = await server.client.post(PATH, headers=headers)
    assert answer.status_code == 201
    return str(answer.json()["id"])


async def say(server: Server, conversation: str, role: str, content: str, **more: Any) -> httpx.Response:
    body = {"role": role, "content": content, **more}
    return await server.client.post(f"{PATH}/{conversation}/turns", json=body)


async def told(server: Server, conversation: str, role: str, content: str, **more: Any) -> str:
    answer = await say(server, conversation, role, content, **more)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def exported(server: Server, **asked: str) -> list[dict[str, Any]]:
    answer = await server.client.get(f"{PATH}/export", params=asked)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson"), answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_second_answer_is_a_sibling_and_a_line_of_its_own(server: Server) -> None:
    conversation = await begin(server)
    question = await told(server, conversation, "user", "Where is my parcel?\nI waited all day.")
    for version in ("acme@1", "acme@2"):
        more = {"parent": question, "completion_id": f"chatcmpl-{version}", "details": {"version": version}}
        await told(server, conversation, "assistant", f"As {version}", **more)

    kept = (await server.client.get(f"{PATH}/{conversation}")).json()
    assert (kept["title"], kept["model"]) == ("Where is my parcel?", "acme@2")
    assert [turn["parent"] for turn in kept["turns"]] == [None, question, question]

    first, second = await exported(server)
    assert [first["versions"], second["versions"]] == [["acme@1"], ["acme@2"]]
    assert [first["completion_ids"], second["completion_ids"]] == [["chatcmpl-acme@1"], ["chatcmpl-acme@2"]]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant"]
    assert second["messages"][1]["content"] == "As acme@2"
    assert await exported(server, conversation_id=conversation) == [first, second]
    assert await exported(server, search="of something else") == []


async def test_every_line_can_be_trained_on(server: Server) -> None:
    """Half-told branches would have training refuse the file: no answer yet, one that never came, two questions."""
    conversation = await begin(server)
    question = await told(server, conversation, "user", "Where is my parcel?")
    failed = await told(server, conversation, "assistant", "", parent=question)
    await told(server, conversation, "user", "Are you there?", parent=failed)
    answer = await told(server, conversation, "assistant", "On its way.", parent=question)
    more = await told(server, conversation, "user", "When will it come?", parent=answer)
    await told(server, conversation, "user", "Thanks.", parent=answer)
    (line,) = await exported(server)
    assert [message["content"] for message in line["messages"]] == ["Where is my parcel?", "On its way."]
    await told(server, conversation, "assistant", "Today.", parent=more)
    odd = await told(server, conversation, "user", "Hello?", parent=failed)
    await told(server, conversation, "assistant", "Yes?", parent=odd)
    (line,) = await exported(server)
    assert [message["content"] for message in line["messages"]][2:] == ["When will it come?", "Today."]
    Conversation.model_validate(line)


async def test_a_manifest_names_the_answers_behind_the_rows(server: Server, tmp_path: Path) -> None:
    """Training on kept conversations once left no way back to the answers: no manifest lay beside their rows."""
    for number, version in enumerate(("acme@000000000001", "zest@000000000002")):
        conversation = await begin(server)
        question = await told(server, conversation, "user", f"Where is parcel {number}?")
        more = {"completion_id": f"chatcmpl-{number}", "details": {"version": version}}
        await told(server, conversation, "assistant", "On its way.", parent=question, **more)
    await told(server, await begin(server), "user", "Is anyone there?")
    rows = await server.client.get(f"{PATH}/export")
    until = rows.headers["x-polytone-export-until"]
    await told(server, conversation, "assistant", "Lost.", parent=question)
    again = await server.client.get(f"{PATH}/export", params={"until": until})
    assert again.text == rows.text
    answer = await server.client.get(f"{PATH}/export", params={"until": until, "part": "manifest"})
    path = tmp_path / "kept.jsonl"
    path.write_text(rows.text)
    export_manifest_path(path).write_text(answer.text)
    manifest = read_export_manifest(path)
    assert manifest is not None
    assert (manifest.format, manifest.split, manifest.rows, manifest.adapter) == ("sft", "train", 2, None)
    assert manifest.completions == ["chatcmpl-0", "chatcmpl-1"]
    assert manifest.versions == ["acme@000000000001", "zest@000000000002"]
    assert manifest.left_out == {"a conversation without an answer": 1}


async def test_a_rejected_answer_is_in_no_export(server: Server) -> None:
    """A review left an answer out of the export of feedback, and not out of this one."""
    await server.voice("acme")
    completion = (await server.chat("acme")).json()["id"]
    await server.services.recorder.flush()
    conversation = await begin(server)
    question = await told(server, conversation, "user", "Hello")
    await told(server, conversation, "assistant", "Go away.", parent=question, completion_id=completion)
    await told(server, conversation, "assistant", "Hello!", parent=question)
    thumb = {"completion_id": completion, "key": "thumb", "value": "down"}
    assert (await server.client.post("/v1/feedback", json=thumb)).status_code == 201
    assert len(await exported(server)) == 2
    decision = {"reviewer": "ann", "decision": "reject"}
    assert (await server.client.post(f"/admin/reviews/{completion}", json=decision)).status_code == 200
    (line,) = await exported(server)
    assert line["messages"][-1]["content"] == "Hello!"
    manifest = (await server.client.get(f"{PATH}/export", params={"part": "manifest"})).json()
    assert manifest["left_out"] == {"an answer was rejected in review": 1}


async def test_a_turn_sent_twice_is_kept_once(server: Server) -> None:
    conversation = await begin(server)
    said = {"role": "user", "content": "Hello", "id": "turn_ab12"}
    first, second = [await say(server, conversation, **said) for _ in range(2)]
    assert first.json() == second.json()
    other = await say(server, conversation, "user", "Goodbye", id="turn_ab12")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert len((await server.client.get(f"{PATH}/{conversation}")).json()["turns"]) == 1


async def test_bad_turns_are_refused_and_leave_nothing(server: Server) -> None:
    conversation = await begin(server)
    for change in BAD:
        body = json.dumps({"role": "user", "content": "Hello", **change})
        headers = {"content-type": "application/json"}
        answer = await server.client.post(f"{PATH}/{conversation}/turns", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), change
    assert (await server.client.get(f"{PATH}/{conversation}")).json()["turns"] == []


async def test_details_come_back_as_they_were_sent(server: Server) -> None:
    conversation = await begin(server)
    details = {"usage": {"total_tokens": 7}, "seconds": 0.25, "text": "no \\u0000 at all: \u00e9", "none": None}
    turn = await told(server, conversation, "user", "Hello", details=details)
    for _ in range(2):
        again = await say(server, conversation, "user", "Hello", details=details, id="turn_1")
        assert (again.status_code, again.json()["details"]) == (201, details)
    turns = (await server.client.get(f"{PATH}/{conversation}")).json()["turns"]
    assert [(one["id"], one["details"]) for one in turns] == [(turn, details), ("turn_1", details)]


async def test_two_tabs_lose_nothing(server: Server) -> None:
    conversation = await begin(server)
    answers = [say(server, conversation, "user", f"number {number}") for number in range(20)]
    assert {answer.status_code for answer in await asyncio.gather(*answers)} == {201}
    turns = (await server.client.get(f"{PATH}/{conversation}")).json()["turns"]
    assert {turn["content"] for turn in turns} == {f"number {number}" for number in range(20)}
    same = [say(server, conversation, "user", "once", id="turn_0") for _ in range(10)]
    assert {answer.json()["id"] for answer in await asyncio.gather(*same)} == {"turn_0"}
    assert (await server.client.get(PATH)).json()["conversations"][0]["turns"] == 21


async def test_a_turn_of_another_conversation_is_no_parent(server: Server) -> None:
    one, other = await begin(server), await begin(server)
    turn = await told(server, one, "user", "Hello", id="turn_a")
    refused = await say(server, other, "user", "Hello", parent=turn)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "parent")
    assert await told(server, other, "user", "Hello", id="turn_a") == "turn_a"


async def test_the_title_is_its_own_or_the_first_questions(server: Server) -> None:
    for title, question, expected in (
        ("Parcels", "Where is it?", "Parcels"),
        ("  ", f"\n  {'long ' * 40}\nsecond line", ("long " * 40)[:80]),
        ("", " ", ""),
    ):
        made = (await server.client.post(PATH, json={"title": title})).json()
        assert {key: made[key] for key in ("title", "model", "turns")} == {
            "title": title.strip(),
            "model": None,
            "turns": 0,
        }
        await told(server, made["id"], "system", "Be kind.")
        await told(server, made["id"], "user", question)
        assert (await server.client.get(f"{PATH}/{made['id']}")).json()["title"] == expected
    for title in ("x" * 201, "a\0b"):
        assert (await server.client.post(PATH, json={"title": title})).status_code == 400


async def test_another_keys_conversation_is_not_there(server: Server) -> None:
    mine, theirs = (server.key(Kind.INFERENCE, name) for name in ("mine", "theirs"))
    admin = server.key(Kind.ADMIN)
    conversation = await begin(server, mine)
    calls = [("GET", ""), ("DELETE", ""), ("POST", "/turns")]
    for method, path in calls:
        body = {"role": "user", "content": "Hello"} if method == "POST" else None
        answer = await server.client.request(method, f"{PATH}/{conversation}{path}", headers=theirs, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "conversation_not_found")
    answer = await server.client.get(f"{PATH}/export?conversation_id={conversation}", headers=theirs)
    assert answer.status_code == 404
    assert (await server.client.get(PATH, headers=theirs)).json()["conversations"] == []
    assert len((await server.client.get(PATH, headers=mine)).json()["conversations"]) == 1
    assert (await server.client.get(PATH)).status_code == 401
    assert (await server.client.get(PATH, headers=admin)).status_code == 403


async def test_search_takes_every_character_for_itself(server: Server) -> None:
    for words in ("100% of it", "100 of it", "under_score", "underscore", "back\\slash"):
        await told(server, await begin(server), "user", words)

    async def found(words: str) -> list[str]:
        answer = await server.client.get(PATH, params={"search": words})
        return sorted(kept["title"] for kept in answer.json()["conversations"])

    assert await found("100%") == ["100% of it"]
    assert await found("R_S") == ["under_score"]
    assert await found("k\\s") == ["back\\slash"]
    assert await found("OF IT") == ["100 of it", "100% of it"]
    conversation = await begin(server)
    await told(server, conversation, "user", "Grüße")
    await told(server, conversation, "assistant", "Ihr Ärger ist unser Ärger.")
    assert await found("äRGER IST") == ["Grüße"]
    assert await found("GRÜSSE") == []
    for bad in ("a\0b", "x" * 201):
        assert (await server.client.get(PATH, params={"search": bad})).status_code == 400


async def test_pages_follow_each_other(server: Server) -> None:
    """What comes to the front meanwhile moves nothing to the next page."""
    made = [await begin(server) for _ in range(5)]
    await told(server, made[0], "user", "the newest now")
    seen: list[str] = []
    asked: dict[str, Any] = {"limit": 2}
    for _ in range(3):
        page = (await server.client.get(PATH, params=asked)).json()
        seen += [kept["id"] for kept in page["conversations"]]
        asked["cursor"] = page["next"]
        await told(server, seen[1], "user", "and once more")
        await begin(server)
    assert (seen, page["next"]) == ([made[0], *made[:0:-1]], None)
    for bad in ("7", "-1", f"{'9' * 18}-{made[0]}", "a\0b"):
        assert (await server.client.get(PATH, params={"cursor": bad})).status_code == 400


async def test_a_name_that_was_never_given_out_is_not_there(server: Server) -> None:
    for name in ("acme", "conv_00", f"conv_{'0' * 32}", "a%00b", "%ff"):
        for method in ("GET", "DELETE"):
            answer = await server.client.request(method, f"{PATH}/{name}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "conversation_not_found")


async def test_without_the_database_nothing_is_kept_and_that_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await begin(server)

    def gone(*_: Any) -> None:
        raise OperationalError("select", {}, OSError("gone"))

    monkeypatch.setattr("polytone.serve.traffic.conversations.reading", gone)
    monkeypatch.setattr("polytone.serve.traffic.conversations.writing", gone)
    for method, path in (
        ("POST", ""),
        ("GET", ""),
        ("GET", "/export"),
        ("GET", f"/{conversation}"),
        ("POST", f"/{conversation}/turns"),
        ("DELETE", f"/{conversation}"),
    ):
        body = {"role": "user", "content": "Hello"} if path.endswith("turns") else None
        answer = await server.client.request(method, f"{PATH}{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")


async def test_a_turn_larger_than_a_body_may_be_is_refused(server: Server) -> None:
    conversation = await begin(server)
    assert (await say(server, conversation, "user", "x" * 190_000)).status_code == 201
    assert (await say(server, conversation, "user", "x" * 210_000)).status_code == 413


async def test_what_is_forgotten_is_forgotten_here_too(server: Server) -> None:
    """A person's right to be forgotten reaches what a tester kept."""
    kept, other = await begin(server), await begin(server)
    await told(server, kept, "user", "My name is Robin")
    assert (await server.client.delete("/admin/traffic", params={"conversation_id": kept})).status_code == 200
    assert (await server.client.get(f"{PATH}/{kept}")).status_code == 404
    assert (await server.client.get(f"{PATH}/{other}")).status_code == 200
    assert (await server.client.delete(f"{PATH}/{other}")).json() == {"deleted": 0}
    with server.services.database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM turns")) == 0
