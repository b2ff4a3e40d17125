"""The review queue: the most pressing first, to one reviewer at a time, decided once."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from polytone.contract.export import ExportFormat
from polytone.serve.traffic.reviews import Reviews
from tests.support.serving import Server, serving

from .test_export import ask, both_splits, give

pytestmark = pytest.mark.both_databases


async def lease(server: Server, reviewer: str, **more: Any) -> dict[str, Any] | None:
    answer = await server.client.post("/admin/reviews/next", json={"reviewer": reviewer, **more})
    assert answer.status_code == 200, answer.text
    item: dict[str, Any] | None = answer.json()["item"]
    return item


async def decide(server: Server, completion: str, reviewer: str, decision: str, **more: Any) -> httpx.Response:
    body = {"reviewer": reviewer, "decision": decision, **more}
    return await server.client.post(f"/admin/reviews/{completion}", json=body)


async def rated_down(server: Server) -> str:
    bad = await ask(server, "q")
    await give(server, bad, "thumb", value="down")
    await server.services.recorder.flush()
    return bad


async def test_thumbs_down_and_disagreements_come_first_and_to_one_reviewer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        calm, argued, bad = [await ask(server, f"q{i}") for i in range(3)]
        await give(server, argued, "thumb", value="up")
        await give(server, argued, "thumb", "bob", value="down")
        await give(server, bad, "thumb", value="down")
        await server.services.recorder.flush()
        first, second, third = [await lease(server, who) for who in ("ann", "bob", "cy")]
        assert first
        assert second
        assert third
        assert (first["completion_id"], first["reason"]) == (bad, "thumbs_down")
        assert (second["completion_id"], second["reason"]) == (argued, "disagreement")
        assert (third["completion_id"], third["reason"]) == (calm, "random")
        assert await lease(server, "dee") is None
        again = await lease(server, "ann")
        assert again
        assert again["completion_id"] == bad
        assert [one["value"] for one in second["feedback"]] == ["up", "down"]
        assert (second["prompt"], second["reply"]["role"]) == ([{"role": "user", "content": "q1"}], "assistant")
        assert (second["base"], second["parameters"].get("stream")) == (server.base.id, None)


async def test_reviewers_at_once_get_an_item_each_while_there_are_any(tmp_path: Path) -> None:
    """On PostgreSQL two of them once drew the same answer, and one was told that the database was gone."""
    async with serving(tmp_path) as server:
        await server.voice("acme")
        answers = {await ask(server, f"q{i}") for i in range(3)}
        await server.services.recorder.flush()
        items = await asyncio.gather(*(lease(server, f"reviewer-{i}") for i in range(6)))
        assert sorted(item["completion_id"] for item in items if item) == sorted(answers)


async def test_a_lease_runs_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        bad = await rated_down(server)
        reviews = Reviews(server.services.database)
        assert reviews.lease("ann", seconds=-1)
        taken = await lease(server, "bob")
        assert taken
        assert taken["completion_id"] == bad
        late = await decide(server, bad, "ann", "accept")
        assert (late.status_code, late.json()["error"]["code"]) == (409, "review_leased")


async def test_an_edit_becomes_a_correction_and_a_rejection_keeps_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        edited, rejected, accepted = [await ask(server, f"q{i}") for i in range(3)]
        for completion in (edited, rejected, accepted):
            await give(server, completion, "thumb", value="down")
        await server.services.recorder.flush()
        assert (await decide(server, edited, "ann", "edit", text="Better.")).json()["state"] == "edited"
        assert (await decide(server, rejected, "ann", "reject")).json()["state"] == "rejected"
        assert (await decide(server, accepted, "ann", "accept")).json()["state"] == "accepted"
        rows = {
            row["completion_id"]: row["messages"][-1]["content"] for row in await both_splits(server, ExportFormat.SFT)
        }
        assert rows[edited] == "Better."
        assert rows[accepted].startswith("acme@")
        assert rejected not in rows
        verdicts = {row["completion_id"]: row["label"] for row in await both_splits(server, ExportFormat.KTO)}
        assert verdicts == {edited: False, accepted: True}
        counts = (await server.client.get("/admin/reviews")).json()["reviews"]
        assert {one["state"] for one in counts} == {"edited", "rejected", "accepted"}


async def test_what_waits_is_a_metric(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        metrics, wanted = server.services.metrics, {"state": "open", "reason": "thumbs_down"}
        bad = await rated_down(server)
        metrics.show_reviews(server.services.reviews.counts())
        assert metrics.registry.get_sample_value("polytone_reviews", wanted) == 1
        await decide(server, bad, "ann", "accept")
        metrics.show_reviews(server.services.reviews.counts())
        assert metrics.registry.get_sample_value("polytone_reviews", wanted) == 0
        assert metrics.registry.get_sample_value("polytone_reviews", wanted | {"state": "accepted"}) == 1


async def test_a_decision_is_made_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        bad = await rated_down(server)
        assert (await decide(server, bad, "ann", "edit")).status_code == 400
        assert (await decide(server, bad, "ann", "edit", text="Better.")).status_code == 200
        again = await decide(server, bad, "ann", "edit", text="Best.")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "review_decided")
        assert len((await server.client.get("/v1/feedback")).json()["feedback"]) == 2
        unknown = await decide(server, "chatcmpl-none", "ann", "accept")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "review_not_found")


async def test_an_answer_that_is_not_written_yet_waits_for_its_row(tmp_path: Path, monkeypatch: Any) -> None:
    """Its item was once deleted, and the next one hidden."""
    monkeypatch.setattr("polytone.serve.traffic.recorder.FLUSH_SECONDS", 60)
    async with serving(tmp_path) as server:
        await server.voice("acme")
        bad = await ask(server, "q")
        await give(server, bad, "thumb", value="down")
        assert await lease(server, "ann") is None
        await server.services.recorder.flush()
        item = await lease(server, "ann")
        assert item
        assert item["completion_id"] == bad
