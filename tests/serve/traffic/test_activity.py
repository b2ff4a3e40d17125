"""What versions did over time, out of answers and thumbs."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from polytone.serve.database.session import writing
from polytone.serve.database.tables import AnswerRow, FeedbackRow
from tests.support.serving import Server, serving

pytestmark = pytest.mark.both_databases

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NONSENSE: tuple[dict[str, Any], ...] = (
    {"since": "2026-03-01T12:00:00Z", "until": "2026-03-01T11:00:00Z"},
    {"since": "2026-03-01T12:00:00Z", "until": "2026-03-01T12:00:00.000007Z"},
    {"since": "2026-03-01T12:00:00Z", "until": "2026-03-01T12:00:10Z", "buckets": 11},
    {"until": "0001-01-01T00:00:00Z"},
    {"since": "0001-01-01T00:00:00+14:00"},
    {"until": "9999-12-31T23:59:59-14:00"},
    {"buckets": 0},
    {"buckets": 501},
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as server:
        yield server


def plant(server: Server, number: int, minutes: float, status: int = 200, thumb: str | None = None) -> None:
    """An answer of acme@1 that took `number` seconds, so long after noon."""
    at = NOON + timedelta(minutes=minutes)
    with writing(server.services.database) as session:
        session.add(
            AnswerRow(
                id=f"chatcmpl-{number}",
                at=at,
                voice="acme",
                version="acme@1",
                base="tiny",
                policy="full",
                status=status,
                parameters={},
                prompt_tokens=10,
                completion_tokens=5,
                first_token_seconds=number / 10,
                seconds=float(number),
            )
        )
        if thumb:
            session.add(
                FeedbackRow(
                    id=f"fb-{number}",
                    at=at,
                    target="completion",
                    target_id=f"chatcmpl-{number}",
                    voice="acme",
                    version="acme@1",
                    key="thumb",
                    value=thumb,
                    annotator="robin",
                    annotator_kind="human",
                )
            )


async def activity(server: Server, **asked: Any) -> dict[str, Any]:
    answer = await server.client.get("/admin/activity", params=asked)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_figures_are_those_of_the_answers(server: Server) -> None:
    for number, minutes in enumerate((1, 2, 3, 11), 1):
        plant(server, number, minutes, thumb="down" if number == 2 else None)
    plant(server, 9, 12, status=500)
    plant(server, 7, 13, status=499)
    plant(server, 8, 20, thumb="up")  # not before `until`
    until = NOON + timedelta(minutes=20)
    told = await activity(server, since=NOON.isoformat(), until=until.isoformat(), buckets=2)
    assert (told["bucket_seconds"], told["cut"], len(told["versions"])) == (600, False, 1)
    first, second = told["versions"][0]["points"]
    assert (first["at"], first["answers"], first["errors"]) == (NOON.isoformat(), 3, 0)
    assert (first["prompt_tokens"], first["completion_tokens"]) == (30, 15)
    assert (first["first_token_p50"], first["seconds_p50"], first["seconds_p95"]) == (0.2, 2.0, 2.9)
    assert (first["thumbs_up"], first["thumbs_down"]) == (0, 1)
    assert (second["answers"], second["errors"], second["seconds_p50"]) == (2, 1, 4.0)
    later = {"since": until.isoformat(), "until": (until + timedelta(minutes=20)).isoformat(), "buckets": 1}
    (third,) = (await activity(server, **later))["versions"][0]["points"]
    assert (third["answers"], third["thumbs_up"], third["seconds_p95"]) == (1, 1, 8.0)


async def test_a_thumb_that_was_taken_back_does_not_count(server: Server) -> None:
    await server.voice("acme", 1)
    completion = (await server.chat("acme")).json()["id"]
    said = {"completion_id": completion, "key": "thumb", "annotator": {"id": "robin"}}
    down = (await server.client.post("/v1/feedback", json={**said, "value": "down"})).json()["id"]
    up = await server.client.post("/v1/feedback", json={**said, "value": "up", "supersedes": down})
    assert [thumbs(await activity(server, buckets=1))] == [(1, 0)]
    await server.client.post(
        "/v1/feedback", json={"key": "retract", "supersedes": up.json()["id"], "annotator": {"id": "robin"}}
    )
    assert [thumbs(await activity(server, buckets=1))] == [(0, 0)]


def thumbs(told: dict[str, Any]) -> tuple[int, int]:
    (point,) = told["versions"][0]["points"]
    return point["thumbs_up"], point["thumbs_down"]


async def test_of_too_many_answers_the_newest_are_counted_and_that_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polytone.serve.traffic.activity.MAX_ROWS", 3)
    asked = {"since": NOON.isoformat(), "until": (NOON + timedelta(hours=1)).isoformat(), "buckets": 1}
    for number in range(3):
        plant(server, number, number)
    assert (await activity(server, **asked))["cut"] is False
    plant(server, 3, 3)
    told = await activity(server, **asked)
    (point,) = told["versions"][0]["points"]
    assert (told["cut"], point["answers"], point["seconds_p50"]) == (True, 3, 2.0)


async def test_without_the_database_there_are_no_figures_and_that_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise OperationalError("select", {}, OSError("gone"))

    monkeypatch.setattr("polytone.serve.traffic.activity.reading", gone)
    answer = await server.client.get("/admin/activity")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")


async def test_what_was_just_answered_is_there(server: Server) -> None:
    acme = await server.voice("acme", 1)
    assert (await server.chat("acme")).status_code == 200
    told = await activity(server)
    assert [(one["version"], one["points"][-1]["answers"]) for one in told["versions"]] == [(acme, 1)]


async def test_a_stretch_that_makes_no_sense_is_refused(server: Server) -> None:
    for asked in NONSENSE:
        answer = await server.client.get("/admin/activity", params=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), asked
