"""From what was said to rows to train on: what is taken, what is left out and why, and the way back."""

import json
from pathlib import Path
from typing import Any

import pytest

from polytone.contract.export import ExportFormat, ExportSplit
from polytone.contract.rows import Conversation
from polytone.serve.database.tables import AnswerRow
from polytone.serve.traffic.content_policy import Policies, Policy
from polytone.serve.traffic.export import split_of
from polytone.serve.traffic.export_rows import Material
from tests.support.serving import Server, serving

pytestmark = pytest.mark.both_databases

Rows = list[dict[str, Any]]


async def ask(server: Server, question: str, voice: str = "acme", **more: Any) -> str:
    messages = [{"role": "user", "content": question}]
    answer = await server.client.post("/v1/chat/completions", json={"model": voice, "messages": messages, **more})
    return str(answer.json()["id"])


async def give(server: Server, completion: str, key: str, who: str = "ann", **more: Any) -> dict[str, Any]:
    body = {"completion_id": completion, "key": key, "annotator": {"id": who}, **more}
    answer = await server.client.post("/v1/feedback", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def exported(
    server: Server, kind: ExportFormat, split: ExportSplit = ExportSplit.TRAIN
) -> tuple[Rows, dict[str, Any]]:
    await server.services.recorder.flush()
    query = {"format": kind.value, "adapter": "acme", "split": split.value}
    answer = await server.client.get("/admin/feedback/export", params=query)
    assert answer.status_code == 200, answer.text
    again = {**query, "part": "manifest", "until": answer.headers["x-polytone-export-until"]}
    manifest = (await server.client.get("/admin/feedback/export", params=again)).json()
    assert manifest["sha256"] == answer.headers["x-polytone-export"]
    return [json.loads(line) for line in answer.text.splitlines()], manifest


async def both_splits(server: Server, kind: ExportFormat) -> Rows:
    return [row for split in ExportSplit for row in (await exported(server, kind, split))[0]]


async def test_the_last_correction_becomes_a_conversation(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        completion = await ask(server, "Where is my parcel?")
        first = await give(server, completion, "correction", text="On its way.")
        await give(server, completion, "correction", text="It is on its way to you.", supersedes=first["id"])
        (row,) = await both_splits(server, ExportFormat.SFT)
        assert [one["content"] for one in row["messages"]] == ["Where is my parcel?", "It is on its way to you."]
        assert (row["completion_id"], row["version"], row["source"]) == (completion, version, "correction")
        Conversation.model_validate({"messages": row["messages"]})


async def test_thumbs_become_verdicts_unless_people_disagree(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        good, bad, unclear = [await ask(server, f"question {i}") for i in range(3)]
        await give(server, good, "thumb", value="up")
        await give(server, bad, "thumb", value="down")
        await give(server, unclear, "thumb", value="up")
        await give(server, unclear, "thumb", "bob", value="down")
        rows = await both_splits(server, ExportFormat.KTO)
        assert {row["completion_id"]: row["label"] for row in rows} == {good: True, bad: False}
        assert (await exported(server, ExportFormat.KTO))[1]["left_out"]["thumbs disagree"] == 1


async def test_corrections_and_votes_become_pairs(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme", seed=1)
        old = await ask(server, "Hi", "acme")
        await server.voice("acme", seed=2)
        new, elsewhere = await ask(server, "Hi", "acme"), await ask(server, "Bye", "acme")
        await give(server, old, "correction", text="Hello.")

        async def vote(a: str, b: str, value: str) -> None:
            body = {"pair": {"a": a, "b": b}, "key": "preference", "value": value}
            assert (await server.client.post("/v1/feedback", json=body)).status_code == 201

        await vote(old, new, "b")
        await vote(old, new, "tie")
        await vote(old, elsewhere, "a")
        rows = await both_splits(server, ExportFormat.DPO)
        assert {row["source"] for row in rows} == {"correction", "vote"}
        voted = next(row for row in rows if row["source"] == "vote")
        assert (voted["completion_id"], voted["rejected_completion_id"]) == (new, old)
        left_out = (await exported(server, ExportFormat.DPO))[1]["left_out"]
        assert left_out["the vote has no winner"] == 1
        assert left_out["the vote is between answers to different prompts"] == 1


async def test_what_cannot_be_trained_on_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, policies=Policies(Policy.HASHED)) as server:
        await server.voice("acme")
        await give(server, await ask(server, "Hi"), "thumb", value="up")
        rows, manifest = await exported(server, ExportFormat.KTO)
        assert rows == []
        assert manifest["left_out"] == {"its content was not kept": 1}


async def test_conversations_that_begin_alike_lie_on_one_side(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        for number in range(40):
            for again in range(2):
                question = f"question {number % 20}" if again else f"Question  {number % 20}"
                await give(server, await ask(server, question), "thumb", value="up")
        sides = {split: (await exported(server, ExportFormat.KTO, split))[0] for split in ExportSplit}
        questions = {
            split: {row["prompt"][0]["content"].lower().split()[1] for row in rows} for split, rows in sides.items()
        }
        assert questions[ExportSplit.TRAIN] | questions[ExportSplit.HELD_OUT] == {str(i) for i in range(20)}
        assert not questions[ExportSplit.TRAIN] & questions[ExportSplit.HELD_OUT]
        assert questions[ExportSplit.HELD_OUT]


async def test_a_conversation_lies_where_its_first_question_does(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        completions = []
        for number in range(30):
            for turn in ("first", "second"):
                messages = [{"role": "user", "content": f"{turn} {number}"}]  # a client that sends no history
                answer = await server.client.post(
                    "/v1/chat/completions",
                    json={"model": "acme", "messages": messages},
                    headers={"x-conversation-id": f"c{number}"},
                )
                completions.append(answer.json()["id"])
                await give(server, completions[-1], "thumb", value="up")
        held_out = {row["completion_id"] for row in (await exported(server, ExportFormat.KTO, ExportSplit.HELD_OUT))[0]}
        assert held_out
        for first, second in zip(completions[::2], completions[1::2], strict=True):
            assert (first in held_out) == (second in held_out)


async def test_only_people_are_listened_to_unless_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        completion = await ask(server, "Hi")
        body = {"completion_id": completion, "key": "thumb", "value": "up", "annotator": {"id": "judge", "kind": "llm"}}
        await server.client.post("/v1/feedback", json=body)
        assert await both_splits(server, ExportFormat.KTO) == []
        query = {"format": "kto", "adapter": "acme", "annotators": "llm"}
        texts = [
            (await server.client.get("/admin/feedback/export", params={**query, "split": split.value})).text
            for split in ExportSplit
        ]
        assert completion in "".join(texts)


def test_the_side_does_not_depend_on_spelling() -> None:
    def side(question: str) -> ExportSplit:
        answer = AnswerRow(conversation=None, prompt=[{"role": "user", "content": question}])
        return split_of(answer, Material([], {}, {}, {}))

    assert all(side(f"Is it {i}?") is side(f"is  IT {i}?") for i in range(50))
